"""Endless talking clips for small models: drawn heads whose mouths follow synthesised speech, told in words.

Knows no models. Everything about a clip follows from its seed (and from whether espeak-ng is installed).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..config import SAMPLE_RATE
from ..errors import ConfigError
from .faces import Backdrop, Box, Camera, Look, Painter, Pose, random_backdrop, random_look
from .voices import sound_shape, speech_track, voices

FPS = 16
HEAD_MOTIONS = ("still", "nods", "shakes")
CAMERA_MOTIONS = ("still", "moves in", "pans left", "pans right")
MAX_ZOOM = 1.45        # over the zoom that a clip began with
MAX_PAN = 0.2          # picture sides
HELD_OUT_SEEDS = 1 << 40   # added to the seeds of held-out clips: they share no draw with others

_HEAD_WORDS = {
    "still": ("keeps still", "holds the head still", "looks straight ahead"),
    "nods": ("nods", "nods the head", "is nodding"),
    "shakes": ("shakes the head", "is shaking the head"),
}
_CAMERA_WORDS = {
    "still": ("the camera stays still", "the camera does not move"),
    "moves in": ("the camera moves in", "the camera comes closer"),
    "pans left": ("the camera pans left", "the camera pans to the left"),
    "pans right": ("the camera pans right", "the camera pans to the right"),
}
_PLACES = {1: (0.0,), 2: (-0.25, 0.25), 3: (-0.335, 0.0, 0.335)}   # of the heads, in picture widths
_SIZES = {1: 1.0, 2: 0.72, 3: 0.54}


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """One of a clip's people. Frame k shows what is heard at k/fps."""

    look: Look
    x: float
    y: float
    size: float
    motion: str            # one of HEAD_MOTIONS
    pace: float            # nods or shakes a second
    reach: float           # how far they go, 1 usual
    waveform: np.ndarray   # [S] float32 at 16 kHz
    openings: np.ndarray   # [F] 0 to about 1
    widths: np.ndarray     # [F] -1 to 1
    blinks: np.ndarray     # [F] 0 or 1

    def pose(self, frame: int) -> Pose:
        sway = 0.004 * np.sin(0.9 * frame / FPS + self.pace)
        swing = np.sin(2 * np.pi * self.pace * frame / FPS) * self.reach
        nod, shake = swing * (self.motion == "nods"), swing * (self.motion == "shakes")
        return Pose(
            x=self.x + (sway + 0.036 * shake) * self.size,
            y=self.y + (0.7 * sway + 0.042 * nod) * self.size,
            size=self.size,
            turn=0.21 * shake,
            tilt=0.125 * nod,
            opening=float(self.openings[frame]),
            width=float(self.widths[frame]),
            blink=float(self.blinks[frame]),
        )


class SyntheticClip:
    """A video of people who speak, nod or shake their heads before a camera that stays, moves in or pans.

    Args:
        seed: all that is drawn at random follows from it.
        num_frames: at 16 fps; the sound is exactly as long.
        width, height: pixels; 64 to 128 is what it is made for.
        num_faces: 1 to 3, side by side, each with a voice of its own.
        motion, camera: one of HEAD_MOTIONS (for everybody) and CAMERA_MOTIONS; drawn from the seed where None. With
            several faces the camera keeps still.
        silent: nobody speaks; or who of the faces, left to right, keeps silent.
        held_out: looks, voices and sentences that training never sees.
        engine: "espeak" or "formant" for voices of that kind alone.
        tracks: [S] float32 each, spoken by the faces in place of their own voices.

    Raises: ConfigError for a number of faces, a motion or a number of tracks that is impossible.
    """

    def __init__(
        self,
        seed: int,
        *,
        num_frames: int = 161,
        width: int = 128,
        height: int = 128,
        num_faces: int = 1,
        motion: str | None = None,
        camera: str | None = None,
        silent: bool | Sequence[bool] = False,
        held_out: bool = False,
        engine: str | None = None,
        tracks: list[np.ndarray] | None = None,
    ) -> None:
        silent = [silent] * num_faces if isinstance(silent, bool) else silent
        _check(num_faces, motion, camera, tracks)
        self.num_frames, self.width, self.height = num_frames, width, height
        rng = np.random.default_rng(seed + HELD_OUT_SEEDS * held_out)
        self._painter = Painter(width, height)
        self.backdrop: Backdrop = random_backdrop(rng)
        drawn = CAMERA_MOTIONS[rng.choice(len(CAMERA_MOTIONS), p=(0.4, 0.3, 0.15, 0.15))]
        self.camera = camera or ("still" if num_faces > 1 else drawn)
        self._zoom, self._rate = rng.uniform(0.88, 1.04), rng.uniform(0.045, 0.06)
        self._pan = rng.uniform(0.022, 0.034)
        choices = voices(held_out=held_out, engine=engine)
        order = rng.permutation(len(choices))
        self.people: list[Person] = []
        for i in range(num_faces):
            person_rng = np.random.default_rng(rng.integers(1 << 62))
            num_samples = round(num_frames * SAMPLE_RATE / FPS)
            if tracks is not None:
                track = np.asarray(tracks[i], np.float32)
            elif silent[i]:
                track = np.zeros(num_samples, np.float32)
            else:
                voice = choices[order[i % len(choices)]]
                track = speech_track(
                    voice, num_samples, np.random.default_rng(rng.integers(1 << 62)), held_out=held_out
                )
            place = _PLACES[num_faces][i] * width / min(width, height)
            self.people.append(_make_person(person_rng, track, num_frames, place, _SIZES[num_faces], motion, held_out))
        told = [(person.look, person.motion) for person in self.people]
        self.prompt: str = describe(told, self.backdrop, self.camera, rng)

    @property
    def is_still(self) -> bool:
        """Nothing moves but mouths and eyes."""
        return self.camera == "still" and all(person.motion == "still" for person in self.people)

    @property
    def waveforms(self) -> np.ndarray:
        """[P, S] float32 at 16 kHz, a track a face, left to right."""
        return np.stack([person.waveform for person in self.people])

    @property
    def waveform(self) -> np.ndarray:
        """[S] float32 at 16 kHz: all that is heard."""
        return self.waveforms.sum(0).clip(-1, 1)

    @property
    def openings(self) -> np.ndarray:
        """[P, F] how far the mouths are drawn open: the truth that a measurement is tested against."""
        return np.stack([person.openings for person in self.people])

    def frames(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop-start, H, W, 3] uint8."""
        return np.stack([self.frame(k) for k in range(start, self.num_frames if stop is None else stop)])

    def frame(self, index: int) -> np.ndarray:
        """[H, W, 3] uint8."""
        people = [(person.look, person.pose(index)) for person in self.people]
        return self._painter.picture(self.backdrop, people, self.camera_at(index))

    @cached_property
    def reference(self) -> np.ndarray:
        """[H, W, 3] uint8: the people as the clip begins, silent, eyes open."""
        people = [(p.look, Pose(x=p.x, y=p.y, size=p.size)) for p in self.people]
        return self._painter.picture(self.backdrop, people, self.camera_at(0))

    def camera_at(self, frame: int) -> Camera:
        seconds = frame / FPS
        if self.camera == "moves in":
            return Camera(zoom=self._zoom * min(MAX_ZOOM, float(np.exp(self._rate * seconds))))
        direction = {"pans left": -1, "pans right": 1}.get(self.camera, 0)
        return Camera(x=direction * min(MAX_PAN, self._pan * seconds), zoom=self._zoom)

    def face_boxes(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop-start, P, 4] left, top, right, bottom of every head, in pixels; may reach out of the picture."""
        return self._boxes(start, stop, lambda person, pose, camera: self._painter.face_box(pose, camera))

    def mouth_boxes(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop-start, P, 4] room for every mouth wide open, in pixels."""
        return self._boxes(start, stop, lambda person, pose, camera: self._painter.mouth_box(person.look, pose, camera))

    def _boxes(self, start: int, stop: int | None, box_of: Callable[[Person, Pose, Camera], Box]) -> np.ndarray:
        stop = self.num_frames if stop is None else stop
        rows = [[box_of(p, p.pose(k), self.camera_at(k)) for p in self.people] for k in range(start, stop)]
        return np.asarray(rows, np.float32)

    @property
    def regions(self) -> np.ndarray:
        """[P, 4] the part of the picture that is each person's: equal columns from left to right, in pixels."""
        edges = np.linspace(0, self.width, len(self.people) + 1)
        return np.asarray(
            [(left, 0, right, self.height) for left, right in zip(edges, edges[1:], strict=False)], np.float32
        )


def _check(num_faces: int, motion: str | None, camera: str | None, tracks: list[np.ndarray] | None) -> None:
    if num_faces not in _PLACES:
        raise ConfigError(f"a synthetic clip has 1 to 3 faces, not {num_faces}")
    if motion not in (None, *HEAD_MOTIONS):
        raise ConfigError(f"motion must be one of {', '.join(HEAD_MOTIONS)}, got {motion!r}")
    if camera not in (None, *CAMERA_MOTIONS):
        raise ConfigError(f"camera must be one of {', '.join(CAMERA_MOTIONS)}, got {camera!r}")
    if tracks is not None and len(tracks) != num_faces:
        raise ConfigError(f"{num_faces} faces need as many tracks, got {len(tracks)}")


def _make_person(
    rng: np.random.Generator,
    track: np.ndarray,
    num_frames: int,
    place: float,
    size: float,
    motion: str | None,
    held_out: bool,
) -> Person:
    openings, widths = sound_shape(track, num_frames, FPS)
    return Person(
        look=random_look(rng, held_out=held_out),
        x=place + rng.uniform(-0.025, 0.025) * size,
        y=rng.uniform(-0.03, 0.01),
        size=size * rng.uniform(0.93, 1.02),
        motion=motion or HEAD_MOTIONS[rng.integers(len(HEAD_MOTIONS))],
        pace=rng.uniform(0.63, 0.645),
        reach=rng.uniform(0.95, 1.05),
        waveform=track,
        openings=openings,
        widths=widths,
        blinks=_blinks(num_frames, rng),
    )


def _blinks(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """[F] 0 or 1: two to three frames shut every few seconds."""
    shut = np.zeros(num_frames, np.float32)
    at = int(rng.uniform(0.5, 4) * FPS)
    while at < num_frames:
        shut[at : at + int(rng.integers(2, 4))] = 1
        at += int(rng.uniform(1.5, 5) * FPS)
    return shut


def describe(people: Sequence[tuple[Look, str]], backdrop: Backdrop, camera: str, rng: np.random.Generator) -> str:
    """A clip in words. Whatever it does is always said; how people look is said in part.

    Args:
        people: looks and head motions, left to right.
    """

    def pick(words: tuple[str, ...]) -> str:
        return words[rng.integers(len(words))]

    told = [f"{_describe_look(look, rng)} {pick(_HEAD_WORDS[motion])}" for look, motion in people]
    if len(told) > 1:
        sides = ("on the left", "on the right") if len(told) == 2 else ("on the left", "in the middle", "on the right")
        told = [f"{side} {text}" for side, text in zip(sides, told, strict=True)]
    if rng.random() < 0.4:
        told.append(f"{backdrop.name} background")
    return ", ".join([*told, pick(_CAMERA_WORDS[camera])])


def _describe_look(look: Look, rng: np.random.Generator) -> str:
    traits = [f"{look.hair_name} hair"] if rng.random() < 0.8 else [f"{look.style} hair"]
    if look.glasses:
        traits.append("glasses")
    if rng.random() < 0.4:
        traits.append(f"a {look.clothing_name} shirt")
    return f"a {look.person} with {' and '.join(traits)}"

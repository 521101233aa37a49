"""The speakers of a job, opened: where each is in the video, what each says in it, and what is heard of them.

Knows files of sound and masks, and the video's size; not clips, takes, or how a video is made.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .conditioning.audio import Encode, SilentFeatures, SoundFeatures, SoundSource, num_video_frames
from .conditioning.driving import Excerpt, exact
from .conditioning.speakers import (
    SpokenFeatures,
    Utterance,
    box_cells,
    drawn_region,
    frame_at,
    place_boxes,
    soft_mask,
)
from .config import FEATURE_WINDOW, SAMPLE_RATE
from .dub.faces import FoundFaces
from .errors import ConfigError
from .geometry import VideoSize
from .media.audio_io import Sound, open_sound
from .media.image_io import read_picture
from .media.mix import PlacedSound, mix_sounds
from .request import Request
from .speakers import Box, FaceNumber, Speaker, Turn, read_turns
from .types import AudioFeatures, ClipPlan, SpeakerTrack
from .who_speaks import turns_file

SAME_SHAPE = 0.02   # by which a mask's shape may differ from the picture's
AROUND_FACE = 0.25  # of a found face's width and height: so much farther reaches its region on each side


@dataclass(frozen=True, kw_only=True, slots=True)
class Voice:
    """A speaker's own sound on the video's clock."""

    speaker: Speaker
    sound: Sound
    start: Fraction      # seconds into the video
    duration: Fraction   # of what is heard of it


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """Somebody in a region: all that is said there is said by one person."""

    name: str
    called: tuple[str, ...]     # by whoever says whose the sound is when
    mask: Tensor                # [h, w]
    voices: tuple[Voice, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """Who speaks in a job; without people, everybody in the picture hears its sound."""

    people: tuple[Person, ...]
    heard: Path | None = None   # the file with all that is heard; None: whoever asks has it elsewhere
    found: Path | None = None   # the file of who speaks when that was found in the sound

    def features(
        self, track: AudioFeatures, encode: Encode, fps: float
    ) -> tuple[AudioFeatures, tuple[SpeakerTrack, ...]]:
        """What is heard outside everybody's region, and what each person says.

        Args:
            track: features of the job's sound, which turns share out.
            encode: sound to hidden states.
        """
        if not self.people:
            return track, ()
        silence = SilentFeatures(encode)
        tracks = []
        for person in self.people:
            said = [_utterance(voice, encode, fps) for voice in person.voices]
            said += [_turn(turn, track, fps) for turn in person.turns]
            tracks.append(SpeakerTrack(audio=SpokenFeatures(silence, said), mask=person.mask))
        return silence, tuple(tracks)

    def directed(self, plans: Sequence[ClipPlan], speakers: Sequence[str | None], fps: float) -> Cast:
        """The cast with what a storyboard says of each clip: whose the sound is ("anna", "anna+ben"); None: nobody's.

        Raises: ConfigError for a name that nobody has, and where two tell who speaks, or nobody does.
        """
        is_told = any(person.voices or person.turns for person in self.people)
        if not any(speakers):
            if self.people and not is_told:
                raise ConfigError(
                    f"nobody says when {self.people[0].name} speaks: tell it (who speaks), or in the storyboard, such "
                    "as 0:12 [speaker anna]"
                )
            return self
        if is_told:
            raise ConfigError(
                "the storyboard says who speaks, and the speakers' voices or turns do too: leave out one of the two"
            )
        names = [name for person in self.people for name in person.called]
        turns = list(_clip_turns(plans, speakers, fps))
        for turn in turns:
            if turn.speaker not in names:
                raise ConfigError(
                    f"the storyboard's speaker {turn.speaker!r} is nobody's name; the speakers are "
                    f"{', '.join(names) or 'none'}"
                )
        people = (replace(p, turns=tuple(turn for turn in turns if turn.speaker in p.called)) for p in self.people)
        return replace(self, people=tuple(people))

    def fingerprint(self) -> list[str]:
        """Changes when anybody's place does."""
        return [hashlib.sha256(person.mask.numpy().tobytes()).hexdigest() for person in self.people]

    def said_in(self, plan: ClipPlan, fps: float) -> list[object]:
        """Changes when anything does that somebody says in a clip."""
        return [
            {
                "voices": [_digest(voice, plan, fps) for voice in person.voices],
                "turns": [
                    [max(start, plan.start_frame), min(stop, plan.stop_frame)]
                    for start, stop in (_frames(turn, fps) for turn in person.turns)
                    if start < plan.stop_frame and stop > plan.start_frame
                ],
            }
            for person in self.people
        ]

    def remarks(self) -> tuple[str, ...]:
        """A line about each person, for the plan."""
        found = () if self.found is None else (f"who speaks when is in {self.found}: correct it there",)
        people = (f"{p.name}: {_said(p)}, in {float(100 * p.mask.mean()):.0f} % of the picture" for p in self.people)
        return (*found, *people)


@contextmanager
def open_cast(request: Request, picture: Image.Image, size: VideoSize) -> Iterator[Cast]:
    """The speakers of a request with their sounds open; several voices without a sound of the request's are mixed.

    Raises: MediaError about a sound or a mask; ConfigError about a region, or a file of turns.
    """
    with ExitStack() as stack:
        voices = [
            _voice(speaker, stack.enter_context(open_sound(speaker.audio)))
            for speaker in request.speakers
            if speaker.audio is not None
        ]
        names = [speaker.name or str(number) for number, speaker in enumerate(request.speakers, 1)]
        found = _found(request, names)
        turns = _turns(request, names, request.who_speaks or found)
        people = []
        for region in dict.fromkeys(speaker.region for speaker in request.speakers):
            called = [name for name, speaker in zip(names, request.speakers, strict=True) if speaker.region == region]
            people.append(
                Person(
                    name=f"speaker {', '.join(called)}",
                    called=tuple(called),
                    mask=_mask(region, picture, size),
                    voices=tuple(voice for voice in voices if voice.speaker.region == region),
                    turns=tuple(turn for turn in turns if turn.speaker in called),
                )
            )
        yield Cast(people=tuple(people), heard=request.audio or _heard(voices, stack), found=found)


def _found(request: Request, names: Sequence[str]) -> Path | None:
    """The file of who speaks when, where that is to be found in the sound."""
    if request.diarize is None:
        return None
    assert request.audio is not None
    return turns_file(request.audio, names, request.diarize, beside=request.output or Path("video.mp4"))


def _turns(request: Request, names: Sequence[str], said: Path | None) -> list[Turn]:
    """Turns on the video's clock, which may begin within the sound and be moved against it."""
    if said is None:
        return []
    return moved_turns(read_turns(said, names), request.audio_offset / 1000 - request.audio_start)


def moved_turns(turns: Sequence[Turn], later: float) -> list[Turn]:
    """The turns so many seconds later, without those that end before 0."""
    moved = [replace(turn, start=max(0.0, turn.start + later), end=turn.end + later) for turn in turns]
    return [turn for turn in moved if turn.end > 0]


def _clip_turns(plans: Sequence[ClipPlan], speakers: Sequence[str | None], fps: float) -> Iterator[Turn]:
    """A turn a speaker for clips in a row."""
    for said, clips in groupby(zip(plans, speakers, strict=True), key=lambda one: one[1]):
        here = [plan for plan, _ in clips]
        start, end = max(0, here[0].start_frame) / fps, here[-1].stop_frame / fps
        for name in filter(None, (name.strip() for name in (said or "").split("+"))):
            yield Turn(start=start, end=end, speaker=name)


def _voice(speaker: Speaker, sound: Sound) -> Voice:
    start = exact(speaker.start)
    duration = sound.duration if speaker.end is None else min(sound.duration, exact(speaker.end) - start)
    if duration < Fraction(FEATURE_WINDOW, SAMPLE_RATE):
        if speaker.end is None:
            raise ConfigError(f"{speaker.audio} lasts {float(duration):.3f} s: no voice is that short")
        raise ConfigError(f"of {speaker.audio} nothing is left between {speaker.start:g} s and {speaker.end:g} s")
    return Voice(speaker=speaker, sound=sound, start=start, duration=duration)


def _heard(voices: list[Voice], stack: ExitStack) -> Path:
    """One voice that is heard whole is its own file."""
    if len(voices) == 1 and not voices[0].start and voices[0].duration == voices[0].sound.duration:
        return voices[0].speaker.audio
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s2v-speakers-")))
    mix_sounds(
        [PlacedSound(path=voice.speaker.audio, start=voice.start, duration=voice.duration) for voice in voices],
        folder / "speakers.wav",
    )
    return folder / "speakers.wav"


def _mask(region: Box | Path | FaceNumber, picture: Image.Image, size: VideoSize) -> Tensor:
    drawn = read_picture(region, behind="black") if isinstance(region, Path) else region
    return region_mask(drawn, picture, size, name=_written(region))


def region_mask(region: Box | FaceNumber | Image.Image, picture: Image.Image, size: VideoSize, *, name: str) -> Tensor:
    """[h, w] of a region of the reference picture.

    Args:
        region: a box, a face that is found, or the region drawn white on a copy of the picture.
        name: of the region, for what errors say.

    Raises: ConfigError about a region that does not fit, or is not seen, and where OpenCV is missing that finds faces.
    """
    if isinstance(region, FaceNumber):
        region = _face_box(region, picture)
    if isinstance(region, Image.Image):
        if abs(region.width * picture.height / (region.height * picture.width) - 1) > SAME_SHAPE:
            raise ConfigError(
                f"the mask {name} is {region.width}x{region.height} and the picture {picture.width}x{picture.height}: "
                "draw it on a copy of the picture"
            )
        pixels = drawn_region(region, size)
    else:
        box = torch.from_numpy(place_boxes(_pixels(region, picture), picture.size, size))
        pixels = box_cells(box, width=size.width, height=size.height)
    mask = soft_mask(pixels)
    if not bool(mask.any()):
        raise ConfigError(f"the region {name} is nowhere in the video, which shows {size} of the picture")
    return mask


def _face_box(face: FaceNumber, picture: Image.Image) -> Box:
    """The region of a found face: its box and some room around it, in pixels of the picture."""
    found: list[Box] = []
    seen = FoundFaces().seen(0, 0.0, np.asarray(picture.convert("RGB")))
    for box in sorted((face.box for face in seen), key=lambda box: box[0] - box[2]):   # a face found twice counts once
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        if not any(b[0] < middle[0] < b[2] and b[1] < middle[1] < b[3] for b in found):
            found.append(box)
    if len(found) < face.number:
        raise ConfigError(
            f"{face} is asked for and {len(found) or 'no'} face{'' if len(found) == 1 else 's'} found in the picture, "
            "where photographed faces are found, not drawn ones; give the region as LEFT:TOP:RIGHT:BOTTOM or as a mask"
        )
    left, top, right, bottom = sorted(found, key=lambda box: box[0] + box[2])[face.number - 1]
    wide, high = AROUND_FACE * (right - left), AROUND_FACE * (bottom - top)
    return (
        max(0.0, left - wide),
        max(0.0, top - high),
        min(float(picture.width), right + wide),
        min(float(picture.height), bottom + high),
    )


def _pixels(box: Box, picture: Image.Image) -> list[float]:
    """A box in pixels of the picture; where no side is above 1, the sides are fractions of it."""
    if max(box) <= 1:
        return [side * whole for side, whole in zip(box, picture.size * 2, strict=True)]
    if box[2] > picture.width or box[3] > picture.height:
        raise ConfigError(
            f"the region {_written(box)} reaches beyond the picture, which is {picture.width}x{picture.height} pixels"
        )
    return list(box)


def _written(region: Box | Path | FaceNumber) -> str:
    return str(region) if isinstance(region, Path | FaceNumber) else ":".join(f"{side:g}" for side in region)


def _utterance(voice: Voice, encode: Encode, fps: float) -> Utterance:
    """A voice that begins within a frame is moved by the rest of the frame, to the sample."""
    rate = Fraction(fps).limit_denominator(1_000_000)
    first = math.floor(voice.start * rate)
    rest = voice.start - first / rate
    sound: SoundSource = voice.sound
    if rest or voice.duration != voice.sound.duration:
        sound = Excerpt(voice.sound, start=-rest, duration=rest + voice.duration)
    return Utterance(
        audio=SoundFeatures(sound, encode, fps=fps),
        first_frame=first,
        start_frame=first,
        stop_frame=first + num_video_frames(sound, fps),
    )


def _turn(turn: Turn, track: AudioFeatures, fps: float) -> Utterance:
    start, stop = _frames(turn, fps)
    return Utterance(audio=track, first_frame=0, start_frame=start, stop_frame=stop)


def _frames(turn: Turn, fps: float) -> tuple[int, int]:
    return frame_at(turn.start, fps), frame_at(turn.end, fps)


def _digest(voice: Voice, plan: ClipPlan, fps: float) -> str:
    """Of the samples that are heard of a voice in a clip; of none, nothing."""
    start, stop = (frame / fps - float(voice.start) for frame in (plan.start_frame, plan.stop_frame))
    end = min(voice.sound.num_samples, round(voice.duration * SAMPLE_RATE))
    first, last = (min(max(round(seconds * SAMPLE_RATE), 0), end) for seconds in (start, stop))
    return hashlib.sha256(voice.sound.read(first, last).tobytes()).hexdigest() if first < last else ""


def _said(person: Person) -> str:
    spans = [(float(v.start), float(v.start + v.duration), v.speaker.audio.name) for v in person.voices]
    spans += [(turn.start, turn.end, "") for turn in person.turns]
    if not spans:
        return "says nothing"
    shown = ", ".join(f"{name} {start:.2f} to {end:.2f} s".strip() for start, end, name in spans[:3])
    return shown + (f" and {len(spans) - 3} more" if len(spans) > 3 else "")

"""What a dubbing run will do: which frames are drawn, in which clips, and which stay as they are, and why.

Knows the footage, the sound's length and the face's track; no models and no pixels.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import ConfigError, MediaError
from ..geometry import VideoSize
from ..media.video_io import read_timed_frames
from ..running.plan import RunPlan, unguided
from ..times import duration
from ..types import ClipPlan
from ..video.take import file_digest
from ..video.timeline import plan_clips
from .crop import crop_boxes
from .faces import Face, Faces
from .masks import Region
from .request import DubRequest
from .shot import Changes, Shot, describe_shot
from .stretch import Editor, Stretch, num_drawn
from .timeline import Timeline, make_timeline
from .tracking import Track, follow, runs

log = logging.getLogger(__name__)

TOLD_EVERY = 10.0     # seconds: how often it is said how much of the footage was looked through
MOST_DRAWN = 30.5     # frames a second that the model draws, at most, when nobody says how many
OUTSIDE = "outside the times that were asked for"


@dataclass(frozen=True, kw_only=True, slots=True)
class Untouched:
    """Frames of the result that are the footage's own."""

    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        last = f"-{self.last}" if self.last > self.first else ""
        return f"{self.first}{last} ({self.reason})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What there is to do, as far as it follows from the request, the footage and the sound's length."""

    request: DubRequest
    shot: Shot
    editor: Editor
    stretches: tuple[Stretch, ...]
    untouched: tuple[Untouched, ...]

    @property
    def timeline(self) -> Timeline:
        return self.editor.timeline

    @property
    def clips(self) -> tuple[ClipPlan, ...]:
        return tuple(plan for stretch in self.stretches for plan in stretch.plans)

    def made_from(self) -> list[dict[str, object]]:
        """What each clip is made from, beyond what all of them are."""
        return [{"stretch": part.first, "plan": asdict(plan)} for part in self.stretches for plan in part.plans]

    def fingerprint(self) -> dict[str, object]:
        """All that changes a pixel but the sound, the models and how they sample."""
        request, timeline = self.request, self.timeline
        return {
            "video": file_digest(request.video),
            "mask": None if request.mask is None else file_digest(request.mask),
            "mask_padding": request.mask_padding,
            "faces": _digest([(stretch.first, stretch.faces) for stretch in self.stretches]),
            "frames": _digest((timeline.numbers, timeline.times)),
            "draw_every": self.stretches[0].draw_every,
            "strength": request.strength,
            "size": str(self.editor.size),
            "clip": asdict(request.clip_settings()),
            "seed": request.seed,
            "continuity": request.continuity,
        }

    def __str__(self) -> str:
        shot, timeline = self.shot, self.timeline
        told = "a varying frame rate" if timeline.rate is None else f"{float(timeline.rate):.5g} fps"
        lines = [
            f"video   {shot.width}x{shot.height}, {timeline.num_frames} frames at {told}, {timeline.times[-1]:.2f} s",
            f"length  {timeline.remark}",
            f"face    drawn at {self.editor.size}{_how_often(self.stretches[0].draw_every)}",
            *(f"as is   frames {untouched}" for untouched in self.untouched),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class DubPlan(RunPlan):
    """What a run will do, known before any weight is read."""

    work: Work

    def __str__(self) -> str:
        notes = (f"note    {remark}" for remark in unguided(self.work.request, self.settings))
        return "\n".join([str(self.work), *self.lines(len(self.work.clips)), *notes])


def find_work(
    request: DubRequest,
    faces: Faces,
    region: Region,
    size: VideoSize,
    sound_seconds: float,
    *,
    on_frame: Callable[[float], None] = lambda seconds: None,
) -> Work:
    """Look through the footage once, and plan.

    Args:
        faces, region: who says where faces are, and what is made anew of them.
        size: at which the model draws.
        on_frame: told the time of each frame that was looked at, seconds since the first; whatever it raises ends this.

    Raises: MediaError for footage that cannot be read, or without a face to dub; ConfigError for a mask that is padded
        away.
    """
    shot, seen = _look_through(request, faces, on_frame)
    track = follow(seen, shot.cuts, step=shot.step, is_given=faces.is_given, which=request.face)
    timeline = make_timeline(shot, sound_seconds, request.length)
    reasons = _reasons_to_leave(request, timeline, track)
    stretches = _find_stretches(request, shot, timeline, track, reasons, size)
    if not stretches:
        raise MediaError(_nothing_to_do(request, set(reasons)))
    editor = Editor(timeline=timeline, region=region, size=size, mask_padding=request.mask_padding)
    if request.mask_padding < 0 and not any(editor.alpha(stretch, 0)[0].any() for stretch in stretches):
        raise ConfigError(f"a mask padding of {request.mask_padding:g} leaves nothing of the mask: shrink it less")
    return Work(
        request=request,
        shot=shot,
        editor=editor,
        stretches=stretches,
        untouched=_untouched_frames(reasons),
    )


def _how_often(draw_every: int) -> str:
    if draw_every == 1:
        return ""
    return f", one frame of {draw_every}; those between are blended"


def _look_through(
    request: DubRequest, faces: Faces, on_frame: Callable[[float], None]
) -> tuple[Shot, list[Sequence[Face]]]:
    """Every frame of the footage once: when it shows, what is on it."""
    times, changes, seen = [], [], []
    change, size, told = Changes(), (0, 0), time.monotonic()
    for number, frame in enumerate(read_timed_frames(request.video)):
        picture = frame.picture()
        size = size if number else (picture.shape[1], picture.shape[0])
        if (picture.shape[1], picture.shape[0]) != size:
            raise MediaError(f"{request.video} changes its size at frame {number}; cut it there, or convert it first")
        times.append(frame.seconds)
        changes.append(change.of(picture))
        seen.append(faces.seen(number, frame.seconds, picture) if _is_asked_for(request, frame.seconds) else ())
        on_frame(frame.seconds)
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            log.info("%s: looked for faces in its first %s", request.video, duration(frame.seconds))
    return describe_shot(request.video, times, changes, size), seen


def _is_asked_for(request: DubRequest, seconds: float) -> bool:
    return request.start <= seconds and (request.end is None or seconds < request.end)


def _reasons_to_leave(request: DubRequest, timeline: Timeline, track: Track) -> list[str]:
    """Why each frame of the result stays as it is; "" for those that are drawn."""
    return [
        track.reasons[number] if _is_asked_for(request, timeline.times[number]) else OUTSIDE
        for number in timeline.numbers
    ]


def _untouched_frames(reasons: Sequence[str]) -> tuple[Untouched, ...]:
    found = [
        Untouched(first=first, last=stop - 1, reason=reason)
        for reason in sorted({reason for reason in reasons if reason})
        for first, stop in runs([other == reason for other in reasons])
    ]
    return tuple(sorted(found, key=lambda untouched: untouched.first))


def _nothing_to_do(request: DubRequest, reasons: set[str]) -> str:
    if reasons == {OUTSIDE}:
        return f"{request.video} has no frame between {request.start:g} s and the end that was asked for"
    if isinstance(request.face_box, Path):
        return f"{request.face_box} has no box for any frame of {request.video} to dub; frames are counted from 0"
    told = " or ".join(sorted(reasons - {OUTSIDE}))
    remedy = "give --face-box, or a --mask that is white where the mouth is"
    which = "" if request.face is None else f" number {request.face}"
    return f"{request.video}: no face{which} to dub in any frame ({told}); {remedy}"


def _find_stretches(
    request: DubRequest, shot: Shot, timeline: Timeline, track: Track, reasons: Sequence[str], size: VideoSize
) -> tuple[Stretch, ...]:
    """What is drawn, with the clips of every stretch numbered through."""
    draw_every = request.draw_every or max(1, int(np.ceil(1 / shot.step / MOST_DRAWN)))
    settings = request.clip_settings()
    stretches: list[Stretch] = []
    num_clips = 0
    for first, stop in _unbroken(timeline, shot, reasons):
        faces = tuple(track.boxes[number] for number in timeline.numbers[first:stop])
        drawn = num_drawn(stop - first, draw_every)
        plans = plan_clips(drawn, settings, seed=request.seed + num_clips, start_from_image=False)
        stretches.append(
            Stretch(
                first=first,
                faces=faces,
                crops=crop_boxes(faces, shot.width, shot.height, size, shot.step),
                draw_every=draw_every,
                plans=tuple(replace(plan, index=num_clips + plan.index) for plan in plans),
            )
        )
        num_clips += len(plans)
    return tuple(stretches)


def _unbroken(timeline: Timeline, shot: Shot, reasons: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of frames to be drawn, within one scene each."""
    for first, stop in runs([not reason for reason in reasons]):
        edges = [k for k in range(first + 1, stop) if timeline.numbers[k] in shot.cuts
                 and timeline.numbers[k - 1] == timeline.numbers[k] - 1]  # fmt: skip
        yield from zip([first, *edges], [*edges, stop], strict=True)


def segment_range(work: Work, stretch: Stretch, clip: ClipPlan) -> tuple[int, int, int]:
    """First frame of a clip's segment, first frame that the clip drew, and one past the segment's last frame."""
    begin = stretch.first + clip.first_kept * stretch.draw_every
    start = begin
    if clip is stretch.plans[0]:
        before = [other for other in work.stretches if other.first < stretch.first]
        start = before[-1].stop if before else 0
    stop = min(stretch.stop, begin + clip.num_kept * stretch.draw_every)
    return start, begin, work.timeline.num_frames if clip is work.clips[-1] else stop


def _digest(numbers: object) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()

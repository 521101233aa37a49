"""What a dubbing run will do: which frames are drawn, in which clips, and which stay as they are, and why.

Knows the footage, the sound's length and the face's track; no models and no pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import MediaError
from ..geometry import VideoSize
from ..media.video_io import read_timed_frames
from ..placement import MemoryEstimate
from ..types import ClipPlan, SamplerSettings
from ..video.timeline import plan_clips
from .crop import crop_boxes
from .faces import Face, Faces
from .request import DubRequest
from .shot import Shot, describe_shot, thumbnail
from .stretch import Stretch, num_drawn
from .timeline import Timeline
from .tracking import Track, runs

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
class DubPlan:
    """What a run will do, known before any weight is read."""

    width: int
    height: int
    timeline: Timeline
    size: VideoSize                  # at which the face is drawn
    stretches: tuple[Stretch, ...]
    untouched: tuple[Untouched, ...]
    settings: SamplerSettings
    take: Path
    finished_clips: int
    estimate: MemoryEstimate

    @property
    def clips(self) -> tuple[ClipPlan, ...]:
        return tuple(plan for stretch in self.stretches for plan in stretch.plans)

    @property
    def num_frames(self) -> int:
        return self.timeline.num_frames

    @property
    def seconds(self) -> float:
        return self.timeline.times[-1]

    def __str__(self) -> str:
        s, rate = self.settings, self.timeline.rate
        told = "a varying frame rate" if rate is None else f"{float(rate):.5g} fps"
        done = f", {self.finished_clips} already finished in {self.take}" if self.finished_clips else ""
        lines = [
            f"video   {self.width}x{self.height}, {self.num_frames} frames at {told}, {self.seconds:.2f} s",
            f"length  {self.timeline.remark}",
            f"face    drawn at {self.size}{_how_often(self.stretches[0].draw_every)}",
            f"clips   {len(self.clips)}{done}",
            f"steps   {s.steps} of {s.solver}, shift {s.shift:g}, guidance {s.guidance_scale:g}",
            f"memory  {self.estimate}",
            *(f"as is   frames {untouched}" for untouched in self.untouched),
        ]
        return "\n".join(lines)


def _how_often(draw_every: int) -> str:
    if draw_every == 1:
        return ""
    return f", one frame of {draw_every}; those between are blended"


def look_through(request: DubRequest, faces: Faces) -> tuple[Shot, list[Sequence[Face]]]:
    """Every frame of the footage once: when it shows, what is on it."""
    times, thumbnails, seen = [], [], []
    size = (0, 0)
    for number, frame in enumerate(read_timed_frames(request.video)):
        picture = frame.picture()
        size = size if number else (picture.shape[1], picture.shape[0])
        if (picture.shape[1], picture.shape[0]) != size:
            raise MediaError(f"{request.video} changes its size at frame {number}; cut it there, or convert it first")
        times.append(frame.seconds)
        thumbnails.append(thumbnail(picture))
        seen.append(faces.seen(number, frame.seconds, picture) if _is_asked_for(request, frame.seconds) else ())
    return describe_shot(request.video, times, thumbnails, size), seen


def _is_asked_for(request: DubRequest, seconds: float) -> bool:
    return request.start <= seconds and (request.end is None or seconds < request.end)


def reasons_to_leave(request: DubRequest, timeline: Timeline, track: Track) -> list[str]:
    """Why each frame of the result stays as it is; "" for those that are drawn."""
    return [
        track.reasons[number] if _is_asked_for(request, timeline.times[number]) else OUTSIDE
        for number in timeline.numbers
    ]


def untouched_frames(reasons: Sequence[str]) -> tuple[Untouched, ...]:
    found = [
        Untouched(first=first, last=stop - 1, reason=reason)
        for reason in sorted({reason for reason in reasons if reason})
        for first, stop in runs([other == reason for other in reasons])
    ]
    return tuple(sorted(found, key=lambda untouched: untouched.first))


def nothing_to_do(request: DubRequest, reasons: set[str]) -> str:
    if reasons == {OUTSIDE}:
        return f"{request.video} has no frame between {request.start:g} s and the end that was asked for"
    told = " or ".join(sorted(reasons - {OUTSIDE}))
    remedy = "give --face-box, or a --mask that is white where the mouth is"
    which = "" if request.face is None else f" number {request.face}"
    return f"{request.video}: no face{which} to dub in any frame ({told}); {remedy}"


def find_stretches(
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


def made_from(stretches: Sequence[Stretch]) -> list[dict[str, object]]:
    """What each clip is made from, beyond what all of them are."""
    return [{"stretch": stretch.first, "plan": asdict(plan)} for stretch in stretches for plan in stretch.plans]


def segment_range(plan: DubPlan, stretch: Stretch, clip: ClipPlan) -> tuple[int, int, int]:
    """First frame of a clip's segment, first frame that the clip drew, and one past the segment's last frame."""
    begin = stretch.first + clip.first_kept * stretch.draw_every
    start = begin
    if clip is stretch.plans[0]:
        before = [other for other in plan.stretches if other.first < stretch.first]
        start = before[-1].stop if before else 0
    stop = min(stretch.stop, begin + clip.num_kept * stretch.draw_every)
    return start, begin, plan.num_frames if clip is plan.clips[-1] else stop

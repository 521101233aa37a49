"""Which frame of the footage shows when, for sound that is longer or shorter than the footage.

Knows numbers and times; no pictures and no sounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from .shot import Shot

LOOP_SECONDS = 1.0   # of the footage's end that go back and forth under "loop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The frames of the result."""

    numbers: tuple[int, ...]    # the frame of the shot that each shows
    times: tuple[float, ...]    # seconds when each shows, and when the last one is over: one more than frames
    rate: Fraction | None       # frames a second; None: they do not come evenly
    step: float                 # seconds a frame, as a rule
    remark: str                 # what was done about the length, for people

    @property
    def num_frames(self) -> int:
        return len(self.numbers)

    def seconds_at(self, frame: int) -> float:
        """When a frame shows; before the first and past the last, as if they went on."""
        if frame < 0:
            return self.times[0] + frame * self.step
        past = frame - self.num_frames
        return self.times[frame] if past <= 0 else self.times[-1] + past * self.step


def make_timeline(shot: Shot, sound_seconds: float, length: str) -> Timeline:
    """The frames of the result by one of `request.LENGTHS`.

    "trim" ends with the shorter of the two. "hold" and "loop" end with the longer: when the sound goes on after the
    footage, the last frame stands still, or the last second goes back and forth.
    """
    def frames(numbers: list[int], remark: str) -> Timeline:
        return Timeline(
            numbers=tuple(numbers), times=_times(shot, len(numbers)), rate=shot.rate, step=shot.step, remark=remark
        )

    whole = list(range(len(shot.times)))
    both = f"the sound lasts {sound_seconds:.2f} s, the footage {shot.end:.2f} s"
    if abs(sound_seconds - shot.end) <= shot.step:
        return frames(whole, f"{both}: as long as each other")
    if sound_seconds > shot.end:
        if length == "trim":
            return frames(whole, f"{both}: the sound is cut at the footage's end")
        missing = _frames_missing(shot, sound_seconds)
        rest = f"for {missing * shot.step:.2f} s ({missing} frames)"
        if length == "hold":
            return frames(whole + [whole[-1]] * missing, f"{both}: the last frame is held {rest}")
        return frames(whole + _back_and_forth(shot, missing), f"{both}: the last movement goes back and forth {rest}")
    if length == "trim":
        kept = sum(seconds < sound_seconds for seconds in shot.times)
        return frames(whole[:kept], f"{both}: the footage is cut at the sound's end, after {kept} frames")
    return frames(whole, f"{both}: the footage goes on without sound, the mouth at rest")


def _frames_missing(shot: Shot, seconds: float) -> int:
    missing = 0
    while shot.end + missing * shot.step < seconds - 1e-6:
        missing += 1
    return missing


def _times(shot: Shot, num_frames: int) -> tuple[float, ...]:
    if shot.rate:
        return tuple(float(k / shot.rate) for k in range(num_frames + 1))
    known = [*shot.times, shot.end]
    return tuple(known[: num_frames + 1]) + tuple(
        shot.end + (k + 1) * shot.step for k in range(num_frames + 1 - len(known))
    )


def _back_and_forth(shot: Shot, count: int) -> list[int]:
    """Numbers of `count` frames: back through the last second (of the last scene), forward again, and so on."""
    last = len(shot.times) - 1
    first = max([0, *shot.cuts, next(k for k in range(last + 1) if shot.times[last] - shot.times[k] <= LOOP_SECONDS)])
    span = last - first
    if not span:
        return [last] * count
    phases = [(k + 1) % (2 * span) for k in range(count)]
    return [last - (phase if phase <= span else 2 * span - phase) for phase in phases]

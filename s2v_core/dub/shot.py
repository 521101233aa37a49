"""Footage as it is: when each frame shows, where scenes change, and any frame's picture by its number.

Knows files; nothing of faces, sounds or models.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MediaError
from ..media.video_io import AS_DRAWN, PixelTags, TimedFrame, probe_video, read_tags, read_timed_frames

log = logging.getLogger(__name__)

# Rates that footage is made at, frames a second. What containers round by decides between close ones.
USUAL_RATES = tuple(Fraction(n, d) for n, d in (
    (16, 1), (24_000, 1001), (24, 1), (25, 1), (30_000, 1001), (30, 1), (48, 1), (50, 1), (60_000, 1001), (60, 1),
))  # fmt: skip
ROUNDED_BY = 1e-3    # seconds: the coarsest clock of a common container
THUMBNAIL = (32, 18)
CUT = 0.08           # mean change of a thumbnail, of full scale, from which a cut is possible
CUT_RATIO = 4.0      # and how much larger than the usual change around it
AROUND = 8           # frames on each side that the usual change is taken from


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A file of footage."""

    path: Path
    width: int
    height: int
    times: tuple[float, ...]   # seconds since the first frame, when each frame shows
    end: float                 # seconds: when the last one is over
    rate: Fraction | None      # frames a second; None: they do not come evenly
    cuts: frozenset[int]       # frames that open a new scene
    tags: PixelTags = AS_DRAWN

    @property
    def step(self) -> float:
        """Seconds from one frame to the next, as a rule."""
        if self.rate:
            return float(1 / self.rate)
        return float(np.median(np.diff([*self.times, self.end])))

    @property
    def usual_rate(self) -> float:
        """Frames a second; of frames that do not come evenly, as a rule."""
        return 1 / self.step


def describe_shot(path: Path, times: Sequence[float], changes: Sequence[float], size: tuple[int, int]) -> Shot:
    """A shot from what was seen of every frame.

    Args:
        times: seconds since the first frame.
        changes: of each frame's thumbnail, as `Changes` measures them.
        size: width and height of the upright pictures.

    Raises: MediaError for frames out of order.
    """
    gaps = np.diff(times)
    if len(gaps) and gaps.min() <= 0:
        at = int(gaps.argmin()) + 1
        raise MediaError(f"{path}: frame {at} does not come after the one before it; convert the file to mp4")
    end = max(probe_video(path).duration, times[-1] + (float(np.median(gaps)) / 2 if len(gaps) else 0.0))
    rate = constant_rate(times, end)
    if rate:
        end = float(len(times) / rate)
    tags = read_tags(path)
    if tags.is_hdr:
        log.warning("%s is HDR footage: the result is HDR too, of 8 bits a channel; smooth skies may show steps", path)
    return Shot(
        path=path, width=size[0], height=size[1], times=tuple(times), end=end, rate=rate, cuts=find_cuts(changes),
        tags=tags,
    )  # fmt: skip


def constant_rate(times: Sequence[float], end: float) -> Fraction | None:
    """The rate at which frames come evenly, up to the rounding of containers; None where there is none."""
    exact = np.asarray(times)

    def error(rate: Fraction) -> float:
        return float(np.abs(exact - np.arange(len(exact)) / float(rate)).max())

    mean = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else len(times) / end
    usual = min(USUAL_RATES, key=lambda rate: (error(rate), abs(rate - mean)))
    own = Fraction(mean).limit_denominator(1001)
    return next((rate for rate in (usual, own) if error(rate) <= ROUNDED_BY), None)


class Changes:
    """How much each picture differs from the one before it."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None   # [18, 32] brightness, 0 to 255

    def of(self, picture: np.ndarray) -> float:
        """Mean difference of the brightness of a picture [H, W, 3] uint8, 0 to 1; 0 for the first."""
        small = Image.fromarray(picture).convert("L").resize(THUMBNAIL, Image.Resampling.BOX)
        seen, self._last = self._last, np.asarray(small, np.float32)
        return 0.0 if seen is None else float(np.abs(self._last - seen).mean() / 255)


def find_cuts(changes: Sequence[float]) -> frozenset[int]:
    """Frames whose picture has little to do with the one before, measured by the usual change around them."""
    changes = np.asarray(changes)
    cuts = []
    for k in np.flatnonzero(changes > CUT):
        around = np.delete(changes[max(1, k - AROUND) : k + AROUND + 1], k - max(1, k - AROUND))
        if changes[k] > CUT_RATIO * (np.median(around) if len(around) else 0.0):
            cuts.append(int(k))
    return frozenset(cuts)


class FrameReader:
    """Pictures by number. Reading forward is cheap; the last `keep` frames can be asked for again."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path, self._keep = path, keep
        self._frames = read_timed_frames(path)
        self._kept: deque[TimedFrame] = deque(maxlen=keep)
        self._next = 0                                           # number of the frame that is read next
        self._shown: tuple[int, np.ndarray] | None = None        # the last picture that was made

    def picture(self, number: int) -> np.ndarray:
        """[H, W, 3] uint8, upright; not to be written to.

        Raises: MediaError when the file is no longer what it was.
        """
        if self._shown is None or self._shown[0] != number:
            self._shown = (number, self._frame(number).picture())
        return self._shown[1]

    def _frame(self, number: int) -> TimedFrame:
        if number < self._next - len(self._kept):
            self._frames, self._next = read_timed_frames(self._path), 0
            self._kept.clear()
        while self._next <= number:
            frame = next(self._frames, None)
            if frame is None:
                raise MediaError(f"{self._path} has changed: frame {number} is no longer there; run again")
            self._kept.append(frame)
            self._next += 1
        return self._kept[number - self._next]

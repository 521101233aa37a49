"""A pose video on the video's clock: frame k shows the pose at k/fps, over the whole length.

Knows frames with times, handed to it by a reader; not where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ConfigError
from ..geometry import VideoSize
from .image import fit_picture

CLOCK_STEP = 1e-3   # seconds: containers round times to it, so a frame may be due this much early


class TimedFrame(Protocol):
    """A frame of the source and when it appears."""

    @property
    def seconds(self) -> float:
        """Since the source's first frame."""
        ...

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8; asked for only where the frame is shown."""
        ...


class PoseVideo:
    """Pose frames by timestamp: at k/fps the last source frame that has appeared, as a player would show it.

    Any source rate, also a varying one. Before 0 (warm-up) it shows its first frame; past its end, black (-1), as the
    reference does. It is read forward as windows are asked for; an earlier window makes it start over. Pictures are
    scaled and cropped like the reference picture, so that both stay aligned.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[TimedFrame]],
        *,
        duration: float,
        size: VideoSize,
        fps: float,
        start: float = 0.0,
    ) -> None:
        """`read` starts the source from its beginning; `duration` is its length in seconds; `fps` is the video's.

        The source's first `start` seconds are left out, of which `duration` is told as shortened.

        Raises: ConfigError where nothing else is left.
        """
        if start >= duration:
            raise ConfigError(
                f"the pose video lasts {duration:.2f} s: leaving out {start:g} s leaves nothing of it"
            )
        self.duration = duration - start
        self._start = start
        self._read, self._size, self._fps = read, size, fps
        self._rewind()

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        """[1, 3, stop-start, H, W] float32 in [-1, 1] on the CPU."""
        window = torch.full((1, 3, stop_frame - start_frame, self._size.height, self._size.width), -1.0)
        for index, frame in enumerate(range(start_frame, stop_frame)):
            seconds = max(frame, 0) / self._fps
            if frame <= 0 or seconds < self.duration - CLOCK_STEP:
                window[:, :, index : index + 1] = self._shown_at(self._start + seconds)
        return window

    def ends_early(self, seconds: float) -> tuple[str, ...]:
        """A remark where a video of so many seconds outlasts the poses: its last frame shows none."""
        if seconds - 1 / self._fps < self.duration - CLOCK_STEP:
            return ()
        return (f"the pose video lasts {self.duration:.2f} s of {seconds:.2f} s: the rest moves freely",)

    def _shown_at(self, seconds: float) -> Tensor:
        if seconds + CLOCK_STEP < self._current.seconds:
            self._rewind()
        while self._next is not None and self._next.seconds <= seconds + CLOCK_STEP:
            self._current, self._next, self._fitted = self._next, next(self._frames, None), None
        if self._fitted is None:
            self._fitted = fit_picture(Image.fromarray(self._current.picture()), self._size)
        return self._fitted

    def _rewind(self) -> None:
        self._frames = self._read()
        self._current = next(self._frames)
        self._next = next(self._frames, None)
        self._fitted: Tensor | None = None

"""How far a video has come, on a terminal: one line with clips, steps and the time left.

Knows clips, steps and a clock; not what happens in them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from .times import duration

BAR_WIDTH = 20


class Progress:
    """Follows one video. On a terminal one line that is redrawn; elsewhere a plain line per clip.

    Time left counts the steps still to do, at the pace of the steps done, and for every clip still to
    finish what it took so far to finish one (decoding, writing).
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.clock = clock
        self.is_terminal = stream.isatty()
        self.index = self.total = 0
        self.steps_left = self.clips_left = 0   # of the whole video, the clip at hand included
        self.last = 0.0                         # when the last step or clip ended
        self.step_seconds: list[float] = []
        self.finish_seconds: list[float] = []

    def clip_started(self, index: int, total: int, steps: int) -> None:
        """Clip `index` of `total` begins its `steps` steps; clips of an earlier run are not reported."""
        if not self.total:
            self.last = self.clock()
        self.index, self.total, self.clips_left = index, total, total - index
        self._stands_at(0, steps)

    def step(self, index: int, step: int, steps: int) -> None:
        """`step` of `steps` steps are done."""
        self.step_seconds.append(self._lap())
        self._stands_at(step, steps)

    def clip_finished(self, index: int, total: int) -> None:
        """The clip is decoded and on disk; the next one may have been started before."""
        self.finish_seconds.append(self._lap())
        self.clips_left = total - index - 1
        if not self.is_terminal:
            left = f", {duration(self.seconds_left())} left" if self.clips_left else ""
            self.stream.write(f"clip {index + 1} of {total} done{left}\n")
            self.stream.flush()

    def finished(self, path: Path) -> None:
        """The video is written: the line is wiped."""
        self.close()

    def close(self) -> None:
        """Wipe the line, so that whatever is printed next stands alone."""
        if self.is_terminal and self.total:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def seconds_left(self) -> float:
        """Of the whole video; 0 before the first step."""
        return self.steps_left * _mean(self.step_seconds) + self.clips_left * _mean(self.finish_seconds)

    def _lap(self) -> float:
        now = self.clock()
        seconds, self.last = now - self.last, now
        return seconds

    def _stands_at(self, step: int, steps: int) -> None:
        self.steps_left = self.clips_left * steps - step
        if not self.is_terminal:
            return
        filled = BAR_WIDTH * step // steps
        bar = "#" * filled + "-" * (BAR_WIDTH - filled)
        doing = f"step {step}/{steps}" if step < steps else "decoding"
        left = f"  {duration(self.seconds_left())} left" if self.step_seconds else ""
        line = f"clip {self.index + 1}/{self.total}  [{bar}]  {doing}{left}"
        self.stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        self.stream.flush()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

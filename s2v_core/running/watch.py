"""Who watches a run: what they are told of its plan, clips and steps.

Knows when something happens; not what is shown of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..types import ClipPlan, DecodedClip


class Progress(Protocol):
    """Who is told what a run will do, and how far it is."""

    def planned(self, plan: object) -> None: ...
    def clip_started(self, index: int, total: int, steps: int) -> None: ...
    def step(self, index: int, step: int, steps: int) -> None: ...
    def clip_finished(self, index: int, total: int) -> None: ...
    def finished(self, path: Path) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def planned(self, plan: object) -> None:
        pass

    def clip_started(self, index: int, total: int, steps: int) -> None:
        pass

    def step(self, index: int, step: int, steps: int) -> None:
        pass

    def clip_finished(self, index: int, total: int) -> None:
        pass

    def finished(self, path: Path) -> None:
        pass


class Told:
    """A take's watch that tells a run's progress."""

    def __init__(self, progress: Progress, *, clips: int, steps: int) -> None:
        self.progress = progress
        self.total, self.steps = clips, steps
        self.index = 0

    def clip_started(self, plan: ClipPlan) -> None:
        self.index = plan.index
        self.progress.clip_started(self.index, self.total, self.steps)

    def step(self, done: int, total: int) -> None:
        self.progress.step(self.index, done, total)

    def clip_finished(self, clip: DecodedClip) -> None:
        self.progress.clip_finished(clip.plan.index, self.total)

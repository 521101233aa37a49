"""A pipeline's outside for tests of the command: it records what it is asked and fails on demand.

Knows the pipeline's contract; makes no video.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from s2v_core.request import Request


@dataclass(frozen=True)
class Plan:
    take: Path
    fps: float
    num_frames: int = 84

    def __str__(self) -> str:
        return f"{self.num_frames} frames in 2 clips"


@dataclass(frozen=True)
class Result:
    path: Path
    num_frames: int
    seconds: float


@dataclass
class Pipeline:
    plan_errors: dict[str, Exception] = field(default_factory=dict)   # by output name
    run_errors: dict[str, BaseException] = field(default_factory=dict)
    planned: list[Request] = field(default_factory=list)
    made: list[Request] = field(default_factory=list)
    loads: list[tuple] = field(default_factory=list)

    def load(self, options, *, load_weights):
        self.loads.append((options, load_weights))
        return self

    def plan(self, request):
        self.planned.append(request)
        if request.output.name in self.plan_errors:
            raise self.plan_errors[request.output.name]
        return Plan(take=request.take or request.output.with_suffix(".take"), fps=request.fps)

    def run(self, request, progress):
        progress.planned(self.plan(request))
        progress.clip_started(0, 2, 1)
        progress.step(0, 1, 1)
        if request.output.name in self.run_errors:
            raise self.run_errors[request.output.name]
        progress.clip_finished(0, 2)
        self.made.append(request)
        return Result(path=request.output, num_frames=84, seconds=84 / request.fps)

"""A video of many clips: does a clip cost the same late as early, in time and in memory?

    python tests/benchmarks/long.py --repeats 3         # 20 clips of the bundled model at 64x64, one step each
    python tests/benchmarks/long.py --clips 1 --steps 4 --size 832x480 --model Wan2.2-S2V-14B --device cuda

Seconds are CPU seconds on a CPU, wall time on a GPU. A clip lasts from the last step of the one before to its own last
step; the first two, of which one has no past and one follows it, are told apart. On a machine that others use too, the
same work takes more seconds at some times than at others: a clip counts as it went in the quickest of the repeats.
"Drift" is the median slope through all pairs of clips, over the whole video, in shares of a clip's median; beside it
the spread of the clips around that. Growth is the slope of a line through the process's own memory after each clip of
the first video. Every clip's seconds are in the JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from load import memory
from memory import write_sound
from PIL import Image

from s2v_core import WanS2VPipeline
from s2v_core.geometry import VideoSize
from s2v_core.request import Request
from s2v_core.running.plan import JobPlan

CLIP_SECONDS = 5.0   # 80 frames at 16 a second


class Stopwatch:
    """Progress that notes when things end: reading and conditioning, a clip's last step, a clip."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.marks: list[tuple[str, float]] = [("start", self.now())]
        self.own_memory: list[int] = []

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def _mark(self, name: str) -> None:
        self.marks.append((name, self.now()))

    def planned(self, plan: JobPlan) -> None:
        self._mark("planned")

    def clip_started(self, index: int, total: int, steps: int) -> None:
        self._mark("prepared")

    def step(self, index: int, step: int, steps: int) -> None:
        if step == steps:
            self._mark("denoised")

    def clip_finished(self, index: int, total: int) -> None:
        self._mark("finished")
        self.own_memory.append(memory()["own"])

    def finished(self, path: Path) -> None:
        self._mark("joined")

    def clips(self) -> list[float]:
        """Seconds of every clip, to its last step from that of the clip before: what decodes and stores a clip overlaps
        with the next one's beginning."""
        ends = [at for mark, at in self.marks if mark == "denoised"]
        starts = [self._at("prepared"), *ends]
        return [round(end - start, 3) for start, end in zip(starts, ends, strict=False)]

    def finishing(self) -> float:
        """Seconds to decode and store the last clip."""
        ends = [at for mark, at in self.marks if mark in ("denoised", "finished")]
        return round(ends[-1] - ends[-2], 3)

    def _at(self, name: str) -> float:
        return next(at for mark, at in self.marks if mark == name)

    def seconds(self, name: str) -> float:
        """Spent until the first mark of a name, since the one before."""
        at = [name for name, _ in self.marks].index(name)
        return round(self.marks[at][1] - self.marks[at - 1][1], 3)


def slope(values: list[float]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def drift(per_clip: list[float]) -> tuple[float, float]:
    """How much more the last clip takes than the first, by the median slope of all pairs (Theil and Sen), and the
    median distance of clips from that line; both in shares of the median clip."""
    middle, num = statistics.median(per_clip), len(per_clip)
    if num < 2:
        return 0.0, 0.0
    rise = statistics.median((per_clip[j] - per_clip[i]) / (j - i) for j in range(num) for i in range(j))
    line = [middle + rise * (i - (num - 1) / 2) for i in range(num)]
    spread = statistics.median(abs(found - expected) for found, expected in zip(per_clip, line, strict=True))
    return rise * (num - 1) / middle, spread / middle


def run(args: argparse.Namespace, folder: Path) -> Stopwatch:
    """One video, by a pipeline of its own."""
    width, height = (int(side) for side in args.size.split("x"))
    pipe, watch = WanS2VPipeline.from_pretrained(args.model, device_map=args.device), Stopwatch(args.device)
    request = Request(
        image=folder / "face.png",
        audio=folder / "sound.wav",
        output=folder / "out.mp4",
        size=VideoSize(width=width, height=height),
        steps=args.steps,
    )
    pipe.run(request, watch)
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--size", default="64x64", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--model", type=Path, help="default: the bundled one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1, help="videos; every clip counts as in the quickest of them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sound(folder / "sound.wav", args.clips * CLIP_SECONDS - 0.5)   # the first clip loses three frames
        Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8)).save(folder / "face.png")
        watches = [run(args, folder) for _ in range(args.repeats)]
    watch, every = watches[0], [watch.clips() for watch in watches]
    totals = [min(clips) for clips in zip(*every, strict=True)]
    later = totals[2:] or totals
    rise, spread = drift(later)
    result = {
        "clips": len(totals),
        "steps": args.steps,
        "size": args.size,
        "repeats": args.repeats,
        "seconds_planning": watch.seconds("planned"),
        "seconds_reading_and_conditioning": watch.seconds("prepared"),
        "seconds_to_the_first_clips_last_step": totals[0],
        "seconds_per_later_clip": round(statistics.median(later), 3),
        "seconds_finishing_the_last_clip": watch.finishing(),
        "drift": round(rise, 4),
        "spread": round(spread, 4),
        "own_memory_mb": round(watch.own_memory[-1] / 1e6, 1),
        "growth_mb_a_clip": round(slope([m / 1e6 for m in watch.own_memory[1:]]), 2),
        "seconds_joining": watch.seconds("joined"),
        "clock": "wall" if watch.on_gpu else "cpu",
        "torch": torch.__version__,
    }
    for key, value in result.items():
        print(f"{key:38} {value}")
    print(json.dumps(result | {"seconds_of_clips": every}))


if __name__ == "__main__":
    main()

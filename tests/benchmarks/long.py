"""A video of many clips: does a clip cost the same late as early, in time and in memory?

    python tests/benchmarks/long.py                     # 20 clips of the bundled model at 64x64, one step each
    python tests/benchmarks/long.py --clips 1 --steps 4 --size 832x480 --model Wan2.2-S2V-14B --device cuda

Seconds are CPU seconds on a CPU, wall time on a GPU. The first clip has no past and is told apart. "Drift" compares the
median of the last third of the clips to that of the first third; growth is the slope of a line through the process's
own memory after each clip. Every clip's stages are in the JSON line; with one clip, they are in the table too.
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
    """Progress that notes when each clip's stages end: reading and conditioning, denoising, decoding and storing."""

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
        self._mark("decoded")
        self.own_memory.append(memory()["own"])

    def finished(self, path: Path) -> None:
        self._mark("joined")

    def stages(self) -> list[dict[str, float]]:
        """Seconds of every clip: denoising and decoding."""
        clips, before = [], 0.0
        for name, at in self.marks:
            if name == "denoised":
                clips.append({"denoise": round(at - before, 3)})
            elif name == "decoded":
                clips[-1]["decode"] = round(at - before, 3)
            before = at
        return clips

    def seconds(self, name: str) -> float:
        """Spent until the first mark of a name, since the one before."""
        at = [name for name, _ in self.marks].index(name)
        return round(self.marks[at][1] - self.marks[at - 1][1], 3)


def slope(values: list[float]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def flatness(per_clip: list[float]) -> float:
    """The last third's median over the first third's, less 1."""
    third = max(1, len(per_clip) // 3)
    return statistics.median(per_clip[-third:]) / statistics.median(per_clip[:third]) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--size", default="64x64", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--model", type=Path, help="default: the bundled one")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sound(folder / "sound.wav", args.clips * CLIP_SECONDS - 0.5)   # the first clip loses three frames
        Image.fromarray(np.full((height, width, 3), 128, dtype=np.uint8)).save(folder / "face.png")
        pipe = WanS2VPipeline.from_pretrained(args.model, device_map=args.device)
        watch = Stopwatch(args.device)
        pipe.run(
            Request(
                image=folder / "face.png",
                audio=folder / "sound.wav",
                output=folder / "out.mp4",
                size=VideoSize(width=width, height=height),
                steps=args.steps,
            ),
            watch,
        )
    stages = watch.stages()
    totals = [clip["denoise"] + clip["decode"] for clip in stages]
    later = totals[1:] or totals
    result = {
        "clips": len(stages),
        "steps": args.steps,
        "size": args.size,
        "seconds_planning": watch.seconds("planned"),
        "seconds_reading_and_conditioning": watch.seconds("prepared"),
        "seconds_of_the_first_clip": round(totals[0], 3),
        "seconds_per_later_clip": round(statistics.median(later), 3),
        "drift": round(flatness(later), 4),
        "own_memory_mb": round(watch.own_memory[-1] / 1e6, 1),
        "growth_mb_a_clip": round(slope([m / 1e6 for m in watch.own_memory[1:]]), 2),
        "seconds_joining": watch.seconds("joined"),
        "clock": "wall" if watch.on_gpu else "cpu",
        "torch": torch.__version__,
    }
    for key, value in result.items():
        print(f"{key:34} {value}")
    if len(stages) == 1:
        print("".join(f"{stage:34} {seconds}\n" for stage, seconds in stages[0].items()), end="")
    print(json.dumps(result | {"stages": stages}))


if __name__ == "__main__":
    main()

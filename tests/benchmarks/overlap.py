"""Storing clips beside denoising the next: how much of it nobody waits for.

    python tests/benchmarks/overlap.py --size 832x480 --step-seconds 6.6

A denoiser that sleeps, as the CPU does while a GPU denoises, and a real take: segments encoded as H.264, latents and
memory in float32, every file synced. The same clips one by one and beside: wall time, and the files, which must be
equal. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from load import memory
from torch import Tensor

from s2v_core.geometry import VideoSize
from s2v_core.types import ClipInputs, ClipPlan, ClipSettings, Conditioning, DecodedClip, StepCallback
from s2v_core.video.fill import fill_take
from s2v_core.video.take import Take
from s2v_core.video.timeline import plan_clips


class Sleeper:
    """A denoiser that takes its time."""

    def __init__(self, steps: int, seconds: float) -> None:
        self.steps, self.seconds = steps, seconds

    def __call__(self, inputs: ClipInputs, noise: Tensor, on_step: StepCallback) -> Tensor:
        for step in range(1, self.steps + 1):
            time.sleep(self.seconds)
            on_step(step, self.steps)
        return noise


class Frames:
    """A codec and its decoder that take next to no time: a soft picture that moves, with a little noise."""

    def __init__(self, size: VideoSize) -> None:
        ramp = torch.linspace(0, 12, size.width + size.height)
        rows, columns = torch.meshgrid(torch.arange(size.height), torch.arange(size.width), indexing="ij")
        picture = torch.stack([torch.sin(ramp[rows + columns] * (1 + c)) for c in range(3)])
        noise = torch.randn(4, *picture.shape, generator=torch.Generator().manual_seed(0)) * 0.03
        self.moves = torch.stack([picture.roll(i, 2) + noise[i] for i in range(4)], 1).mul(0.6)[None]

    def encode(self, frames: Tensor) -> Tensor:
        return frames.new_zeros(1, 16, 1 + (frames.shape[2] - 1) // 4, frames.shape[3] // 8, frames.shape[4] // 8)

    def decoder(self) -> Frames:
        return self

    def prime(self, latents: Tensor) -> None:
        pass

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        for i in range(latents.shape[2]):
            yield self.moves.roll(4 * i, 4)


class Silence:
    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        return torch.zeros(1, 1, 1, stop_frame - start_frame)


class Noted:
    """A watch that notes the memory."""

    def __init__(self) -> None:
        self.own_memory = 0

    def clip_started(self, plan: ClipPlan) -> None:
        pass

    def step(self, done: int, total: int) -> None:
        self.own_memory = max(self.own_memory, memory()["own"])

    def clip_finished(self, clip: DecodedClip) -> None:
        self.own_memory = max(self.own_memory, memory()["own"])


def run(folder: Path, args: argparse.Namespace, *, one_by_one: bool) -> tuple[float, int]:
    """Wall seconds, and the process's own memory where it is looked at."""
    width, height = (int(side) for side in args.size.split("x"))
    size, settings, watch = VideoSize(width=width, height=height), ClipSettings(), Noted()
    codec, embeds = Frames(size), torch.zeros(1, 1, 1)
    conditioning = Conditioning(
        size=size,
        prompt_embeds=embeds,
        negative_prompt_embeds=embeds,
        reference_frames=torch.zeros(1, 3, 1, height, width),
        reference_latent=torch.zeros(1, 16, 1, height // 8, width // 8),
        audio=Silence(),
    )
    plans = plan_clips(80 * args.clips - 3, settings, seed=0, start_from_image=False)
    start = time.perf_counter()
    with Take.open(folder, {}, [{"clip": plan.index} for plan in plans]) as take:
        fill_take(
            take, plans, conditioning, Sleeper(args.steps, args.step_seconds), codec, settings,
            continuity="exact", decoder_reach=1, watch=watch, one_by_one=one_by_one,
        )  # fmt: skip
    return time.perf_counter() - start, watch.own_memory


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="832x480", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--step-seconds", type=float, default=6.6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        one, beside = Path(name, "one by one"), Path(name, "beside")
        seconds, own = run(one, args, one_by_one=True)
        seconds_beside, own_beside = run(beside, args, one_by_one=False)
        equal = files(one) == files(beside)
    storing = seconds - args.clips * args.steps * args.step_seconds
    result = {
        "size": args.size,
        "clips": args.clips,
        "seconds_of_sleep_a_clip": args.steps * args.step_seconds,
        "seconds_a_clip_one_by_one": round(seconds / args.clips, 2),
        "seconds_a_clip_beside": round(seconds_beside / args.clips, 2),
        "gain": round(1 - seconds_beside / seconds, 4),
        "share_of_storing_hidden": round((seconds - seconds_beside) / storing, 3),   # the last clip's cannot be
        "own_memory_mb_one_by_one": round(own / 1e6),
        "own_memory_mb_beside": round(own_beside / 1e6),
        "files_equal": equal,
        "torch": torch.__version__,
    }
    for key, value in result.items():
        print(f"{key:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

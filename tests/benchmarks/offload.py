"""Blocks that visit the device one at a time: how much of the copying hides behind the computing.

    python tests/benchmarks/offload.py                                  # a CPU: copies are held to --gb-per-second
    python tests/benchmarks/offload.py --device cuda --dim 5120 --layers 8 --size 832x480

Random weights. On a CPU "hidden" is the share of the copies' time that no block waited for; on a GPU it is found from
a forward with blocks in place and one with blocks streamed, and from the time that the copies take alone. Prints a
table and one JSON line; the streamed result must be bit for bit the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from step import make_config, make_inputs, make_model, prepare
from torch import Tensor

from s2v_core.placement import DTYPES, BlockStreamer, num_bytes


def limited(gb_per_second: float) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Copies that take as long as a bus of that speed would."""

    def copy(tensors: Sequence[Tensor]) -> list[Tensor]:
        start = time.perf_counter()
        copies = [t.clone() for t in tensors]
        needed = sum(t.numel() * t.element_size() for t in tensors) / (gb_per_second * 1e9)
        time.sleep(max(0.0, needed - (time.perf_counter() - start)))
        return copies

    return copy


def wall(work: Callable[[], Tensor], repeats: int, device: str) -> tuple[float, Tensor]:
    """Median seconds, after one run to warm up."""
    out, spent = work(), []
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        out = work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent), out


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--size", default="64x64", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--gb-per-second", type=float, default=0.2, help="of the copies, on a CPU")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    args.heads, args.latents = None, 20
    config, device = make_config(args), torch.device(args.device)
    model = make_model(config, args.device, DTYPES[args.dtype])
    inputs = make_inputs(config, args)
    clip, t = prepare(model, inputs)[0], torch.tensor([700.0], device=device)

    def forward() -> Tensor:
        return model(inputs["latents"], t, clip)

    in_place, expected = wall(forward, args.repeats, args.device)
    model.blocks.to("cpu")
    streamer = BlockStreamer(model.blocks, device, limited(args.gb_per_second) if device.type == "cpu" else None)
    forward()
    streamer.copied_seconds = streamer.waited_seconds = 0.0
    streamed, out = wall(forward, args.repeats, args.device)
    if device.type == "cpu":
        copying = streamer.copied_seconds / (args.repeats + 1)
        hidden = 1 - streamer.waited_seconds / streamer.copied_seconds
    else:
        copying, _ = wall(lambda: [copy for home in streamer.home for copy in streamer.copy(home)][0], 3, args.device)
        hidden = 1 - max(0.0, streamed - in_place) / copying
    streamer.stop()
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dim": args.dim,
        "layers": args.layers,
        "tokens": clip.layout.total,
        "block_mb": round(num_bytes(model.blocks[0]) / 1e6, 1),
        "compute_ms_per_block": round(1e3 * in_place / args.layers, 1),
        "copy_ms_per_block": round(1e3 * copying / args.layers, 1),
        "seconds_in_place": round(in_place, 3),
        "seconds_streamed": round(streamed, 3),
        "hidden": round(hidden, 4),
        "bit_equal": bool(torch.equal(out, expected)),
        "torch": torch.__version__,
    }
    for key, value in result.items():
        print(f"{key:24} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

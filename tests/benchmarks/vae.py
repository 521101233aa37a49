"""The video autoencoder at work: CPU seconds of encoding and decoding, alone and as a clip needs them; peak memory.

    python tests/benchmarks/vae.py --dim 96 --size 128x128
    python tests/benchmarks/vae.py --dim 24 --size 512x512 --dtype bf16
    python tests/benchmarks/vae.py --size 64x64 --latents 4 --motion-latents 3 --dtype bf16 --reference Wan2.2

Random weights. "decode" is a video of its own; "decode next" is a clip that goes on: its frames after the motion
latents, whose own frames nobody wants. The last line of the three runs the reference implementation (a checkout of it)
beside ours with equal weights, in turns, by the calls that its pipeline makes, and compares medians and results;
below float32 both are compared to float32 too. Prints a table and one JSON line; "bytes per pixel and channel" is the
peak beyond the weights, divided by the picture's pixels and by `dim`, for float32: what the pipeline's memory estimate
is built on.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from step import difference, processor
from torch import Tensor, nn

from s2v_core.config import VAEConfig
from s2v_core.models.vae import WanVAE
from s2v_core.placement import DTYPES

Work = Callable[[], Tensor]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--size", default="128x128", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--motion-latents", type=int, default=19)
    parser.add_argument("--latents", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of each")
    parser.add_argument("--reference", type=Path, help="a checkout of Wan2.2, to be run beside ours")
    return parser.parse_args()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def make_inputs(args: argparse.Namespace) -> dict[str, Tensor]:
    width, height = (int(side) for side in args.size.split("x"))
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "motion": draw(1, 16, args.motion_latents, height // 8, width // 8),
        "latents": draw(1, 16, args.latents, height // 8, width // 8),
        "frames": draw(1, 3, 1 + 4 * (args.motion_latents - 1), height, width).mul(0.4).clamp(-1, 1),
    }


def ours(vae: WanVAE, inputs: dict[str, Tensor]) -> dict[str, Work]:
    def decode_next() -> Tensor:
        decoder = vae.decoder()
        decoder.prime(inputs["motion"])
        return torch.cat(list(decoder.decode(inputs["latents"])), 2)

    return {
        "decode next": decode_next,
        "decode": lambda: torch.cat(list(vae.decoder().decode(inputs["latents"])), 2),
        "encode": lambda: vae.encode(inputs["frames"]),
    }


def theirs(checkout: Path, vae: WanVAE, inputs: dict[str, Tensor]) -> dict[str, Work]:
    """The same by the reference's calls, with our weights in their dtype."""
    model = make_reference(checkout, vae)
    dtype = vae.conv1.weight.dtype
    scale = [torch.tensor(vae.config.latent_mean, dtype=dtype), 1 / torch.tensor(vae.config.latent_std, dtype=dtype)]

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return model.decode(latents.to(dtype), scale).float().clamp_(-1, 1)

    @torch.no_grad()
    def encode() -> Tensor:
        return model.encode(inputs["frames"].to(dtype), scale).float()

    both = torch.cat([inputs["motion"], inputs["latents"]], 2)
    return {
        "decode next": lambda: decode(both)[:, :, -4 * inputs["latents"].shape[2] :],
        "decode": lambda: decode(inputs["latents"]),
        "encode": encode,
    }


def make_reference(checkout: Path, vae: WanVAE) -> nn.Module:
    """The reference's autoencoder with our weights, without the packages around it, which import much more."""
    path = checkout / "wan/modules/vae2_1.py"
    if not path.is_file():
        raise SystemExit(f"{checkout} is not a checkout of Wan2.2: it has no wan/modules/vae2_1.py")
    spec = importlib.util.spec_from_file_location("vae2_1", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = vae.config
    model = module.WanVAE_(
        dim=config.dim,
        z_dim=config.latent_channels,
        dim_mult=list(config.dim_mult),
        num_res_blocks=config.num_res_blocks,
        temperal_downsample=list(config.temporal_downsample),
    )
    model.load_state_dict(vae.state_dict())
    return model.eval().requires_grad_(False).to(vae.conv1.weight.dtype)


def timed(work: Work) -> tuple[float, Tensor]:
    start = time.process_time()
    out = work()
    return time.process_time() - start, out


def in_turns(sides: dict[str, dict[str, Work]], name: str, repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median CPU seconds of each side for one thing, and its results."""
    spent: dict[str, list[float]] = {side: [] for side in sides}
    results = {}
    for _ in range(repeats):
        for side, works in sides.items():
            seconds, results[side] = timed(works[name])
            spent[side].append(seconds)
    return {side: statistics.median(found) for side, found in spent.items()}, results


def compare(name: str, results: dict[str, Tensor], exact: dict[str, Work] | None) -> dict[str, float]:
    """How far the sides are from each other, and from float32 where they are not in it."""
    found = {f"{name}: difference": difference(results["ours"], results["reference"])}
    if exact is not None:
        expected = exact[name]()
        found |= {f"{name}: error {side}": difference(out, expected) for side, out in results.items()}
    return found


def main() -> None:
    args = parse()
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(dim=args.dim), dtype=DTYPES[args.dtype]).eval().requires_grad_(False)
    inputs = make_inputs(args)
    before = peak_mb()
    sides = {"ours": ours(vae, inputs)}
    sides["ours"]["decode next"]()   # warms up too
    peak = peak_mb() - before
    exact = None
    if args.reference:
        sides["reference"] = theirs(args.reference, vae, inputs)
        sides["reference"]["decode"]()
        if vae.conv1.weight.dtype != torch.float32:
            exact = ours(copy.deepcopy(vae).float(), inputs)
    width, height = (int(side) for side in args.size.split("x"))
    result = {
        "dim": args.dim,
        "size": args.size,
        "dtype": args.dtype,
        "latents": f"{args.latents}, after {args.motion_latents} of motion",
        "decode_peak_mb": round(peak, 1),
        "bytes_per_pixel_and_channel": round(peak * 2**20 / (width * height * args.dim), 1),
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for name in sides["ours"]:
        seconds, results = in_turns(sides, name, args.repeats)
        result |= {f"{name}: {side}, s": round(spent, 2) for side, spent in seconds.items()}
        if args.reference:
            result[f"{name}: of the reference"] = round(seconds["ours"] / seconds["reference"], 3)
            result |= compare(name, results, exact)
    for key, value in result.items():
        print(f"{key:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

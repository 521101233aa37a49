"""One guided denoising step of the transformer with random weights: seconds, memory, and bf16 error against float32.

    python tests/benchmarks/step.py --size 832x480 --device cuda --dtype bf16            # the 14B model
    python tests/benchmarks/step.py --dim 512 --layers 8 --size 128x128 --dtype fp32     # a small one, on a CPU
    python tests/benchmarks/step.py --dim 512 --layers 8 --size 64x64 --parity --reference Wan2.2

The last runs the reference implementation beside ours (a checkout of it, and what it imports: diffusers, einops), on a
CPU with equal weights, in turns, and compares the fewest CPU seconds of each: other work on the machine only adds. What
we prepare once a clip is not in our seconds; it is told apart. `--products` also tells how much of a step is matrix
products and attention: what is left when all else costs nothing. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from reference import make_reference, reference_velocity
from torch import nn
from torch.profiler import ProfilerActivity, profile

from s2v_core.config import TransformerConfig
from s2v_core.geometry import VideoSize
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.placement import DTYPES, BlockStreamer

PRODUCTS = r"mm\b|linear_pointwise|gemm|scaled_dot_product|attention|flash|fmha|conv"   # operators; on a GPU, kernels
Step = Callable[[], torch.Tensor]   # a guided velocity


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=5120)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--heads", type=int, help="default: dim / 128")
    parser.add_argument("--size", default="832x480", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--latents", type=int, default=20, help="latent frames to denoise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--offload", choices=("none", "blocks"), default="none")
    parser.add_argument("--batched", action="store_true", help="both guidance branches in one pass")
    parser.add_argument("--steps", type=int, default=2, help="timed steps after one to warm up")
    parser.add_argument("--parity", action="store_true", help="also run the same weights in float32 and compare")
    parser.add_argument("--products", action="store_true", help="also the share of matrix products and attention")
    parser.add_argument("--reference", type=Path, help="a checkout of Wan2.2, to be run beside ours on a CPU")
    return parser.parse_args()


def make_config(args: argparse.Namespace) -> TransformerConfig:
    layers = args.layers
    inject = TransformerConfig().audio_inject_layers if layers == 40 else tuple(range(0, layers, 3))
    return TransformerConfig(
        dim=args.dim,
        ffn_dim=round(args.dim * 2.7 / 64) * 64,
        num_heads=args.heads or max(1, args.dim // 128),
        num_layers=layers,
        audio_inject_layers=inject,
    )


def make_model(config: TransformerConfig, device: str, dtype: torch.dtype) -> WanS2VTransformer:
    model = WanS2VTransformer(config, device="meta", dtype=dtype).eval().requires_grad_(False)
    return randomise(model.to_empty(device=device), device)


def randomise(module: nn.Module, device: str) -> nn.Module:
    """Weights of a trained model's scale: layers keep their input's size, gates are small."""
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if "norm" in name and name.endswith("weight") or name.endswith("gamma"):
            parameter.fill_(1)
        elif name.endswith("weight") and parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(std=0.02, generator=generator)
    return module


def make_inputs(config: TransformerConfig, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    width, height = (int(side) for side in args.size.split("x"))
    grid = VideoSize(width=width, height=height).latent_grid(args.latents)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(args.device)

    return {
        "latents": draw(1, 16, grid.frames, grid.height, grid.width),
        "reference_latent": draw(1, 16, 1, grid.height, grid.width),
        "motion_latents": draw(1, 16, 19, grid.height, grid.width),
        "audio_features": draw(1, config.num_audio_layers, config.audio_dim, 4 * grid.frames),
        "prompt": draw(1, 60, config.text_dim) * 0.1,
    }


@torch.no_grad()
def guided_step(
    model: WanS2VTransformer, clips: list, latents: torch.Tensor, t: torch.Tensor, batched: bool
) -> torch.Tensor:
    time_context = model.embed_time(t)
    if batched:
        cond, uncond = model(latents, time_context, clips[0].joined(clips[1])).split(1)
    else:
        cond, uncond = model.branches(latents, time_context, clips)
    return uncond + 4.5 * (cond - uncond)


@torch.no_grad()
def prepare(model: WanS2VTransformer, inputs: dict[str, torch.Tensor]) -> list:
    shared = {
        "num_latents": inputs["latents"].shape[2],
        "reference_latent": inputs["reference_latent"],
        "motion_latents": inputs["motion_latents"],
    }
    features, embeds = inputs["audio_features"], inputs["prompt"]
    cond = model.prepare_clip(prompt=model.prepare_prompt(embeds), audio_features=features, **shared)
    return [cond, model.with_other(cond, prompt=model.prepare_prompt(-embeds), audio_features=0 * features)]


def seconds(device: str) -> float:
    """A clock: wall time after the device's work on a GPU, CPU seconds of this process otherwise."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def reference_step(checkout: Path, model: WanS2VTransformer, inputs: dict[str, torch.Tensor], t: torch.Tensor) -> Step:
    """A guided step of the reference with the model's weights."""
    theirs = make_reference(checkout, model.config, model.state_dict())
    embeds = inputs["prompt"]

    def step() -> torch.Tensor:
        cond = reference_velocity(theirs, inputs, t, prompt=embeds, audio_gain=1)
        uncond = reference_velocity(theirs, inputs, t, prompt=-embeds, audio_gain=0)
        return uncond + 4.5 * (cond - uncond)

    return step


def products_share(step: Step, device: str) -> float:
    """Of the time that a step's operators take."""
    on_gpu = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        step()
    taken = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in found.key_averages()}
    return sum(time for name, time in taken.items() if re.search(PRODUCTS, name)) / sum(taken.values())


def timed(steps: dict[str, Step], repeats: int, device: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The fewest seconds of each, run in turns after one run to warm up, and what they computed."""
    results = {name: step() for name, step in steps.items()}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            start = seconds(device)
            step()
            spent[name].append(seconds(device) - start)
    return {name: min(all_of_it) for name, all_of_it in spent.items()}, results


def main() -> None:
    args = parse()
    config = make_config(args)
    inputs = make_inputs(config, args)
    host = "cpu" if args.offload == "blocks" else args.device
    model = make_model(config, host, DTYPES[args.dtype])
    if args.offload == "blocks":
        streamer = BlockStreamer(model.blocks, torch.device(args.device))
        for name, child in model.named_children():
            if name != "blocks":
                child.to(args.device)
    start = seconds(args.device)
    clips = prepare(model, inputs)
    preparing = seconds(args.device) - start
    t = torch.tensor([700.0], device=args.device)
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    steps: dict[str, Step] = {"ours": lambda: guided_step(model, clips, inputs["latents"], t, args.batched)}
    if args.reference:
        steps["reference"] = reference_step(args.reference, model, inputs, t)
    spent, outputs = timed(steps, args.steps, args.device)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dim": args.dim,
        "layers": args.layers,
        "tokens": clips[0].layout.total,
        "size": args.size,
        "dtype": args.dtype,
        "offload": args.offload,
        "batched": args.batched,
        "seconds_per_guided_step": round(spent["ours"], 4),
        "seconds_to_prepare_a_clip": round(preparing, 4),
        "clock": "wall" if on_gpu else "cpu",
        "peak_gb": round(peak / 1e9, 2),
        "finite": bool(outputs["ours"].isfinite().all()),
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if args.offload == "blocks":
        streamer.stop()
    if args.reference:
        result["reference_seconds"] = round(spent["reference"], 4)
        result["of_the_reference"] = round(spent["ours"] / spent["reference"], 3)
        result["difference_to_the_reference"] = difference(outputs["ours"], outputs["reference"])
    if args.products:
        for name, step in steps.items():
            result[f"products_of_{name}"] = round(products_share(step, args.device), 3)
    if args.parity:
        steps.clear()
        expected = in_float32(model, config, inputs, t, args)
        for name, out in outputs.items():
            result[f"error_against_float32_{name}"] = difference(out, expected)
    for key, value in result.items():
        print(f"{key:32} {value}")
    print(json.dumps(result))


def processor() -> str:
    """The CPU's name, and whether it multiplies matrices of bf16 by itself (AMX)."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    found = {key.strip(): value for key, value in lines.items()}
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in found.get("flags", "").split()]
    return " ".join([found.get("model name", platform.machine()).strip(), *units])


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frobenius, relative to b."""
    return float(f"{((a - b).norm() / b.norm()).item():.3g}")


def in_float32(
    model: WanS2VTransformer,
    config: TransformerConfig,
    inputs: dict[str, torch.Tensor],
    t: torch.Tensor,
    args: argparse.Namespace,
) -> torch.Tensor:
    """The guided velocity in float32 with the same (rounded) weights."""
    exact = WanS2VTransformer(config, device="meta").eval().requires_grad_(False)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()}, assign=True)
    exact.to(args.device)
    return guided_step(exact, prepare(exact, inputs), inputs["latents"], t, False)


if __name__ == "__main__":
    main()

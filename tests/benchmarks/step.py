"""One guided denoising step of the transformer with random weights: seconds, memory, and bf16 error against float32.

    python tests/benchmarks/step.py --size 832x480 --device cuda --dtype bf16            # the 14B model
    python tests/benchmarks/step.py --dim 512 --layers 8 --size 128x128 --dtype fp32     # a small one, on a CPU

Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time

import torch

from s2v_core.config import TransformerConfig
from s2v_core.geometry import VideoSize
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.placement import DTYPES, BlockStreamer


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
    """Random weights of a trained model's scale: layers keep their input's size, gates are small."""
    model = WanS2VTransformer(config, device="meta", dtype=dtype).eval().requires_grad_(False)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        elif ".norm" in name and name.endswith("weight"):
            parameter.fill_(1)
        else:
            parameter.normal_(std=0.02, generator=generator)
    return model


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
    clips = prepare(model, inputs)
    t = torch.tensor([700.0], device=args.device)
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    out = guided_step(model, clips, inputs["latents"], t, args.batched)
    start = seconds(args.device)
    for _ in range(args.steps):
        out = guided_step(model, clips, inputs["latents"], t, args.batched)
    spent = (seconds(args.device) - start) / args.steps
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": clips[0].layout.total,
        "size": args.size,
        "dtype": args.dtype,
        "offload": args.offload,
        "batched": args.batched,
        "seconds_per_guided_step": round(spent, 4),
        "clock": "wall" if on_gpu else "cpu",
        "peak_gb": round(peak / 1e9, 2),
        "finite": bool(out.isfinite().all()),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    if args.offload == "blocks":
        streamer.stop()
    if args.parity:
        result["relative_error_against_float32"] = parity(model, config, inputs, t, out, args)
    for key, value in result.items():
        print(f"{key:32} {value}")
    print(json.dumps(result))


def parity(
    model: WanS2VTransformer,
    config: TransformerConfig,
    inputs: dict[str, torch.Tensor],
    t: torch.Tensor,
    out: torch.Tensor,
    args: argparse.Namespace,
) -> float:
    """Frobenius error of the guided velocity against float32 with the same (rounded) weights."""
    exact = WanS2VTransformer(config, device="meta").eval().requires_grad_(False)
    exact.load_state_dict({k: v.float() for k, v in model.state_dict().items()}, assign=True)
    del model
    exact.to(args.device)
    expected = guided_step(exact, prepare(exact, inputs), inputs["latents"], t, False)
    return round(((out - expected).norm() / expected.norm()).item(), 5)


if __name__ == "__main__":
    main()

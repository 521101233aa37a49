"""One clip that goes on from another, from its encoders to its frames, with random weights: seconds of every stage.

    python tests/benchmarks/clip.py --device cuda                          # the 14B model at 832x480 and 1280x720
    python tests/benchmarks/clip.py --model bundled --size 128x128 --dtype fp32

What it takes does not depend on the numbers, so no weights are needed: all four models are filled at random, each
where it works, and the encoders are freed before the transformer is there. Stages: two prompts and five seconds of
sound encoded; the picture and the 73 frames before the clip encoded; a clip of 80 frames denoised and decoded. "end
to end" is their sum. One forward is timed by itself; its share is that of the best rate at which this machine was
seen to multiply matrices. Parity: a guided step of two blocks of the same width, against float32. Seconds are CPU
seconds on a CPU, wall time on a GPU; peak memory is a stage's on a GPU, the process's until then on a CPU. Prints a
table and one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

import step as one_step
import torch
from torch import Tensor, nn

from s2v_core.checkpoints.official import find_components
from s2v_core.components import BUNDLED
from s2v_core.config import SAMPLE_RATE, WAN_S2V_14B, ModelConfig, TransformerConfig
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.geometry import TokenLayout, VideoSize
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.models.text_encoder import build_text_encoder
from s2v_core.models.vae import WanVAE
from s2v_core.ops.attention import make_attention
from s2v_core.placement import DTYPES
from s2v_core.types import SOLVERS, ClipInputs, ClipSettings, SamplerSettings

PROMPT_TOKENS, NEGATIVE_TOKENS, SOUND_SECONDS = 60, 120, 5
FORWARDS = 3   # timed, after one to warm up


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("14b", "bundled"), default="14b", help="whose sizes")
    parser.add_argument("--size", nargs="+", default=["832x480", "1280x720"], help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.0, help="1: one evaluation a step, as distilled weights")
    parser.add_argument("--solver", choices=SOLVERS, default="few-step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16", help="of transformer and text encoder")
    parser.add_argument("--vae-dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--attention", default="auto", help="as wan-s2v's")
    return parser.parse_args(arguments)


def model_config(name: str) -> ModelConfig:
    return WAN_S2V_14B if name == "14b" else find_components(BUNDLED).config


def filled(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A module from the meta device with random weights of a trained one's scale."""
    module = module.eval().requires_grad_(False).to(dtype).to_empty(device=device)
    return one_step.randomise(module, device)


class Stages:
    """A stopwatch, and on a GPU the peak memory of each stage."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Tensor]) -> Tensor:
        on_gpu = self.device.startswith("cuda")
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        start = one_step.seconds(self.device)
        out = work()
        self.seconds[name] = one_step.seconds(self.device) - start
        self.peaks[name] = peak_gb(on_gpu)
        return out


def peak_gb(on_gpu: bool) -> float:
    """Of a GPU's memory since the last reset; of the whole process on a CPU."""
    used = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return used / 1e9


def forward_tflop(config: TransformerConfig, layout: TokenLayout) -> float:
    """Products of one forward whose prompt and sound are prepared; two per multiplication and addition."""
    every, video, width = layout.total, layout.num_video, config.dim
    projections = 12 * every * width**2   # four of self-attention, two of the prompt's
    attention = 4 * every * (every + config.text_len) * width
    feed_forward = 4 * every * width * config.ffn_dim
    sound = video * (4 * width**2 + 4 * (config.num_audio_tokens + 1) * width)
    blocks = config.num_layers * (projections + attention + feed_forward)
    return (blocks + len(config.audio_inject_layers) * sound) / 1e12


def matmul_tflops(device: str, dtype: torch.dtype) -> float:
    """The best of some square products."""
    side = 8192 if device.startswith("cuda") else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    took = []
    for _ in range(12):
        start = one_step.seconds(device)
        torch.mm(a, b)
        took.append(one_step.seconds(device) - start)
    return 2 * side**3 / min(took) / 1e12


@torch.no_grad()
def encode_prompts(config: ModelConfig, args: argparse.Namespace, stages: Stages) -> list[Tensor]:
    """[1, L, text_dim] of a prompt and of a negative one; the model is gone afterwards."""
    with torch.device("meta"):
        encoder = build_text_encoder(config.text_encoder)
    encoder = filled(encoder, args.device, DTYPES[args.dtype])
    lengths = [PROMPT_TOKENS, NEGATIVE_TOKENS]
    tokens = [torch.randint(config.text_encoder.vocab_size, (1, n)).to(args.device) for n in lengths]
    embeds = stages.run("text", lambda: torch.cat([encoder(input_ids=t).last_hidden_state for t in tokens], 1))
    return list(embeds.split(lengths, dim=1))


def encode_sound(config: ModelConfig, args: argparse.Namespace, stages: Stages) -> Tensor:
    """[1, L, C, 80] hidden states in the place of features; the model is gone afterwards."""
    with torch.device("meta"):
        encoder = SoundEncoder(config.audio_encoder)
    encoder = filled(encoder, args.device, torch.float32)
    waveform = torch.randn(1, SOUND_SECONDS * SAMPLE_RATE, device=args.device)
    states = stages.run("sound", lambda: encoder.hidden_states(waveform))
    return states.transpose(1, 2)[None, :, :, : ClipSettings().frames]


def measure(config: ModelConfig, text: str, args: argparse.Namespace) -> dict[str, object]:
    """One clip at one size."""
    width, height = (int(side) for side in text.split("x"))
    size, clip, stages = VideoSize(width=width, height=height), ClipSettings(), Stages(args.device)
    torch.manual_seed(0)
    prompts, features = encode_prompts(config, args, stages), encode_sound(config, args, stages)
    gc.collect()
    vae = filled(WanVAE(config.vae, device="meta"), args.device, DTYPES[args.vae_dtype])
    picture, past = (torch.rand(1, 3, n, height, width).mul(2).sub(1) for n in (1, clip.motion_frames))
    motion = stages.run("encode", lambda: torch.cat([vae.encode(picture), vae.encode(past)], 2))
    transformer = WanS2VTransformer(
        config.transformer, attention=make_attention(args.attention), device="meta", dtype=DTYPES[args.dtype]
    )
    transformer = filled(transformer, args.device, DTYPES[args.dtype])
    settings = SamplerSettings(steps=args.steps, guidance_scale=args.guidance, solver=args.solver)
    denoiser = TransformerDenoiser(transformer, settings, device=args.device)
    inputs = ClipInputs(
        prompt_embeds=prompts[0],
        negative_prompt_embeds=prompts[1],
        reference_latent=motion[:, :, :1],
        motion_latents=motion[:, :, 1:],
        audio_features=features,
        pose_latents=None,
    )
    grid = size.latent_grid(clip.num_latents)
    noise = torch.randn(1, config.transformer.in_channels, grid.frames, grid.height, grid.width)
    forward, layout = one_forward(denoiser, inputs, noise)
    latents = stages.run("denoise", lambda: denoiser(inputs, noise, lambda step, steps: None))

    def decode() -> Tensor:
        decoder = vae.decoder()
        decoder.prime(inputs.motion_latents)
        return torch.cat([frames.cpu() for frames in decoder.decode(latents)], 2)

    frames = stages.run("decode", decode)
    ceiling = matmul_tflops(args.device, DTYPES[args.dtype])
    tflop = forward_tflop(config.transformer, layout)
    return {
        "size": text,
        "tokens": layout.total,
        "frames": frames.shape[2],
        "stages": {name: round(seconds, 4) for name, seconds in stages.seconds.items()},
        "end_to_end": round(sum(stages.seconds.values()), 3),
        "peak_gb": {name: round(peak, 2) for name, peak in stages.peaks.items()},
        "seconds_per_forward": round(forward, 4),
        "tflop_per_forward": round(tflop, 4),
        "matmul_tflops": round(ceiling, 3),
        "share_of_the_ceiling": round(tflop / forward / ceiling, 3),
        "finite": bool(latents.isfinite().all() and frames.isfinite().all()),
    }


@torch.no_grad()
def one_forward(denoiser: TransformerDenoiser, inputs: ClipInputs, noise: Tensor) -> tuple[float, TokenLayout]:
    """Median seconds of a forward as it is in a step, everything prepared."""
    model, device = denoiser.model, str(denoiser.device)
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(inputs.prompt_embeds),
        num_latents=noise.shape[2],
        reference_latent=inputs.reference_latent,
        motion_latents=inputs.motion_latents,
        audio_features=inputs.audio_features,
    )
    latents, time = noise.to(device), model.embed_time(torch.tensor([700.0], device=device))
    took = []
    for _ in range(1 + FORWARDS):
        start = one_step.seconds(device)
        model(latents, time, clip)
        took.append(one_step.seconds(device) - start)
    return statistics.median(took[1:]), clip.layout


def parity(config: TransformerConfig, args: argparse.Namespace) -> float:
    """Error of a guided step of two blocks at a small size, against float32 with the same weights."""
    few = replace(config, num_layers=2, audio_inject_layers=(0,))
    small = argparse.Namespace(device=args.device, size="128x128", latents=4)
    model, inputs = one_step.make_model(few, args.device, DTYPES[args.dtype]), one_step.make_inputs(few, small)
    t = torch.tensor([700.0], device=args.device)
    found = one_step.guided_step(model, one_step.prepare(model, inputs), inputs["latents"], t, False)
    return one_step.difference(found, one_step.in_float32(model, few, inputs, t, small))


def report(row: dict[str, object]) -> None:
    for key, value in row.items():
        lines = value.items() if isinstance(value, dict) else [("", value)]
        for name, number in lines:
            print(f"{f'{key} {name}'.strip():28} {number}")


def main() -> None:
    args = parse()
    config = model_config(args.model)
    rows = []
    for text in args.size:
        rows.append(measure(config, text, args))
        report(rows[-1])
        gc.collect()
    on_gpu = args.device.startswith("cuda")
    result = {
        "model": args.model,
        "steps": args.steps,
        "guidance": args.guidance,
        "dtype": args.dtype,
        "vae_dtype": args.vae_dtype,
        "attention": args.attention,
        "error_against_float32": parity(config.transformer, args),
        "clock": "wall" if on_gpu else "cpu",
        "device": torch.cuda.get_device_name() if on_gpu else one_step.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    report(result)
    print(json.dumps(result | {"sizes": rows}))


if __name__ == "__main__":
    main()

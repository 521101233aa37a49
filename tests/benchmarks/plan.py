"""What a plan foretells against what happens: seconds of a step and of coding a clip; memory of parts and of a run.

    python tests/benchmarks/plan.py                                                # shapes of the bundled model
    python tests/benchmarks/plan.py --dim 512 --layers 8 --size 64x64 --vae-dim 24
    python tests/benchmarks/plan.py --dim 5120 --layers 40 --size 832x480 --vae-dim 96 --device cuda --dtype bf16
    python tests/benchmarks/plan.py --whole --size 128x128 --dtype bf16

Random weights: their values change neither. Seconds are CPU seconds on a CPU and wall seconds on a GPU. Memory is what
live tensors take, counted by torch's operators as they run. With `--whole` it is what a process's resident set grows
by, at most, from the end of its imports to the end of `wan-s2v generate`: two clips, a step each, on a CPU with Linux,
against the peak that the plan prints. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from step import guided_step, make_config, make_inputs, make_model, prepare, processor, randomise, seconds
from traffic import Traffic

from s2v_core.checkpoints.official import read_model_config
from s2v_core.components import BUNDLED
from s2v_core.config import TransformerConfig, VAEConfig
from s2v_core.geometry import num_latent_frames
from s2v_core.models.cost import activation_bytes, decoder_bytes
from s2v_core.models.vae import WanVAE
from s2v_core.ops.attention import sdpa
from s2v_core.pace import seconds_per_step, time_block, time_codec
from s2v_core.placement import DTYPES

FLOAT32 = 4   # bytes
MOTION_FRAMES = 73
DECODED = 5   # latent frames: memory is at its peak from the third on
SAMPLES = Path(__file__).parents[2] / "samples"
CHILD = """
import json, sys
import av, soxr, transformers.models.umt5.modeling_umt5
from s2v_core import pipeline
from s2v_core.cli import main
from s2v_core.components import Components

def peak():   # of this program: what `getrusage` tells begins with the process that started it
    lines = open("/proc/self/status").read().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) / 1024

estimate, told, before = Components.estimate, [], peak()

def watched(*args, **settings):
    told.append(estimate(*args, **settings))
    return told[-1]

Components.estimate = watched
code = main(sys.argv[1:])
print(json.dumps({"code": code, "foretold": told[-1].device_peak / 2**20, "measured": peak() - before}))
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, help="of a transformer of other shapes than the bundled one's")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, help="default: dim / 128")
    parser.add_argument("--vae-dim", type=int, help="of an autoencoder of other shapes than the bundled one's")
    parser.add_argument("--size", default="128x128", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--latents", type=int, default=20, help="latent frames of a clip")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after one that warms up")
    parser.add_argument("--whole", action="store_true", help="a whole run instead")
    return parser.parse_args()


def find_configs(args: argparse.Namespace) -> tuple[TransformerConfig, VAEConfig]:
    bundled = read_model_config(BUNDLED / "model.json")
    transformer = bundled.transformer if args.dim is None else make_config(args)
    return transformer, bundled.vae if args.vae_dim is None else VAEConfig(dim=args.vae_dim)


def row(what: str, foretold: float, measured: float, unit: str) -> dict[str, object]:
    return {"what": what, "foretold": foretold, "measured": measured, "unit": unit, "ratio": foretold / measured}


@torch.no_grad()
def denoising(config: TransformerConfig, args: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds of a guided step, and what a forward takes beside weights and what is prepared for a clip."""
    dtype, device = DTYPES[args.dtype], torch.device(args.device)
    model, inputs, t = make_model(config, args.device, dtype), make_inputs(config, args), torch.tensor([700.0])
    clips, t = prepare(model, inputs), t.to(device)
    spent, predicted = [], []
    for _ in range(1 + args.steps):   # in turns: the machine may be busy with other things
        time_block.cache_clear()
        block = time_block(
            config, clips[0].layout, dtype=dtype, device=device, attention=sdpa, clock=lambda: seconds(args.device)
        )
        predicted.append(seconds_per_step(config, clips[0].layout, block, branches=2))
        start = seconds(args.device)
        guided_step(model, clips, inputs["latents"], t, batched=False)
        spent.append(seconds(args.device) - start)
    when = model.embed_time(t)
    with Traffic() as traffic:
        model(inputs["latents"], when, clips[0])
    expected = activation_bytes(config, clips[0].layout, dtype.itemsize, on_cpu=args.device == "cpu")
    return [
        row("guided step", statistics.median(predicted[1:]), statistics.median(spent[1:]), "s"),
        row("forward", expected / 2**20, traffic.peak / 2**20, "MB"),
    ]


@torch.no_grad()
def coding(config: VAEConfig, args: argparse.Namespace) -> dict[str, object]:
    """Seconds of a clip's motion frames encoded and its own decoded; in float32."""
    vae = randomise(WanVAE(config, device=args.device).eval().requires_grad_(False), args.device)
    width, height = (int(side) for side in args.size.split("x"))
    past = torch.rand(1, 3, MOTION_FRAMES, height, width) * 2 - 1
    latents = torch.randn(1, config.latent_channels, args.latents, height // 8, width // 8)
    num_motion, device = num_latent_frames(MOTION_FRAMES), torch.device(args.device)
    found = time_codec(
        config, width * height, num_motion, dtype=torch.float32, device=device, clock=lambda: seconds(args.device)
    )
    start = seconds(args.device)
    decoder = vae.decoder()
    decoder.prime(vae.encode(past))
    for _ in decoder.decode(latents):
        pass
    return row("clip coded", found.clip(args.latents, num_motion), seconds(args.device) - start, "s")


@torch.no_grad()
def decoding(config: VAEConfig, args: argparse.Namespace) -> dict[str, object]:
    """What a decode takes beside its weights; in float32."""
    vae = WanVAE(config, device=args.device).eval().requires_grad_(False)
    width, height = (int(side) for side in args.size.split("x"))
    latents = torch.randn(1, config.latent_channels, DECODED, height // 8, width // 8, device=args.device)
    with Traffic() as traffic:
        for _ in vae.decoder().decode(latents):
            pass
    return row("decode", decoder_bytes(config, width * height, FLOAT32) / 2**20, traffic.peak / 2**20, "MB")


def write_model(transformer: TransformerConfig, vae: VAEConfig, dtype: torch.dtype, folder: Path) -> None:
    """A model of these shapes with the bundled encoders."""
    shutil.copytree(BUNDLED, folder)
    bundled = read_model_config(folder / "model.json")
    known = bundled.transformer
    transformer = replace(
        transformer, text_dim=known.text_dim, text_len=known.text_len, audio_dim=known.audio_dim,
        num_audio_layers=known.num_audio_layers,
    )  # fmt: skip
    save_file(make_model(transformer, "cpu", dtype).state_dict(), folder / "transformer.safetensors")
    save_file(randomise(WanVAE(vae).requires_grad_(False), "cpu").state_dict(), folder / "vae.safetensors")
    config = replace(bundled, transformer=transformer, vae=vae)
    (folder / "model.json").write_text(json.dumps(asdict(config)))


def whole_run(transformer: TransformerConfig, vae: VAEConfig, args: argparse.Namespace) -> dict[str, object]:
    """The resident set of a process that makes a video."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["generate", "--image", SAMPLES / "drawn.png", "--audio", SAMPLES / "speech.wav", "--size", args.size]
        words += ["--dtype", args.dtype, "--steps", 1, "--frames", 84, "--quiet", "-o", folder / "talk.mp4"]
        if args.dim is not None or args.vae_dim is not None:
            write_model(transformer, vae, DTYPES[args.dtype], folder / "model")
            words += ["--model", folder / "model"]
        where = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *map(str, words)], env=where, check=True, stdout=subprocess.PIPE, text=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    if found["code"]:
        raise SystemExit("the run failed")
    return row("whole run", found["foretold"], found["measured"], "MB")


def main() -> None:
    args = parse()
    transformer, autoencoder = find_configs(args)
    if args.whole:
        rows = [whole_run(transformer, autoencoder, args)]
    else:
        rows = [*denoising(transformer, args), coding(autoencoder, args), decoding(autoencoder, args)]
    print(f"{'':12} {'foretold':>10} {'measured':>10} {'':4} {'ratio':>6}")
    for r in rows:
        print(f"{r['what']:12} {r['foretold']:10.3f} {r['measured']:10.3f} {r['unit']:4} {r['ratio']:6.3f}")
    machine = processor() if args.device == "cpu" else torch.cuda.get_device_name()
    told = {"machine": machine, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(vars(args) | told))


if __name__ == "__main__":
    main()

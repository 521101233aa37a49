"""What a plan foretells against what happens: seconds of a denoising step, and memory of denoising and of decoding.

    python tests/benchmarks/plan.py                                                # shapes of the bundled model
    python tests/benchmarks/plan.py --dim 512 --layers 8 --size 64x64 --vae-dim 24
    python tests/benchmarks/plan.py --dim 5120 --layers 40 --size 832x480 --vae-dim 96 --device cuda --dtype bf16

Random weights: their values change neither. Seconds are CPU seconds on a CPU and wall seconds on a GPU. Memory is what
live tensors take, counted by torch's operators as they run. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from step import guided_step, make_config, make_inputs, make_model, prepare, processor, seconds
from traffic import Traffic

from s2v_core.checkpoints.official import read_model_config
from s2v_core.components import BUNDLED
from s2v_core.config import TransformerConfig, VAEConfig
from s2v_core.models.cost import activation_bytes, decoder_bytes
from s2v_core.models.vae import WanVAE
from s2v_core.ops.attention import sdpa
from s2v_core.pace import seconds_per_step, time_block
from s2v_core.placement import DTYPES

FLOAT32 = 4   # bytes
DECODED = 5   # latent frames: memory is at its peak from the third on


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
    expected = activation_bytes(config, clips[0].layout, dtype.itemsize)
    return [
        row("guided step", statistics.median(predicted[1:]), statistics.median(spent[1:]), "s"),
        row("forward", expected / 2**20, traffic.peak / 2**20, "MB"),
    ]


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


def main() -> None:
    args = parse()
    transformer, autoencoder = find_configs(args)
    rows = [*denoising(transformer, args), decoding(autoencoder, args)]
    print(f"{'':12} {'foretold':>10} {'measured':>10} {'':4} {'ratio':>6}")
    for r in rows:
        print(f"{r['what']:12} {r['foretold']:10.3f} {r['measured']:10.3f} {r['unit']:4} {r['ratio']:6.3f}")
    machine = processor() if args.device == "cpu" else torch.cuda.get_device_name()
    told = {"machine": machine, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    print(json.dumps(vars(args) | told))


if __name__ == "__main__":
    main()

"""The video autoencoder at work: CPU seconds and peak memory of encoding motion frames and decoding a continuing clip.

    python tests/benchmarks/vae.py --dim 96 --size 128x128
    python tests/benchmarks/vae.py --dim 24 --size 512x512 --dtype bf16

Random weights. Prints a table and one JSON line; "bytes per pixel and channel" is the peak beyond the weights, divided
by the picture's pixels and by `dim`, for float32: what the pipeline's memory estimate is built on.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

from s2v_core.config import VAEConfig
from s2v_core.models.vae import WanVAE
from s2v_core.placement import DTYPES


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--size", default="128x128", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--motion-latents", type=int, default=19)
    parser.add_argument("--latents", type=int, default=20)
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    torch.manual_seed(0)
    vae = WanVAE(VAEConfig(dim=args.dim), dtype=DTYPES[args.dtype]).eval().requires_grad_(False)
    motion = torch.zeros(1, 16, args.motion_latents, height // 8, width // 8)
    latents = torch.randn(1, 16, args.latents, height // 8, width // 8)
    frames = torch.zeros(1, 3, 1 + 4 * (args.motion_latents - 1), height, width)
    before = peak_mb()

    start = time.process_time()
    decoder = vae.decoder()
    decoder.prime(motion)
    num_frames = sum(piece.shape[2] for piece in decoder.decode(latents))
    decode_seconds, decode_peak = time.process_time() - start, peak_mb()

    start = time.process_time()
    vae.encode(frames)
    encode_seconds = time.process_time() - start

    per_channel = (decode_peak - before) * 2**20 / (width * height * args.dim)
    result = {
        "dim": args.dim,
        "size": args.size,
        "dtype": args.dtype,
        "decode": f"{args.motion_latents} primed + {args.latents} latent frames, {num_frames} frames out",
        "decode_cpu_seconds": round(decode_seconds, 2),
        "encode_cpu_seconds": round(encode_seconds, 2),
        "decode_peak_mb": round(decode_peak - before, 1),
        "bytes_per_pixel_and_channel": round(per_channel, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for key, value in result.items():
        print(f"{key:28} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

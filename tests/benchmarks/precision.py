"""What low precision costs and saves: one forward in each kind of numbers, and a video of the bundled model.

    python tests/benchmarks/precision.py --dims 128 512 1024                  # forwards, random weights
    python tests/benchmarks/precision.py --dims --frames 36                   # the bundled model's video alone
    python tests/benchmarks/precision.py --dims 5120 --layers 4 --size 832x480 --device cuda --compute bf16

A forward: error against float32 with the same weights (relative, Frobenius), bytes of the weights in memory, and
seconds (CPU seconds on a CPU, the median of runs in turns). A video: PSNR of its frames against the float32 run, same
seed. In 8 bits a sampler takes other turns, so videos differ by more than a forward does. Prints tables and a JSON
line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from continuity import SAMPLES, psnr
from safetensors.torch import save_file
from step import difference, make_config, make_inputs, make_model, prepare, processor, timed

from s2v_core import WanS2VPipeline
from s2v_core.checkpoints.loading import load_model
from s2v_core.config import TransformerConfig
from s2v_core.media.video_io import read_frames
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.ops.eight_bit import KINDS, make_eight_bit
from s2v_core.placement import DTYPES, num_bytes
from s2v_core.request import Request

EXACT = "fp32"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="*", default=[512], help="widths of transformers; none: no forward")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--size", default="64x64", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--latents", type=int, default=20, help="latent frames to denoise")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute", choices=sorted(DTYPES), nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3, help="timed forwards of each after one to warm up")
    parser.add_argument("--frames", type=int, default=0, help="of the bundled model's video; 0: none")
    parser.add_argument("--steps", type=int, help="of that video (default: the model's)")
    return parser.parse_args()


# ---- a forward -------------------------------------------------------------------------------------------------------


def forwards(args: argparse.Namespace, dim: int, folder: Path) -> list[dict[str, object]]:
    """One row for each dtype computed in, and each kind of product."""
    args.dim, args.heads = dim, None
    config, inputs = make_config(args), make_inputs(make_config(args), args)
    file = folder / "transformer.safetensors"
    save_file(make_model(config, "cpu", torch.float32).state_dict(), file)
    models = {
        name: read(file, config, args.device, dtype, matmul)
        for dtype in dict.fromkeys([EXACT, *args.compute])
        for matmul in ("off", *KINDS)
        for name in [dtype if matmul == "off" else f"{dtype}, {matmul}"]
    }
    clips = {name: prepare(model, inputs)[0] for name, model in models.items()}
    t = torch.tensor([700.0], device=args.device)

    def forward(name: str) -> torch.Tensor:
        with torch.no_grad():
            return models[name](inputs["latents"], t, clips[name])

    steps = {name: lambda name=name: forward(name) for name in models}
    spent, outputs = timed(steps, args.repeats, args.device)
    return [
        {
            "dim": dim,
            "tokens": clips[name].layout.total,
            "numbers": name,
            "error": difference(outputs[name], outputs[EXACT]),
            "weight_mb": round(num_bytes(model) / 1e6, 2),
            "seconds": round(spent[name], 4),
        }
        for name, model in models.items()
    ]


def read(file: Path, config: TransformerConfig, device: str, dtype: str, matmul: str) -> WanS2VTransformer:
    model = load_model(
        file, "transformer", lambda: WanS2VTransformer(config),
        dtype=DTYPES[dtype], device=device, eight_bit=make_eight_bit(matmul),
    )  # fmt: skip
    model.compute_dtype = DTYPES[dtype]
    return model


# ---- a video ---------------------------------------------------------------------------------------------------------


def videos(args: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    """The bundled model's sample, PSNR against the exact one."""
    runs = {
        "bf16": {"torch_dtype": torch.bfloat16},
        **{kind: {"matmul": kind} for kind in KINDS},
        "bf16 autoencoder": {"vae_dtype": torch.bfloat16},
    }
    exact = video(args, folder, {})
    return [{"numbers": name, "psnr_db": psnr(video(args, folder, options), exact)} for name, options in runs.items()]


def video(args: argparse.Namespace, folder: Path, options: dict[str, object]) -> np.ndarray:
    settings = {"torch_dtype": torch.float32, **options}
    pipe = WanS2VPipeline.from_pretrained(device_map=args.device, **settings)
    output = folder / "video.mp4"
    pipe.run(Request(
        image=SAMPLES / "drawn.png", audio=SAMPLES / "speech.wav", prompt="a man keeps still, the camera stays still",
        num_frames=args.frames, steps=args.steps, output=output,
    ))  # fmt: skip
    return np.stack(list(read_frames(output)))


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for dim in args.dims for row in forwards(args, dim, Path(folder))]
        clips = videos(args, Path(folder)) if args.frames else []
    if rows:
        print(f"{'dim':>5} {'numbers':12} {'error':>9} {'weights MB':>11} {'seconds':>9}")
    for row in rows:
        print(f"{row['dim']:5} {row['numbers']:12} {row['error']:9.2g} {row['weight_mb']:11} {row['seconds']:9.4f}")
    for clip in clips:
        print(f"{clip['numbers']:18} {clip['psnr_db']} dB")
    on_gpu = args.device.startswith("cuda")
    machine = {
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "clock": "wall" if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps({"forwards": rows, "videos": clips, "frames": args.frames, **machine}))


if __name__ == "__main__":
    main()

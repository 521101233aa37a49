"""Reading the transformer's weights: CPU seconds a GB, and memory beyond the mapped file.

    python tests/benchmarks/load.py                     # the 14B model, as a file of zeros that takes no room on disk
    python tests/benchmarks/load.py --model PATH        # a real file, shard or index

A process of its own builds the model and loads the file as it is stored. "Own memory" is what that adds to the process
beside the file's pages, which the system lends and takes back. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from s2v_core.checkpoints.loading import load_model
from s2v_core.config import WAN_S2V_14B, TransformerConfig
from s2v_core.models.dit import WanS2VTransformer


def cut(layers: int) -> TransformerConfig:
    """The 14B model with fewer blocks."""
    config = WAN_S2V_14B.transformer
    return replace(
        config, num_layers=layers, audio_inject_layers=tuple(i for i in config.audio_inject_layers if i < layers)
    )


def write(path: Path, layers: int) -> None:
    """A safetensors file of zeros in bf16: a header and a hole."""
    model = WanS2VTransformer(cut(layers), device="meta", dtype=torch.bfloat16)
    header, end = {}, 0
    for name, p in model.state_dict().items():
        start, end = end, end + num_bytes(p)
        header[name] = {"dtype": "BF16", "shape": list(p.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def memory() -> dict[str, int]:
    """Bytes of this process: its own, and of files that are mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(found[field].split()[0]) * 1024 for name, field in (("own", "RssAnon"), ("file", "RssFile"))}


def measure(path: Path, layers: int) -> dict[str, float]:
    """In a fresh process."""
    before, start = memory(), time.process_time()
    model = load_model(path, "transformer", lambda: WanS2VTransformer(cut(layers)))
    spent, after = time.process_time() - start, memory()
    size = sum(num_bytes(p) for p in model.parameters())
    return {
        "gb": round(size / 1e9, 3),
        "cpu_seconds": round(spent, 3),
        "cpu_seconds_a_gb": round(spent / size * 1e9, 4),
        "own_memory_mb": round((after["own"] - before["own"]) / 1e6, 1),
        "mapped_mb": round((after["file"] - before["file"]) / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a weight file of the transformer; default: one is made up")
    parser.add_argument("--layers", type=int, default=40, help="blocks of the model that is made up, or of --model")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.layers)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = args.model or Path(folder) / "transformer.safetensors"
        if args.model is None:
            write(path, args.layers)
        words = [sys.executable, __file__, "--measure", str(path), "--layers", str(args.layers)]
        done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    result = json.loads(done.stdout.splitlines()[-1]) | {"torch": torch.__version__}
    for key, value in result.items():
        print(f"{key:32} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()

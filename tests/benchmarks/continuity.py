"""How far `--continuity carry` is from the exact loop: the same job both ways, per clip, with the bundled model.

    python tests/benchmarks/continuity.py --repeat 4

PSNR (dB, higher is closer) of the kept frames of each clip, and the CPU seconds of both runs. The first clip is the
same by construction; later clips differ in their decode and, through the motion frames, in what is denoised.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np

from s2v_core import WanS2VPipeline
from s2v_core.media.video_io import read_frames
from s2v_core.request import Request

SAMPLES = Path(__file__).parents[2] / "samples"


def psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """None for equal pictures."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return round(10 * math.log10(255**2 / error), 2) if error else None


def repeated(sound: Path, times: int, folder: Path) -> Path:
    """A wav file, several times over."""
    target = folder / "sound.wav"
    with wave.open(str(sound)) as source, wave.open(str(target), "wb") as copy:
        copy.setparams(source.getparams())
        copy.writeframes(source.readframes(source.getnframes()) * times)
    return target


def run(pipe: WanS2VPipeline, request: Request, folder: Path) -> tuple[np.ndarray, float]:
    output = folder / f"{request.continuity}.mp4"
    began = time.process_time()
    pipe.run(replace(request, output=output))
    return np.stack(list(read_frames(output))), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=SAMPLES / "face.png")
    parser.add_argument("--audio", type=Path, default=SAMPLES / "speech.wav", help="a wav file")
    parser.add_argument("--repeat", type=int, default=1, help="the sound, so many times over")
    parser.add_argument("--steps", type=int)
    args = parser.parse_args()
    pipe = WanS2VPipeline.from_pretrained(device_map="cpu")
    with tempfile.TemporaryDirectory() as folder:
        sound = repeated(args.audio, args.repeat, Path(folder))
        request = Request(image=args.image, audio=sound, prompt="a person talks to the camera", steps=args.steps)
        (exact, exact_seconds), (carry, carry_seconds) = (
            run(pipe, replace(request, continuity=how), Path(folder)) for how in ("exact", "carry")
        )
        clips = pipe.plan(request).clips
    rows = [
        {"clip": plan.index, "psnr_db": psnr(exact[s], carry[s])}
        for plan in clips
        for s in [slice(plan.first_kept, plan.first_kept + plan.num_kept)]
    ]
    print(f"{'clip':>5} {'PSNR dB':>9}")
    for row in rows:
        print(f"{row['clip']:5d} {'equal' if row['psnr_db'] is None else row['psnr_db']:>9}")
    print(f"CPU seconds: exact {exact_seconds:.1f}, carry {carry_seconds:.1f}")
    print(json.dumps({"clips": rows, "exact_cpu_seconds": exact_seconds, "carry_cpu_seconds": carry_seconds}))


if __name__ == "__main__":
    main()

"""Peak memory of a whole run against the sound's length: the bundled model at a small size, a process per length.

    python tests/benchmarks/memory.py --minutes 1 10

Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from PIL import Image

CHILD = """
import json, resource, sys, time
from s2v_core.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"code": code, "peak_mb": used.ru_maxrss / 1024, "cpu_seconds": used.ru_utime + used.ru_stime}))
"""


def write_sound(path: Path, seconds: float, rate: int = 44_100) -> None:
    """Stereo, swelling and fading, written piece by piece."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        for start in range(0, round(seconds * rate), rate):
            t = np.arange(start, min(start + rate, round(seconds * rate))) / rate
            tone = np.sin(2 * math.pi * 180 * t) * (0.5 - 0.4 * np.cos(5 * math.pi * t))
            file.writeframes(np.repeat((tone * 30_000).astype("<i2")[:, None], 2, axis=1).tobytes())


def measure(minutes: float, folder: Path, size: str, steps: int) -> dict[str, float]:
    sound, face = folder / f"{minutes}.wav", folder / "face.png"
    write_sound(sound, minutes * 60)
    Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8)).save(face)
    words = ["generate", "--image", face, "--audio", sound, "--size", size, "--steps", steps, "--guidance", 1]
    words += ["-o", folder / f"{minutes}.mp4", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, words)], capture_output=True, text=True, env=environment, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["code"] == 0, done.stderr
    return {"minutes": minutes, "frames": math.ceil(minutes * 60 * 16)} | result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(minutes, Path(folder), args.size, args.steps) for minutes in args.minutes]
    print(f"{'minutes':>8} {'frames':>8} {'peak MB':>9} {'CPU s':>8} {'against the first':>18}")
    for row in rows:
        ratio = row["peak_mb"] / rows[0]["peak_mb"]
        print(f"{row['minutes']:8g} {row['frames']:8d} {row['peak_mb']:9.1f} {row['cpu_seconds']:8.1f} {ratio:18.3f}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

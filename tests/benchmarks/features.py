"""Sound features against the sound's length: CPU seconds and peak memory of a whole sound, clip by clip.

    python tests/benchmarks/features.py --minutes 1 5 10
    python tests/benchmarks/features.py --minutes 1 10 --model Wan2.2-S2V-14B

A process per length reads the sound, and asks for the features of 80 frames at a time at 16 a second, as the clip loop
does. "MB" is the process's own memory at its peak, beside it the part beyond what it had with the encoder loaded. Up to
a minute is encoded at once, longer sounds in stretches of 60 s of which 40 s are kept, so their minutes cost 1.5 times
as much; from there on, time is linear when seconds a minute stay the same. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from load import memory
from memory import write_sound

from s2v_core.components import Components
from s2v_core.conditioning.audio import SoundFeatures, num_video_frames
from s2v_core.media.audio_io import open_sound

FPS, CLIP = 16, 80
BLINK = 0.005   # seconds between two looks at the memory


class Peak:
    """The process's own memory at its peak, looked at while a `with` lasts."""

    def __enter__(self) -> Peak:
        self.bytes, self.over = memory()["own"], threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(BLINK):
            self.bytes = max(self.bytes, memory()["own"])

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()


def measure(path: Path, model: Path | None) -> dict[str, float]:
    """In a fresh process."""
    components = Components.find(
        model, dtype=None, device="cpu", attention="auto", offload="auto", loras=(), load_weights=True
    )
    components.hidden_states(torch.zeros(1, 16_000))   # reads the weights
    before = memory()["own"]
    with open_sound(path) as sound, Peak() as peak:
        start = time.process_time()
        features, num_frames = SoundFeatures(sound, components.hidden_states, fps=FPS), num_video_frames(sound, FPS)
        total = sum(features.window(first, first + CLIP).double().sum() for first in range(0, num_frames, CLIP))
        spent = time.process_time() - start
    assert total.isfinite()
    return {
        "frames": num_frames,
        "cpu_seconds": round(spent, 2),
        "mb": round(peak.bytes / 1e6, 1),
        "mb_beyond_the_encoder": round((peak.bytes - before) / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 5, 10])
    parser.add_argument("--model", type=Path, help="default: the bundled one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.model)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.minutes:
            sound = Path(folder) / f"{minutes}.wav"
            write_sound(sound, minutes * 60)
            words = [sys.executable, __file__, "--measure", str(sound)]
            words += ["--model", str(args.model)] if args.model else []
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
            if done.returncode:
                raise SystemExit(done.stderr)
            rows.append({"minutes": minutes} | json.loads(done.stdout.splitlines()[-1]))
            sound.unlink()
    print(f"{'minutes':>8} {'frames':>8} {'CPU s':>8} {'a minute':>9} {'MB':>8} {'beyond':>8} {'to the first':>14}")
    for row in rows:
        a_minute, ratio = row["cpu_seconds"] / row["minutes"], row["mb"] / rows[0]["mb"]
        print(
            f"{row['minutes']:8g} {row['frames']:8d} {row['cpu_seconds']:8.1f} {a_minute:9.2f} {row['mb']:8.1f} "
            f"{row['mb_beyond_the_encoder']:8.1f} {ratio:14.3f}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

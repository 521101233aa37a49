"""What guidance in an interval and the step cache save, and how far their videos are from the exact ones.

    python tests/benchmarks/caching.py --people 1 --steps 40

Drawn people and voices that training never saw, one clip each, with the bundled model: exactly, in every approximate
mode, and with fewer steps that take about as many evaluations as the step cache. Prints, over all people: evaluations
of the model and CPU seconds of the whole run; PSNR (dB, higher is closer) of the frames before they are compressed;
r of the mouth's opening with the exact video's, mean and lowest; and r of the mouth with the loudness of the sound.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sound import write_sound

from s2v_core import WanS2VPipeline
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import to_pictures
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.request import Request
from s2v_core.running.watch import Told
from s2v_core.sampling.presets import LIP_SAFE
from s2v_core.training.measure import compressed_loudness, correlation, mouth_opening
from s2v_core.training.synthetic import FPS, SyntheticClip

SIDE, FRAMES = 128, 77   # one clip


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A video, and what it took."""

    frames: np.ndarray   # [F, H, W, 3] uint8, as they went to the encoder
    evaluations: int
    seconds: float       # of CPU
    loudness: np.ndarray

    @property
    def mouth(self) -> np.ndarray:
        return mouth_opening(self.frames)


@contextmanager
def watched() -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """While it lasts: the evaluations of every step, and the pictures of every clip."""
    evaluations, pictures = [], []
    branches, finished = WanS2VTransformer.branches, Told.clip_finished

    def counted(self, latents, time, clips):
        evaluations.append(len(clips))
        return branches(self, latents, time, clips)

    def kept(self, clip):
        pictures.extend(to_pictures(clip.frames))
        finished(self, clip)

    WanS2VTransformer.branches, Told.clip_finished = counted, kept
    try:
        yield evaluations, pictures
    finally:
        WanS2VTransformer.branches, Told.clip_finished = branches, finished


def make(pipe: WanS2VPipeline, person: SyntheticClip, mode: dict[str, object], folder: Path) -> Made:
    picture, sound = folder / "face.png", folder / "speech.wav"
    Image.fromarray(person.reference).save(picture)
    write_sound(sound, person.waveform)
    size = VideoSize(width=SIDE, height=SIDE)
    request = Request(image=picture, audio=sound, prompt=person.prompt, size=size, output=folder / "video.mp4")
    began = time.process_time()
    with watched() as (evaluations, pictures):
        pipe.run(replace(request, **mode))
    return Made(
        frames=np.stack(pictures),
        evaluations=sum(evaluations),
        seconds=time.process_time() - began,
        loudness=compressed_loudness(person.waveform, FRAMES, FPS),
    )


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def row(name: str, made: list[Made], exact: list[Made]) -> dict[str, object]:
    against = [correlation(m.mouth, e.mouth) for m, e in zip(made, exact, strict=True)]
    return {
        "mode": name,
        "evaluations": float(np.mean([m.evaluations for m in made])),
        "cpu_seconds": float(np.mean([m.seconds for m in made])),
        "psnr": float(np.mean([psnr(m.frames, e.frames) for m, e in zip(made, exact, strict=True)])),
        "mouth_r": float(np.mean(against)),
        "mouth_r_lowest": float(np.min(against)),
        "loudness_r": float(np.mean([correlation(m.mouth, m.loudness) for m in made])),
    }


def fewer_steps(steps: int, exact: Made, cached: Made) -> int:
    """Steps of an exact run that makes about as many evaluations as the cached one."""
    return max(1, round(steps * cached.evaluations / exact.evaluations))


def table(rows: list[dict[str, object]]) -> str:
    lines = [
        "| mode | evaluations | CPU s | PSNR | mouth r with exact: mean, lowest | mouth r with loudness |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        close = "" if r["mode"] == "exact" else f"{r['psnr']:.1f} dB"
        mouth = "" if r["mode"] == "exact" else f"{r['mouth_r']:.3f}, {r['mouth_r_lowest']:.3f}"
        lines.append(
            f"| {r['mode']} | {r['evaluations']:.0f} | {r['cpu_seconds']:.1f} | {close} | {mouth} "
            f"| {r['loudness_r']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threshold", type=float, default=LIP_SAFE, help="of the step cache")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.2, 0.8), metavar=("LOW", "HIGH"))
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    pipe = WanS2VPipeline.from_pretrained(device_map="cpu")
    people = [SyntheticClip(i, num_frames=FRAMES, width=SIDE, height=SIDE, held_out=True) for i in range(args.people)]
    interval = (args.interval[0], args.interval[1])
    modes: dict[str, dict[str, object]] = {
        "exact": {},
        f"step cache {args.threshold:g}": {"step_cache": args.threshold},
        "guidance at {:g} to {:g}".format(*interval): {"guidance_interval": interval},
        "both": {"step_cache": args.threshold, "guidance_interval": interval},
    }
    made: dict[str, list[Made]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make(pipe, people[0], {"steps": 1}, Path(folder))   # weights are read, tables made
        for person in people:
            for name, mode in modes.items():
                made.setdefault(name, []).append(make(pipe, person, {"steps": args.steps, **mode}, Path(folder)))
            fewer = fewer_steps(args.steps, made["exact"][0], list(made.values())[1][0])
            alone = make(pipe, person, {"steps": fewer}, Path(folder))
            made.setdefault(f"exact, {fewer} steps", []).append(alone)
            rows = [row(name, videos, made["exact"]) for name, videos in made.items()]
            print(f"{len(made['exact'])} of {args.people} people\n{table(rows)}", file=sys.stderr, flush=True)
    print(table(rows))
    about = {
        "people": args.people, "steps": args.steps, "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    rows = [{k: None if v == math.inf else v for k, v in r.items()} for r in rows]
    print(json.dumps({"benchmark": "caching", **about, "rows": rows}))


if __name__ == "__main__":
    main()

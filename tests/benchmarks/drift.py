"""How far colours drift over many clips, with and without matching them to the picture.

    python tests/benchmarks/drift.py --clips 10

The same job with each `--match-colour`. Per clip: the distance in CIELAB between a patch of its frames and the same
patch of the reference picture, mean over pixels and frames, read back from the finished file. The patch should be
background that does not move: the picture's upper left corner, unless --patch says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from continuity import SAMPLES, repeated
from torch import Tensor

from s2v_core import WanS2VPipeline
from s2v_core.conditioning.image import fit_picture
from s2v_core.geometry import VideoSize
from s2v_core.media.image_io import read_picture
from s2v_core.media.video_io import read_frames, to_pictures
from s2v_core.request import Request
from s2v_core.running.plan import JobPlan
from s2v_core.types import COLOR_MATCHES
from s2v_core.video.color import to_lab

CLIP_SECONDS = 5.0   # 80 frames at 16 per second


def lab_patch(picture: np.ndarray, box: tuple[float, ...]) -> Tensor:
    """[3, N] CIELAB of a part of a picture: left, top, right, bottom as fractions of it."""
    height, width = picture.shape[:2]
    left, top, right, bottom = (round(side * whole) for side, whole in zip(box, (width, height) * 2, strict=True))
    part = picture[top:bottom, left:right].reshape(-1, 3).T.astype(np.float32) / 255
    return to_lab(torch.from_numpy(part))


def seconds_of(sound: Path) -> float:
    with wave.open(str(sound)) as file:
        return file.getnframes() / file.getframerate()


def drift(output: Path, plan: JobPlan, reference: np.ndarray, box: tuple[float, ...]) -> Iterator[float]:
    """The distance of each clip."""
    target, frames = lab_patch(reference, box), read_frames(output)
    for clip in plan.clips:
        distances = [(lab_patch(next(frames), box) - target).norm(dim=0).mean() for _ in range(clip.num_kept)]
        yield float(torch.stack(distances).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--image", type=Path, default=SAMPLES / "drawn.png")
    parser.add_argument("--audio", type=Path, default=SAMPLES / "speech.wav", help="a wav file; repeated as needed")
    parser.add_argument("--prompt", default="a man with green hair and glasses keeps still, the camera stays still")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--size", help="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--patch", default="0,0,0.2,0.2", help="left,top,right,bottom as fractions of the picture")
    args = parser.parse_args()
    box = tuple(float(side) for side in args.patch.split(","))
    size = None
    if args.size:
        width, height = args.size.split("x")
        size = VideoSize(width=int(width), height=int(height))
    pipe = WanS2VPipeline.from_pretrained(args.model, device_map=args.device)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            image=args.image,
            audio=repeated(args.audio, math.ceil(args.clips * CLIP_SECONDS / seconds_of(args.audio)), Path(folder)),
            prompt=args.prompt,
            size=size,
            steps=args.steps,
            num_frames=80 * args.clips - 3,
        )
        for method in COLOR_MATCHES:
            output = Path(folder) / f"{method}.mp4"
            plan = pipe.plan(replace(request, output=output))
            pipe.run(replace(request, match_colour=method, output=output))
            reference = next(to_pictures(fit_picture(read_picture(args.image), plan.size)))
            rows[method] = [round(distance, 2) for distance in drift(output, plan, reference, box)]
            print(f"{method:>4}  " + "  ".join(f"{distance:6.2f}" for distance in rows[method]), flush=True)
    print(json.dumps({"lab_distance_by_clip": rows, "patch": args.patch}))


if __name__ == "__main__":
    main()

"""Drawn talking heads re-dubbed: does the mouth follow the new sound, in time, and does all else stay as it was?

    python tests/benchmarks/dub.py --rates 24 25 30000/1001 30 --seconds 5 --seeds 1 2

For each frame rate a shot of a head that speaks is rendered and encoded, and dubbed with another voice's sentence. Of
the pictures as they go to the encoder are measured: the share of pixels outside the mask that differ from the decoded
shot (must be 0); the correlation of the mouth's opening with the loudness of the new sound and of the old one, and by
how many frames it comes late; and the same of the shot itself with its own sound, for comparison.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import numpy as np
from sound import write_sound

from s2v_core import WanS2VPipeline
from s2v_core.dub.masks import LowerFace
from s2v_core.dub.request import DubRequest
from s2v_core.dub.run import Dubber
from s2v_core.media.video_io import PixelTags, probe_video, read_frames
from s2v_core.training import synthetic
from s2v_core.training.measure import best_lag, compressed_loudness, correlation, mouth_opening
from s2v_core.video import fill

SIDE = 128


def head(seed: int, rate: Fraction, seconds: float, **settings: object) -> synthetic.SyntheticClip:
    """Somebody whom training never sees, drawn at a rate other than the generator's own."""
    with mock.patch.object(synthetic, "FPS", float(rate)):
        return synthetic.SyntheticClip(
            seed, num_frames=round(seconds * rate), width=SIDE, height=SIDE, held_out=True, **settings
        )


def drawn(clip: synthetic.SyntheticClip, rate: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """[F, H, W, 3] frames and [F, 4] head boxes, in shares of the picture."""
    with mock.patch.object(synthetic, "FPS", float(rate)):
        return clip.frames(), (clip.face_boxes()[:, 0] / SIDE).clip(0, 1)


def write_shot(folder: Path, frames: np.ndarray, boxes: np.ndarray, rate: Fraction) -> None:
    with av.open(str(folder / "shot.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "14"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("frame", "left", "top", "right", "bottom"), *((k, *box) for k, box in enumerate(boxes.tolist()))]
        )


@contextmanager
def listening() -> Iterator[list[np.ndarray]]:
    """Every picture as it goes to the encoder."""
    seen: list[np.ndarray] = []
    write = fill.write_segment

    def write_and_keep(path: Path, pictures: Iterator[np.ndarray], *, fps: float, tags: PixelTags) -> None:
        taken = list(pictures)
        seen.extend(taken)
        write(path, taken, fps=fps, tags=tags)

    with mock.patch.object(fill, "write_segment", write_and_keep):
        yield seen


def changed_outside(result: np.ndarray, shot: np.ndarray, boxes: np.ndarray) -> float:
    """Share of the pixels outside the lower face that are not the shot's own."""
    whole = (0, 0, SIDE, SIDE)
    outside = ~np.stack([LowerFace().hard(k, 0.0, tuple(box * SIDE), whole) for k, box in enumerate(boxes)])
    return float((result != shot).any(-1)[outside].mean())


def measure(dubber: Dubber, rate: Fraction, seed: int, args: argparse.Namespace, folder: Path) -> list[object]:
    clip = head(seed, rate, args.seconds)
    new = head(seed + 1000, rate, args.seconds).waveform
    frames, boxes = drawn(clip, rate)
    write_shot(folder, frames, boxes, rate)
    write_sound(folder / "new.wav", new)
    request = DubRequest(
        video=folder / "shot.mp4", audio=folder / "new.wav", output=folder / "out.mp4", face_box=folder / "boxes.csv",
        prompt=clip.prompt, steps=args.steps, guidance_scale=args.guidance, sync_strength=args.sync_strength,
        draw_every=args.draw_every, seed=seed,
    )  # fmt: skip
    began = time.process_time()
    with listening() as seen:
        result = dubber.run(request)
    spent = time.process_time() - began
    if args.keep:
        (args.keep / f"dub_{float(rate):.5g}_{seed}.mp4").write_bytes(request.output.read_bytes())
    pictures, shot = np.stack(seen), np.stack(list(read_frames(folder / "shot.mp4")))
    assert probe_video(request.output).num_frames == result.num_frames == len(shot)
    fps = float(rate)
    heard = {"new": new, "old": clip.waveform}
    loud = {name: compressed_loudness(sound, len(shot), fps) for name, sound in heard.items()}
    mouth = mouth_opening(pictures)
    before = mouth_opening(shot)
    return [
        f"{fps:.5g}", seed, f"{changed_outside(pictures, shot, boxes):.6f}",
        f"{correlation(mouth, loud['new']):.2f}", f"{correlation(mouth, loud['old']):.2f}",
        f"{best_lag(mouth, loud['new'])[0]:+d}",
        f"{correlation(before, loud['old']):.2f}", f"{best_lag(before, loud['old'])[0]:+d}",
        f"{correlation(loud['old'], loud['new']):.2f}", f"{spent:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", nargs="+", default=["24", "25", "30000/1001", "30"], metavar="FPS")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sync-strength", type=float, default=1.0)
    parser.add_argument("--draw-every", type=int)
    parser.add_argument("--model", help="a folder; the bundled model without it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="a folder for the videos")
    args = parser.parse_args()
    dubber = Dubber(WanS2VPipeline.from_pretrained(args.model, device_map=args.device).components)
    print("| fps | seed | changed outside | r new | r old | late, frames | shot: r | late | r of sounds | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for rate in args.rates:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(dubber, Fraction(rate), seed, args, Path(folder))
            print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


if __name__ == "__main__":
    main()

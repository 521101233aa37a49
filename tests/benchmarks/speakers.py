"""Whether each of several faces follows its own voice: two voices in pictures of two and three people never trained on.

    python tests/benchmarks/speakers.py --out speakers            # generates with the bundled model
    python tests/benchmarks/speakers.py --out truth --truth       # measures the drawn clips: the best there is

Every person but the third has a voice and a box around the head, as a user would draw it; the third has neither.
Prints a table with the goals; exit code 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sound import write_sound

from s2v_core import WanS2VPipeline
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import read_frames
from s2v_core.request import Request
from s2v_core.speakers import Speaker
from s2v_core.training.measure import best_lag, compressed_loudness, correlation, mouth_opening
from s2v_core.training.synthetic import FPS, SyntheticClip

VOICES = 2
ROOM = 0.15     # around a head, of its sides
SHUT = 0.012    # squares of the face's width: less dark than this is a shut mouth


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One face of one video."""

    name: str
    own: float | None      # r of its mouth with its own voice; None: it has none
    other: float | None    # with the other voice
    lag: int
    shut: float            # share of frames


def drawn(seed: int, options: argparse.Namespace) -> SyntheticClip:
    num_faces = 2 + seed % 2
    return SyntheticClip(
        seed, num_frames=round(options.seconds * FPS), width=options.width, height=options.height,
        num_faces=num_faces, held_out=True, silent=[i >= VOICES for i in range(num_faces)],
    )  # fmt: skip


def heads(clip: SyntheticClip) -> np.ndarray:
    """[P, 4] a box around each head as the clip begins, in pixels of the picture."""
    boxes = clip.face_boxes(0, 1)[0]
    room = ROOM * (boxes[:, 2:] - boxes[:, :2])
    sides = np.asarray([clip.width, clip.height] * 2)
    return np.concatenate([boxes[:, :2] - room, boxes[:, 2:] + room], axis=-1).clip(0, sides)


def make(clip: SyntheticClip, name: str, pipe: WanS2VPipeline, options: argparse.Namespace) -> np.ndarray:
    """[F, H, W, 3] of the video that the model makes of a clip's picture and voices."""
    folder, output = options.out, options.out / f"{name}.mp4"
    if not output.exists():
        Image.fromarray(clip.reference).save(folder / f"{name}.png")
        speakers = []
        for i, box in enumerate(heads(clip)[:VOICES]):
            voice = folder / f"{name}-{i + 1}.wav"
            write_sound(voice, clip.waveforms[i])
            speakers.append(Speaker(audio=voice, region=tuple(float(side) for side in box)))
        pipe.run(
            Request(
                image=folder / f"{name}.png", speakers=tuple(speakers), prompt=clip.prompt, output=output,
                size=VideoSize(width=clip.width, height=clip.height), steps=options.steps,
                guidance_scale=options.guidance, sync_strength=options.sync_strength,
            )  # fmt: skip
        )
    return np.stack(list(read_frames(output)))


def measured(frames: np.ndarray, clip: SyntheticClip, name: str) -> list[Row]:
    loudness = [compressed_loudness(sound, len(frames), FPS) for sound in clip.waveforms[:VOICES]]
    rows = []
    for i, head in enumerate(heads(clip)):   # with the shirts, a column's skin would be what a pink shirt is too
        mouth = mouth_opening(frames, tuple(head))
        speaks = i < VOICES
        rows.append(
            Row(
                name=f"{name}-{i + 1}",
                own=correlation(mouth, loudness[i]) if speaks else None,
                other=correlation(mouth, loudness[1 - i]) if speaks else None,
                lag=best_lag(mouth, loudness[i])[0] if speaks else 0,
                shut=float(np.mean(mouth < SHUT)),
            )
        )
    return rows


def goals(rows: list[Row]) -> list[tuple[str, float, str, bool]]:
    own = np.asarray([row.own for row in rows if row.own is not None])
    other = np.asarray([row.other for row in rows if row.other is not None])
    silent = [row.shut for row in rows if row.own is None]
    lags = np.asarray([row.lag for row in rows if row.own is not None])
    lines = [
        ("mouth and its own voice, mean r", own.mean(), "", True),
        ("mouth and its own voice, worst r", own.min(), "0.7 or more", own.min() >= 0.7),
        ("mouth and the other voice, mean r", other.mean(), "", True),
        ("mouth and the other voice, largest r", other.max(), "0.25 or less", other.max() <= 0.25),
        ("faces whose best lag is 0 frames", np.mean(lags == 0), "", True),
    ]
    if silent:
        lines.append(("frames shut of faces without a voice", np.mean(silent), "0.95 or more", np.mean(silent) >= 0.95))
    return [(name, round(float(value), 3), goal, bool(reached)) for name, value, goal, reached in lines]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for videos and figures")
    parser.add_argument("--model", type=Path, help="default: the bundled one")
    parser.add_argument("--videos", type=int, default=8, help="pictures of two and three people by turns")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sync-strength", type=float, default=1.0)
    parser.add_argument("--truth", action="store_true", help="measure the drawn clips, make none")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pipe = None if options.truth else WanS2VPipeline.from_pretrained(options.model, device_map="cpu")
    rows: list[Row] = []
    for seed in range(options.videos):
        clip, name = drawn(seed, options), f"video-{seed:02}"
        rows += measured(clip.frames() if pipe is None else make(clip, name, pipe, options), clip, name)
    lines = goals(rows)
    figures = {"table": lines, "faces": [[row.name, row.own, row.other, row.lag, row.shut] for row in rows]}
    (options.out / "speakers.json").write_text(json.dumps(figures, indent=1))
    for name, value, goal, reached in lines:
        print(f"{name:44} {value:7.3f}  {goal:14} {'' if reached else 'missed'}")
    return 0 if all(reached for *_, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

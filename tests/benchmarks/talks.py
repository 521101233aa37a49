"""Whether the bundled model talks: lip-sync, silence, identity and obedience, measured from pixels on unseen people.

    python tests/benchmarks/talks.py --workers 2 --out talks

Draws faces and voices that training never saw, makes a video of each with the model as `generate` does, and measures
the mp4s with `s2v_core.training.measure`, which knows nothing of the drawing. Prints a table with the goals, and
writes it with every figure to OUT/talks.json, and a film strip to OUT/strip.png. Exit code 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sound import write_sound

from s2v_core import WanS2VPipeline
from s2v_core.config import SAMPLE_RATE
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import read_frames
from s2v_core.request import Request
from s2v_core.training.measure import (
    best_lag,
    compressed_loudness,
    correlation,
    identity_error,
    motion,
    mouth_opening,
)
from s2v_core.training.synthetic import FPS, SyntheticClip

SPOKEN = 1.5            # seconds
SETTLED = 2.0           # seconds from where on a mouth that has fallen silent is looked at
HISS = 1e-3             # of full scale
SHUT = 0.012            # squares of the face's width: less dark than this is a shut mouth
CLIP = 80               # frames
MOTIONS = {"still": ("still", "still"), "nods": ("nods", "still"), "shakes": ("shakes", "still"),
           "moves in": ("still", "moves in")}   # head and camera of the four kinds  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One video: who is seen, whose sound is heard, and what is to happen."""

    name: str
    face: int                    # seeds of held-out clips
    voice: int | None            # None: a faint hiss
    num_frames: int
    motion: str | None = None    # one of MOTIONS; None: what the clip's own seed says
    falls_silent: bool = False   # after SPOKEN seconds


@cache
def pipeline(model: Path | None) -> WanS2VPipeline:
    return WanS2VPipeline.from_pretrained(model, device_map="cpu")


@cache
def held_out(seed: int, num_frames: int, side: int, kind: str | None) -> SyntheticClip:
    head, camera = (None, None) if kind is None else MOTIONS[kind]
    return SyntheticClip(
        seed, num_frames=num_frames, width=side, height=side, held_out=True, motion=head, camera=camera
    )


def sound_of(task: Task, side: int) -> np.ndarray:
    """[S] at 16 kHz."""
    if task.voice is None:
        noise = np.random.default_rng(task.face).standard_normal(round(task.num_frames * SAMPLE_RATE / FPS))
        return (HISS * noise).astype(np.float32)
    sound = held_out(task.voice, task.num_frames, side, None).waveform.copy()
    if task.falls_silent:
        sound[round(SPOKEN * SAMPLE_RATE) :] = 0
    return sound


def make(task: Task, *, side: int, steps: int | None, guidance: float | None, model: Path | None, folder: Path) -> Path:
    """Generate a task's mp4, unless it is there."""
    output = folder / f"{task.name}.mp4"
    if output.exists():
        return output
    clip = held_out(task.face, task.num_frames, side, task.motion)
    picture, sound = folder / f"{task.name}.png", folder / f"{task.name}.wav"
    Image.fromarray(clip.reference).save(picture)
    write_sound(sound, sound_of(task, side))
    request = Request(
        image=picture,
        audio=sound,
        prompt=clip.prompt,
        size=VideoSize(width=side, height=side),
        steps=steps,
        guidance_scale=guidance,
        output=output,
    )
    pipeline(model).run(request)
    return output


def measured(task: Task, path: Path, side: int) -> dict[str, object]:
    """What is seen in a finished video."""
    frames = np.stack(list(read_frames(path)))
    clip = held_out(task.face, task.num_frames, side, task.motion)
    mouth = mouth_opening(frames)
    errors = identity_error(frames, clip.reference)
    seen = motion(frames, FPS)
    return {
        "mouth": mouth,
        "shut": float(np.mean(mouth[round(SETTLED * FPS) if task.falls_silent else 0 :] < SHUT)),
        "identity_first": float(errors[:CLIP].mean()),
        "identity_last": float(errors[-CLIP:].mean()),
        "head": seen.head,
        "camera": seen.camera,
        "swing": {"nod": seen.nod, "shake": seen.shake, "zoom": seen.zoom, "pan": seen.pan},
    }


def work(task: Task, *, side: int, **settings: object) -> tuple[Task, dict[str, object]]:
    return task, measured(task, make(task, side=side, **settings), side)


def plan(options: argparse.Namespace) -> list[Task]:
    whole, short = round(options.seconds * FPS), 5 * FPS
    pairs = range(options.pairs)
    tasks = [Task(name=f"pair-{i:02}", face=i, voice=i, num_frames=whole) for i in pairs]
    swaps = [
        Task(name=f"swap-{i:02}", face=i, voice=(i + 1) % options.pairs, num_frames=whole)
        for i in range(min(options.swaps, options.pairs))
    ]
    silent = [
        Task(name=f"silent-{i:02}", face=i, voice=None if i % 2 else i, num_frames=whole, falls_silent=i % 2 == 0)
        for i in range(options.silent)
    ]
    directed = [
        Task(name=f"motion-{i:02}-{kind.replace(' ', '-')}", face=i, voice=i, num_frames=short, motion=kind)
        for i in range(options.motions)
        for kind in MOTIONS
    ]
    return [*tasks, *swaps, *silent, *directed]


def told_as(seen: dict[str, object]) -> str:
    """Which of the four kinds a video looks like."""
    if seen["camera"] == "moves in" and seen["head"] == "still":
        return "moves in"
    return str(seen["head"]) if seen["camera"] == "still" else f"{seen['head']}, camera {seen['camera']}"


def score(results: Iterable[tuple[Task, dict[str, object]]], side: int) -> dict[str, object]:
    """Every figure of the table, and those behind them."""
    rows: dict[str, list[dict[str, object]]] = {"pair": [], "swap": [], "silent": [], "motion": []}
    for task, seen in results:
        kind = task.name.split("-")[0]
        loudness = compressed_loudness(sound_of(task, side), task.num_frames, FPS)
        row = {"name": task.name, **{name: value for name, value in seen.items() if name != "mouth"}}
        if kind in ("pair", "swap"):
            lag, by_lag = best_lag(seen["mouth"], loudness)
            row |= {"r": by_lag[0], "lag": lag, "by_lag": by_lag}
            row["others"] = [
                correlation(seen["mouth"], compressed_loudness(other, task.num_frames, FPS))
                for i in range(3)
                for other in [held_out(1000 + 3 * task.face + i, task.num_frames, side, None).waveform]
            ]
        if kind == "swap":
            own = held_out(task.face, task.num_frames, side, None).waveform
            row["r_old"] = correlation(seen["mouth"], compressed_loudness(own, task.num_frames, FPS))
        row["falls_silent"] = task.falls_silent
        if kind == "motion":
            row |= {"meant": task.motion, "told": told_as(seen)}
        rows[kind].append(row)
    return rows


def table(rows: dict[str, list[dict[str, object]]]) -> list[tuple[str, float, str, bool]]:
    """Name, value, goal, and whether it is reached; parts that were not asked for are left out."""
    lines = []

    def add(name: str, value: float, goal: str, reached: bool) -> None:
        lines.append((name, round(float(value), 3), goal, bool(reached)))

    if pairs := rows["pair"]:
        r = np.asarray([row["r"] for row in pairs])
        others = np.asarray([row["others"] for row in pairs])
        lags = [row["lag"] for row in pairs]
        first, last = (np.mean([row[f"identity_{k}"] for row in pairs]) for k in ("first", "last"))
        add("mouth and loudness, mean r", r.mean(), "0.88 or more", r.mean() >= 0.88)
        add("mouth and loudness, worst r", r.min(), "0.75 or more", r.min() >= 0.75)
        add("another clip's sound, mean r", others.mean(), "below 0.25", others.mean() < 0.25)
        add("another clip's sound, largest mean of a pair", others.mean(1).max(), "", True)
        add("pairs whose best lag is 0 frames", np.mean(np.asarray(lags) == 0), "all", all(lag == 0 for lag in lags))
        add("identity: colour error of the first clip", first, "", True)
        add("identity: last clip's over the first's", last / first, "1.1 or less", last <= 1.1 * first)
    if swaps := rows["swap"]:
        new, old = (np.asarray([row[name] for row in swaps]) for name in ("r", "r_old"))
        add("sound swapped: r with the new, mean", new.mean(), "0.88 or more", new.mean() >= 0.88)
        add("sound swapped: r with the old, mean", old.mean(), "below 0.25", old.mean() < 0.25)
    if silent := rows["silent"]:
        shut = np.mean([row["shut"] for row in silent if row["falls_silent"]])
        add("silence after speech: frames with the mouth shut", shut, "0.95 or more", shut >= 0.95)
        if hissed := [row["shut"] for row in silent if not row["falls_silent"]]:
            add("nothing but a faint hiss: frames with the mouth shut", np.mean(hissed), "", True)
    if directed := rows["motion"]:
        right = np.mean([row["meant"] == row["told"] for row in directed])
        add("motion told from the pixels as the prompt says", right, "0.9 or more", right >= 0.9)
    return lines


def strip(tasks: list[Task], folder: Path, side: int, path: Path, count: int = 12) -> None:
    """Consecutive frames of some videos, every second one, the loudness under each."""
    bars = 24
    sheet = Image.new("RGB", (count * side, len(tasks) * (side + bars)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, task in enumerate(tasks):
        frames = list(read_frames(folder / f"{task.name}.mp4"))
        loudness = compressed_loudness(sound_of(task, side), task.num_frames, FPS)
        start = len(frames) // 2
        for k in range(count):
            index, top = start + 2 * k, row * (side + bars)
            sheet.paste(Image.fromarray(frames[index]), (k * side, top))
            height = round((bars - 4) * min(1.0, loudness[index] / loudness.max()))
            draw.rectangle((k * side + 8, top + side + bars - 2 - height, (k + 1) * side - 8, top + side + bars - 2),
                           fill=(60, 110, 180))  # fmt: skip
    sheet.save(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a small model in our layout; default: the bundled one")
    parser.add_argument("--pairs", type=int, default=20, help="people with their own voices")
    parser.add_argument("--swaps", type=int, default=6, help="of them, with the next one's voice")
    parser.add_argument("--silent", type=int, default=6, help="of them, half falling silent, half hearing a hiss")
    parser.add_argument("--motions", type=int, default=10, help="of them, told to keep still, nod, shake, come nearer")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread")
    parser.add_argument("--out", type=Path, default=Path("talks"), help="videos that are there are not made again")
    return parser.parse_args()


def main() -> int:
    options = parse()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    options.out.mkdir(parents=True, exist_ok=True)
    tasks = plan(options)
    job = partial(
        work,
        side=options.side,
        steps=options.steps,
        guidance=options.guidance,
        model=options.model,
        folder=options.out,
    )
    results, began = [], time.monotonic()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for task, seen in pool.map(job, tasks):
            results.append((task, seen))
            print(f"\r{len(results)}/{len(tasks)} videos, {time.monotonic() - began:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    rows = score(results, options.side)
    lines = table(rows)
    print("| measured | value | goal | |\n|---|---|---|---|")
    for name, value, goal, reached in lines:
        print(f"| {name} | {value:.3f} | {goal} | {('reached' if reached else 'MISSED') if goal else ''} |")
    (options.out / "talks.json").write_text(json.dumps({"table": lines, **rows}, indent=1))
    strip(tasks[: min(3, options.pairs)], options.out, options.side, options.out / "strip.png")
    return 0 if all(reached for *_, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

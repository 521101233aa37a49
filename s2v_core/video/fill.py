"""Filling a take: the clips that it lacks are made one after the other, each on disk before the next begins.

Knows the loop, the take and the segments' format; not who watches, nor who lends the models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from ..config import SAMPLE_RATE
from ..media.audio_io import Samples
from ..media.video_io import to_pictures, write_segment
from ..types import ClipPlan, ClipSettings, Conditioning, DecodedClip, Denoiser, VideoCodec
from .color import Grade
from .generate import generate_clips
from .take import Take


class Watch(Protocol):
    """Who is told how far a take is. Each of these may raise `Interrupted`."""

    def clip_started(self, plan: ClipPlan) -> None: ...
    def step(self, done: int, total: int) -> None: ...
    def clip_finished(self, clip: DecodedClip) -> None: ...


Pictures = Callable[[ClipPlan, Tensor], Iterable[np.ndarray]]
"""`pictures(plan, frames [1, 3, F, H, W] in [-1, 1])` -> pictures [H, W, 3] uint8, one at a time."""


def as_drawn(plan: ClipPlan, frames: Tensor) -> Iterable[np.ndarray]:
    return to_pictures(frames)


def fill_take(
    take: Take,
    plans: Sequence[ClipPlan],
    conditioning: Conditioning,
    denoiser: Denoiser,
    codec: VideoCodec,
    settings: ClipSettings,
    *,
    continuity: str,
    decoder_reach: int,
    watch: Watch,
    pictures: Pictures = as_drawn,
    grade: Grade | None = None,
) -> None:
    """Make the clips of `plans` that `take` lacks. Arguments as for `generate_clips`.

    The plans may be a part of the take: they are numbered on from the clips before them, and see none of these.

    Args:
        pictures: of a finished clip, as they are written; its frames themselves, as a rule.

    Raises: OutputError when the disk gives out; finished clips are kept, whatever ends this.
    """
    done = max(0, take.num_finished - plans[0].index)
    todo = plans[done:]
    if not todo:
        return
    past = replace(take.past(), num_clips=done) if done else None

    def write(path: Path, frames: Tensor) -> None:
        write_segment(path, pictures(plan, frames), fps=settings.fps)

    clips = generate_clips(
        plans, conditioning, denoiser, codec, settings,
        continuity=continuity, past=past, decoder_reach=decoder_reach, on_step=watch.step, grade=grade,
    )  # fmt: skip
    for plan in todo:
        watch.clip_started(plan)
        clip = next(clips)
        take.add(clip, write)
        watch.clip_finished(clip)
        del clip   # a clip of frames is large, and the next one is made while this name lives


def sound_digest(sound: Samples, plan: ClipPlan, fps: float) -> str:
    """What tells the sound that drives a clip from other sound: its samples from the clip's first frame to its last."""
    start, stop = (frame * SAMPLE_RATE / fps for frame in (plan.start_frame, plan.stop_frame))
    first, last = max(0, math.floor(start)), min(sound.num_samples, math.ceil(stop))
    return hashlib.sha256(sound.read(first, max(first, last)).tobytes()).hexdigest()

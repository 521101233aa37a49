"""Filling a take: the clips that it lacks are made one after the other; while one goes to disk, the next is begun.

Knows the loop, the take and the segments' format; not who watches, nor who lends the models.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from torch import Tensor, device

from ..config import SAMPLE_RATE
from ..media.audio_io import Samples
from ..media.video_io import AS_DRAWN, PixelTags, to_pictures, write_segment
from ..placement import free_memory
from ..types import ClipPlan, ClipSettings, Conditioning, DecodedClip, Denoiser, VideoCodec
from .color import Grade
from .generate import generate_clips
from .take import Take

log = logging.getLogger(__name__)

ROOM = 4   # clips' worth of frames that must be free in RAM for one to go to disk beside the next one's beginning


class Watch(Protocol):
    """Who is told how far a take is. Each of these may raise `Interrupted`.

    A clip is finished when it is on disk: before the next one is started, or before that one's first step is told.
    """

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
    tags: PixelTags = AS_DRAWN,
    one_by_one: bool = False,
    grade: Grade | None = None,
) -> None:
    """Make the clips of `plans` that `take` lacks. Arguments as for `generate_clips`.

    The plans may be a part of the take: they are numbered on from the clips before them, and see none of these.

    Args:
        pictures: of a finished clip, as they are written; its frames themselves, as a rule.
        tags: what their pixels are.
        one_by_one: each clip is on disk before anything of the next is made; for `pictures` that read what the loop
            reads too.

    Raises: OutputError when the disk gives out; finished clips are kept, whatever ends this.
    """
    done = max(0, take.num_finished - plans[0].index)
    todo = plans[done:]
    if not todo:
        return
    past = replace(take.past(), num_clips=done) if done else None

    def store(clip: DecodedClip) -> None:
        def write(path: Path, frames: Tensor) -> None:
            write_segment(path, pictures(clip.plan, frames), fps=settings.fps, tags=tags)

        take.add(clip, write)

    with _Storing(store, watch) as storing:
        clips = generate_clips(
            plans, conditioning, denoiser, codec, settings,
            continuity=continuity, past=past, decoder_reach=decoder_reach, on_step=storing.step, grade=grade,
        )  # fmt: skip
        for plan in todo:
            watch.clip_started(plan)
            storing.put(next(clips))
            if one_by_one:
                storing.settle()


class _Storing:
    """Clips on their way to disk, one at a time, on a thread beside the next one's first denoising step.

    Encoding and writing need nothing of the loop, and the loop nothing of them; the clip's frames stay in memory until
    they are done. Leaving waits for them, whatever happened: what was made is kept.
    """

    def __init__(self, store: Callable[[DecodedClip], None], watch: Watch) -> None:
        self.store = store
        self.watch = watch
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="storing")
        self.pending: tuple[DecodedClip, Future[None]] | None = None

    def put(self, clip: DecodedClip) -> None:
        self.settle()
        self.pending = clip, self.thread.submit(self.store, clip)
        if free_memory(device("cpu")) < ROOM * clip.frames.nbytes:
            self.settle()

    def step(self, done: int, total: int) -> None:
        self.settle()
        self.watch.step(done, total)

    def settle(self) -> None:
        """Until the clip that was put last is on disk. Raises: what storing it raised."""
        if self.pending is None:
            return
        clip, stored = self.pending
        stored.result()
        self.pending = None
        self.watch.clip_finished(clip)

    def __enter__(self) -> _Storing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.shutdown()
        if error is None:
            self.settle()
        elif self.pending is not None and (other := self.pending[1].exception()) not in (None, error):
            log.warning("%s", other)


def sound_digest(sound: Samples, plan: ClipPlan, fps: float) -> str:
    """What tells the sound that drives a clip from other sound: its samples from the clip's first frame to its last."""
    start, stop = (frame * SAMPLE_RATE / fps for frame in (plan.start_frame, plan.stop_frame))
    first, last = max(0, math.floor(start)), min(sound.num_samples, math.ceil(stop))
    return hashlib.sha256(sound.read(first, max(first, last)).tobytes()).hexdigest()

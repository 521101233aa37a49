"""Windows in batches: which windows batch k holds is decided by the seed and k, and by nothing else.

Knows files of windows; not the model or the step that a batch is for.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from ..config import TransformerConfig
from ..errors import CheckpointError, ConfigError
from .objective import Batch
from .windows import CONTINUING, FIRST, Window, WindowEntry, batch_windows, load_window, read_entry

log = logging.getLogger(__name__)

AHEAD = 4   # batches that are made before they are asked for


class Windows(Protocol):
    """Windows that are known, and can be had one by one."""

    entries: list[WindowEntry]
    num_skipped: int   # that turned out to be unusable

    def load(self, path: Path) -> Window:
        """Raises: CheckpointError for a window that cannot be had."""
        ...


class KeptWindows:
    """Windows on disk; files that cannot be read are logged and left out."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.entries = []
        for path in paths:
            try:
                self.entries.append(read_entry(path))
            except CheckpointError as error:
                log.warning("left out: %s", error)
        self.num_skipped = len(paths) - len(self.entries)
        if self.num_skipped:
            log.warning("%d of %d windows cannot be read and are left out", self.num_skipped, len(paths))

    def load(self, path: Path) -> Window:
        return load_window(path)


class WindowBatches:
    """Batches of windows of one form, so of one token count. A `BatchSource`.

    First clips and clips with a past have their own endless sequences, which are taken from in a fixed rhythm: of any
    n batches in a row, `first_clip * n` (to within one) are first clips. Each sequence goes through all its windows
    in a new order, then again in another.

    Args:
        first_clip: share of batches that are first clips; 0 or 1 leaves the others' windows unused.
        clip_latents: latent frames that are taken of a window: a first clip's first ones, of others any; 0: all.

    Raises: ConfigError when windows are missing for a share, or were made by different encoders.
    """

    def __init__(
        self, windows: Windows, *, batch_size: int, first_clip: float, seed: int, clip_latents: int = 0
    ) -> None:
        self.batch_size, self.first_clip, self.seed, self.clip_latents = batch_size, first_clip, seed, clip_latents
        self._windows, entries = windows, windows.entries
        _check_one_model(entries)
        self._left_out: set[Path] = set()   # since then
        self._forms: dict[str, dict[object, list[Path]]] = {FIRST: defaultdict(list), CONTINUING: defaultdict(list)}
        for entry in entries:
            self._forms[entry.kind][entry.form].append(entry.path)
        shares = {FIRST: first_clip, CONTINUING: 1 - first_clip}
        self._wanted = {entry.path for entry in entries if shares[entry.kind] > 0}
        for kind, share in shares.items():
            if share > 0 and not self._forms[kind]:
                what = "first clips" if kind == FIRST else "clips with a past"
                raise ConfigError(
                    f"first_clip {first_clip:g} asks for {what}, and there are none among the windows; "
                    f"set data: first_clip: {0 if kind == FIRST else 1}"
                )
        self.num_windows = len(entries)
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def batch(self, index: int) -> Batch:
        """A window that cannot be had is logged and counted once; the batch's others stand in for it.

        Where there are none, the next batch does: the same one in every run that misses the same windows.

        Raises: CheckpointError when nothing can be had any more.
        """
        windows, number = self._loaded(self.paths(index)), index
        while not windows:
            if self._wanted <= self._left_out:
                raise CheckpointError(f"not one of {len(self._wanted)} windows can be had; what is wrong is said above")
            number += 1
            windows = self._loaded(self.paths(number))
        rng = np.random.default_rng([self.seed, index])
        return batch_windows([self._stretch(windows[i % len(windows)], rng) for i in range(self.batch_size)])

    def _loaded(self, paths: Sequence[Path]) -> list[Window]:
        windows = []
        for path in paths:
            try:
                windows.append(self._windows.load(path))
            except CheckpointError as error:
                if path not in self._left_out:
                    self._left_out.add(path)
                    log.warning("left out: %s (%d so far)", error, self.num_skipped)
        return windows

    @property
    def num_skipped(self) -> int:
        """Windows that could not be had so far."""
        return self._windows.num_skipped + len(self._left_out)

    def _stretch(self, window: Window, rng: np.random.Generator) -> Window:
        spare = window.latents.shape[1] - self.clip_latents
        if not self.clip_latents or spare <= 0:
            return window
        return window.stretch(0 if window.kind == FIRST else int(rng.integers(spare + 1)), self.clip_latents)

    def check_fit(self, model: TransformerConfig, *, with_embeds: bool) -> None:
        """Are the windows for this model?

        Args:
            with_embeds: prompts must be encoded in them.

        Raises: ConfigError that names a window, what it holds and what the model reads.
        """
        wanted = {
            "latents": (model.in_channels,),
            "audio_features": (model.num_audio_layers, model.audio_dim),
        }
        for entry in self._windows.entries:
            for name, sizes in wanted.items():
                given = entry.shapes[name][: len(sizes)]
                if given != sizes:
                    raise ConfigError(
                        f"{entry.path} is for another model: its {name} are of {_by(given)}, "
                        f"the model reads {_by(sizes)}; precompute again with this model's encoders"
                    )
            if with_embeds and entry.shapes.get("prompt_embeds", (0, 0))[1] != model.text_dim:
                raise ConfigError(
                    f"{entry.path} has no prompt embeds of width {model.text_dim}; precompute again with prompts: "
                    "encoded and this model's text encoder, or train one (model: text_encoder)"
                )

    def paths(self, index: int) -> list[Path]:
        """The windows of batch `index`, 0 is the first."""
        firsts = math.floor(index * self.first_clip)
        is_first = math.floor((index + 1) * self.first_clip) > firsts
        kind, position = (FIRST, firsts) if is_first else (CONTINUING, index - firsts)
        epoch, place = divmod(position, self.batches_per_epoch(kind))
        return self._order(kind, epoch)[place]

    def batches_per_epoch(self, kind: str) -> int:
        return sum(-(-len(paths) // self.batch_size) for paths in self._forms[kind].values())

    def _shuffled(self, kind: str, epoch: int) -> list[list[Path]]:
        """All windows of a kind in batches; the last one of a form is filled up from its start."""
        rng = np.random.default_rng([self.seed, epoch, kind == FIRST])
        batches = []
        for paths in self._forms[kind].values():
            order = [paths[i] for i in rng.permutation(len(paths))]
            for at in range(0, len(order), self.batch_size):
                batch = order[at : at + self.batch_size]
                filled = (order * -(-self.batch_size // len(order)))[: self.batch_size - len(batch)]
                batches.append(batch + filled)
        return [batches[i] for i in rng.permutation(len(batches))]


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _check_one_model(entries: Sequence[WindowEntry]) -> None:
    first = {entry.model: entry.path for entry in reversed(entries)}
    if len(first) > 1:
        a, b = list(first.values())[:2]
        raise ConfigError(f"{a} and {b} were made by different encoders: precompute one of them again")


class Ahead:
    """A source whose next batches are made in the background while one is learnt from. A `BatchSource`.

    What is in them is the source's business: they are the same with and without it.

    Args:
        stride: from a batch that this process learns from to the next one that it does.
        stop: the number of the batch after the run's last.
    """

    def __init__(self, source: WindowBatches, *, stride: int, stop: int) -> None:
        self._source, self._stride, self._stop = source, stride, stop
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._coming: dict[int, Future[Batch]] = {}

    def batch(self, index: int) -> Batch:
        """Raises: what the source raises for this batch."""
        end = max(index + 1, min(self._stop, index + (AHEAD + 1) * self._stride))
        for number in range(index, end, self._stride):
            if number not in self._coming:
                self._coming[number] = self._worker.submit(self._source.batch, number)
        return self._coming.pop(index).result()

    def close(self) -> None:
        """Stop after the batch at work."""
        self._worker.shutdown(cancel_futures=True)

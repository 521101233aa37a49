"""Windows in batches: which windows batch k holds is decided by the seed and k, and by nothing else.

Knows files of windows; not the model or the step that a batch is for.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..config import TransformerConfig
from ..errors import CheckpointError, ConfigError
from .objective import Batch
from .windows import CONTINUING, FIRST, Window, WindowEntry, batch_windows, load_window, read_entry

log = logging.getLogger(__name__)


class WindowBatches:
    """Batches of windows of one form, so of one token count. A `BatchSource`.

    First clips and clips with a past have their own endless sequences, which are taken from in a fixed rhythm: of any
    n batches in a row, `first_clip * n` (to within one) are first clips. Each sequence goes through all its windows
    in a new order, then again in another.

    Args:
        paths: of windows; files that cannot be read are logged and left out.
        first_clip: share of batches that are first clips; 0 or 1 leaves the others' windows unused.
        clip_latents: latent frames that are taken of a window: a first clip's first ones, of others any; 0: all.

    Raises: ConfigError when windows are missing for a share, or were made by different encoders.
    """

    def __init__(
        self, paths: Sequence[Path], *, batch_size: int, first_clip: float, seed: int, clip_latents: int = 0
    ) -> None:
        self.batch_size, self.first_clip, self.seed, self.clip_latents = batch_size, first_clip, seed, clip_latents
        entries = self._entries = _readable(paths)
        _check_one_model(entries)
        self.num_skipped = len(paths) - len(entries)
        self._forms: dict[str, dict[object, list[Path]]] = {FIRST: defaultdict(list), CONTINUING: defaultdict(list)}
        for entry in entries:
            self._forms[entry.kind][entry.form].append(entry.path)
        for kind, share in ((FIRST, first_clip), (CONTINUING, 1 - first_clip)):
            if share > 0 and not self._forms[kind]:
                what = "first clips" if kind == FIRST else "clips with a past"
                raise ConfigError(f"first_clip {first_clip:g} asks for {what}, and there are none among the windows")
        self.num_windows = len(entries)
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def batch(self, index: int) -> Batch:
        """A window that can no longer be read is logged and counted; the batch's others stand in for it.

        Raises: CheckpointError when none of them can be read.
        """
        windows, faults = [], []
        for path in self.paths(index):
            try:
                windows.append(load_window(path))
            except CheckpointError as error:
                log.warning("left out: %s", error)
                faults.append(error)
        self.num_skipped += len(faults)
        if not windows:
            raise faults[0]
        rng = np.random.default_rng([self.seed, index])
        return batch_windows([self._stretch(windows[i % len(windows)], rng) for i in range(self.batch_size)])

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
        for entry in self._entries:
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


def _readable(paths: Sequence[Path]) -> list[WindowEntry]:
    entries = []
    for path in paths:
        try:
            entries.append(read_entry(path))
        except CheckpointError as error:
            log.warning("left out: %s", error)
    if len(entries) < len(paths):
        log.warning("%d of %d windows cannot be read and are left out", len(paths) - len(entries), len(paths))
    return entries


def _check_one_model(entries: Sequence[WindowEntry]) -> None:
    first = {entry.model: entry.path for entry in reversed(entries)}
    if len(first) > 1:
        a, b = list(first.values())[:2]
        raise ConfigError(f"{a} and {b} were made by different encoders: precompute one of them again")

"""A run's state on disk: written whole or not at all, the newest few kept, the newest readable one found again.

Knows files; the state is whatever the trainer says it is. One process writes one file; of several each writes its own
part into a folder, which gets its name when all are done.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, OutputError
from ..parallel.ranks import Ranks

log = logging.getLogger(__name__)

PATTERN = "step-*.checkpoint"


def save_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], *, keep: int, ranks: Ranks | None = None
) -> Path:
    """Write a state and drop all but the newest `keep`.

    Args:
        state: this rank's part of it.
        ranks: that write together, into a folder that all of them see.

    Raises: OutputError, on every rank, when the disk does not take it; earlier checkpoints stay.
    """
    ranks = ranks or Ranks()
    path = folder / f"step-{step:08d}.checkpoint"
    partial = path.with_suffix(".partial")
    own = partial if ranks.is_alone else partial / f"{ranks.rank:05d}-of-{ranks.layout.size:05d}"

    def make_room() -> None:
        _remove(partial)
        own.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        with own.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())

    def publish() -> None:
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
        for old in checkpoints(folder)[:-keep]:
            _remove(old)

    try:
        _agree(ranks, make_room if ranks.is_main else None, path)
        _agree(ranks, write, path)
        _agree(ranks, publish if ranks.is_main else None, path)
    except OutputError:
        if ranks.is_main:
            _remove(partial)
        raise
    return path


def _agree(ranks: Ranks, work: Callable[[], None] | None, path: Path) -> None:
    """Do some work, or wait for the others to do it; when it fails anywhere it has failed everywhere."""
    fault: Exception | None = None
    try:
        if work:
            work()
    except (OSError, RuntimeError) as error:   # torch raises RuntimeError when the disk is full
        fault = error
    if ranks.any(fault is not None):
        raise OutputError(
            f"the checkpoint {path} cannot be written ({fault or 'another process failed'}); earlier ones are kept: "
            "free some space and resume"
        ) from fault


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(PATTERN))


def load_checkpoint(path: Path) -> list[dict[str, Any]]:
    """The state's parts: one of each rank that wrote it, in their order.

    Those of several ranks are mapped, not read: who needs some rows reads no others.

    Raises: CheckpointError for what cannot be read as a checkpoint.
    """
    if not path.is_dir():
        return [_load(path, mapped=False)]
    files = sorted(path.iterdir())
    if not files or not files[0].name.endswith(f"-of-{len(files):05d}"):
        raise CheckpointError(f"{path} lacks parts of some processes; delete it to use the one before it")
    return [_load(file, mapped=True) for file in files]


def _load(path: Path, *, mapped: bool) -> dict[str, Any]:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if "torchao." not in str(error):
                raise
            _allow_8_bits(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint; delete it to use the one before it") from error


def _allow_8_bits(path: Path) -> None:
    """Let moments in 8 bits be read: torchao tells torch its kinds of tensor when it is imported."""
    try:
        import torchao.optim  # noqa: F401
    except ImportError:
        raise CheckpointError(f"{path} has moments in 8 bits, whose package is missing: pip install torchao") from None


def load_newest(folder: Path) -> list[dict[str, Any]]:
    """The newest state's parts; none where there is no state yet.

    Raises: CheckpointError when the newest cannot be read: going on from an older one is the user's choice.
    """
    found = checkpoints(folder)
    if not found:
        return []
    log.info("resuming from %s", found[-1])
    return load_checkpoint(found[-1])

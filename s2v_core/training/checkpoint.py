"""A run's state on disk: written whole or not at all, the newest few kept, the newest readable one found again.

Knows files; the state is whatever the trainer says it is.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, OutputError

log = logging.getLogger(__name__)

PATTERN = "step-*.checkpoint"


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, keep: int) -> Path:
    """Write a state and drop all but the newest `keep`.

    Raises: OutputError when the disk does not take it; earlier checkpoints stay.
    """
    path = folder / f"step-{step:08d}.checkpoint"
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:   # torch raises RuntimeError when the disk is full
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"the checkpoint {path} cannot be written ({error}); earlier ones are kept: free some space and resume"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(folder.glob(PATTERN))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Raises: CheckpointError for a file that cannot be read as a checkpoint."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint; delete it to use the one before it") from error


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest state; None where there is none yet.

    Raises: CheckpointError when the newest cannot be read: going on from an older one is the user's choice.
    """
    found = checkpoints(folder)
    if not found:
        return None
    log.info("resuming from %s", found[-1])
    return load_checkpoint(found[-1])

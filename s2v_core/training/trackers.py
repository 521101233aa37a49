"""What a run logs, handed on to TensorBoard, Weights & Biases and their like: through accelerate.

Knows trackers by their names; not what is logged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError


class Trackers:
    """The trackers of a run; without names, none.

    Args:
        names: as accelerate has them.
        folder: where those that write files put them.
        settings: of the run, nested; noted once.

    Weights & Biases writes to the folder only (`wandb sync` sends it), unless WANDB_MODE says otherwise.

    Raises: ConfigError for a tracker that accelerate does not have, or whose package is not installed.
    """

    def __init__(self, names: Sequence[str], *, run_name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._accelerator = None
        if not names:
            return
        check_trackers(names)
        from accelerate import Accelerator

        self._accelerator = Accelerator(log_with=list(names), project_dir=folder, cpu=True)
        wandb = {"dir": str(folder), "mode": os.environ.get("WANDB_MODE", "offline")}
        self._accelerator.init_trackers(run_name, config=_told(settings), init_kwargs={"wandb": wandb})

    def log(self, entry: Mapping[str, Any]) -> None:
        """A line of the run's log: its step, numbers, and groups of numbers."""
        if self._accelerator is not None:
            self._accelerator.log(numbers(entry), step=entry["step"])

    def close(self) -> None:
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:   # end_training would end the processes' connection too
                tracker.finish()


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a log line but its step, those of a group as `group/name`."""
    flat = _flat(entry)
    return {n: v for n, v in flat.items() if isinstance(v, int | float) and not isinstance(v, bool) and n != "step"}


def check_trackers(names: Sequence[str]) -> None:
    """Raises: ConfigError for a tracker that accelerate does not have, or whose package is not installed."""
    if not names:
        return
    try:
        from accelerate.tracking import get_available_trackers
        from accelerate.utils import LoggerType
    except ImportError:
        raise ConfigError("trackers need the package accelerate: pip install accelerate") from None
    known = sorted(set(LoggerType.list()) - {"all"})
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"trackers: there is no {name!r}; there are {', '.join(known)}")
        if name not in installed:
            raise ConfigError(f"the tracker {name} is not installed: pip install {name}")


def _flat(entry: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in entry.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as every tracker takes them: flat, and lists as text."""
    return {n: v if isinstance(v, int | float | str) else str(v) for n, v in _flat(settings).items()}

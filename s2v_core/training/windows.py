"""A window: one clip of a video with all that directs it, encoded once and kept in a file of its own.

Knows tensors and safetensors; not how windows are cut, nor in which order they are learnt from.
T latent frames, h w latent cells, F frames (4T).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..conditioning.speakers import box_cells
from ..errors import CheckpointError, OutputError
from ..geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE
from ..parallel.ranks import launched
from .objective import Batch

FIRST, CONTINUING = "first", "continuing"
EMPTY_PROMPT = "empty_prompt"
LISTED = "windows-{rank}-of-{ranks}.json"
_FRAME_AXES = {"latents": 1, "pose_latents": 1, "face_mask": 0, "mouth_mask": 0, "speaker_masks": 1}   # of a window
STORED = torch.float16   # of latents and features: they lie within a few tens


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One clip. `motion_latents` None makes it a first clip: its latents were encoded behind the reference."""

    latents: Tensor                       # [16, T, h, w]
    reference_latent: Tensor              # [16, 1, h, w]
    audio_features: Tensor                # [layers, C, 4T]; with speakers, silence
    prompt: str
    prompt_embeds: Tensor | None = None   # [L, D]
    motion_latents: Tensor | None = None  # [16, Tm, h, w]
    pose_latents: Tensor | None = None    # [16, T, h, w]
    face_mask: Tensor | None = None       # [T, h, w] 0..1
    mouth_mask: Tensor | None = None      # [T, h, w] 0..1
    speaker_features: Tensor | None = None   # [S, layers, C, 4T]
    speaker_masks: Tensor | None = None      # [S, T, h, w] 0..1, where each is heard

    @property
    def kind(self) -> str:
        return FIRST if self.motion_latents is None else CONTINUING

    def stretch(self, start: int, num: int) -> Window:
        """`num` of its latent frames from `start` on, which is 0 for a first clip; what is before them is their past.

        (Of a past that is moved, the oldest latent frame was encoded as four frames, not as a stream's first one.)
        """
        assert start == 0 or self.motion_latents is not None, "nothing is known of a first clip's past"
        motion = self.motion_latents
        if motion is not None and start:
            motion = torch.cat([motion, self.latents[:, :start]], dim=1)[:, start:]
        cuts = {name: (axis, 1) for name, axis in _FRAME_AXES.items()}
        cuts |= {name: (-1, TEMPORAL_STRIDE) for name in ("audio_features", "speaker_features")}
        return replace(
            self,
            motion_latents=motion,
            **{
                name: value.narrow(axis, start * rate, num * rate)
                for name, (axis, rate) in cuts.items()
                if (value := getattr(self, name)) is not None
            },
        )

    def tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowEntry:
    """A window on disk, known by its header; or one that is still to be made, known by its video."""

    path: Path
    fingerprint: str | None      # of everything that it was made from; None: it is not made yet
    model: str                   # of the encoders that make it
    shapes: dict[str, tuple[int, ...]]   # of its tensors, by their names in order

    @property
    def kind(self) -> str:
        return CONTINUING if "motion_latents" in self.shapes else FIRST

    @property
    def form(self) -> tuple[object, ...]:
        """Windows of equal form fit into one batch; their prompts may differ in length."""
        form = tuple((name, shape) for name, shape in self.shapes.items() if name != "prompt_embeds")
        return (*form, "prompt_embeds" in self.shapes)


def save_window(path: Path, window: Window, *, fingerprint: str, model: str) -> None:
    """Write a window whole or not at all.

    Raises: OutputError when the disk does not take it.
    """
    tensors = {name: t.to(STORED).contiguous() for name, t in window.tensors().items()}
    _save(path, tensors, {"prompt": window.prompt, "fingerprint": fingerprint, "model": model})


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    partial = path.with_suffix(f".{launched()[0]}.partial")   # several ranks may write one file at a time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OutputError(f"the window {path} cannot be written ({error}); free some space and run again") from error


def read_entry(path: Path) -> WindowEntry:
    """Raises: CheckpointError for a file that is no window, or was cut short."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as a window ({error}); delete it and precompute again") from error
    if not {"fingerprint", "model", "prompt"} <= metadata.keys():
        raise CheckpointError(f"{path} is no window of training data; name the folder that precompute has written")
    return WindowEntry(path=path, fingerprint=metadata["fingerprint"], model=metadata["model"], shapes=shapes)


def load_window(path: Path) -> Window:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
            return Window(prompt=(file.metadata() or {})["prompt"], **tensors)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as a window ({error}); delete it and precompute again") from error


def batch_windows(windows: Sequence[Window]) -> Batch:
    """Windows of one form as a batch; prompts of different length are filled up with zero rows."""
    stacked = {}
    for name in windows[0].tensors():
        values = [getattr(window, name) for window in windows]
        if name == "prompt_embeds":
            stacked[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        else:
            stacked[name] = torch.stack(values)
    return Batch(prompts=tuple(window.prompt for window in windows), **stacked)


def save_empty_prompt(folder: Path, embeds: Tensor, *, model: str) -> None:
    """The prompt that stands for none, [L, D], beside windows that hold embeds.

    Args:
        model: as of a window.
    """
    _save(folder / f"{EMPTY_PROMPT}.embeds", {EMPTY_PROMPT: embeds.float().contiguous()}, {"model": model})


def has_empty_prompt(folder: Path, *, model: str) -> bool:
    """Whether it is there and of this model; where that is not noted, it is not."""
    try:
        with safe_open(folder / f"{EMPTY_PROMPT}.embeds", "pt") as file:
            return (file.metadata() or {}).get("model") == model
    except (OSError, SafetensorError):
        return False


def load_empty_prompt(folder: Path) -> Tensor:
    """[1, L, D]."""
    try:
        with safe_open(folder / f"{EMPTY_PROMPT}.embeds", "pt") as file:
            return file.get_tensor(EMPTY_PROMPT)[None]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} lacks the embeds of the empty prompt ({error}); precompute it with prompts: encoded"
        ) from error


def save_listed(folder: Path, names: Iterable[str]) -> None:
    """Note which windows of a folder belong to the set: those of this process's share of the videos.

    Raises: OutputError when the disk does not take it.
    """
    rank, _, ranks = launched()
    path = folder / LISTED.format(rank=rank, ranks=ranks)
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(sorted(names)), encoding="utf-8")
        os.replace(partial, path)
        if rank == 0:
            for other in set(folder.glob(LISTED.format(rank="*", ranks="*"))) - set(_lists(folder, ranks)):
                other.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error}); free some space and run again") from error


def listed(folder: Path) -> set[str] | None:
    """The windows that belong to the set; None where not every process has noted its own."""
    for first in folder.glob(LISTED.format(rank=0, ranks="*")):
        try:
            ranks = int(first.stem.rpartition("-")[2])
            return {name for path in _lists(folder, ranks) for name in json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError):
            continue
    return None


def _lists(folder: Path, ranks: int) -> list[Path]:
    return [folder / LISTED.format(rank=rank, ranks=ranks) for rank in range(ranks)]


def box_mask(boxes: np.ndarray, *, height: int, width: int) -> Tensor:
    """How much of each latent cell lies in boxes, over each latent frame's four frames the most.

    Args:
        boxes: [F, P, 4] left, top, right, bottom in pixels, F = 4T; P boxes a frame, a box of NaN is none.
        height, width: of the latents, cells.

    Returns: [T, h, w] float32 in 0..1.
    """
    boxes = torch.from_numpy(np.nan_to_num(np.asarray(boxes, np.float32), nan=-1.0)) / SPATIAL_STRIDE
    cells = box_cells(boxes, width=width, height=height).amax(1)                  # [F, h, w]
    return cells.unflatten(0, (-1, TEMPORAL_STRIDE)).amax(1)


def fingerprint_of(parts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]

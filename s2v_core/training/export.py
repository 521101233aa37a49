"""A student's weights as files that `generate` and ComfyUI load.

Knows the released spelling, which is the models' own; not where the weights come from.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import OutputError
from ..parallel.weights import whole
from .student import Student

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.Embedding)


def export_student(student: Student, folder: Path, *, dtype: torch.dtype, writes: bool = True) -> list[Path]:
    """Write `transformer.safetensors`, and `text_encoder.safetensors` where that was trained.

    The transformer's matrices are stored in `dtype`, its norms, biases and modulation in float32; so is all of the text
    encoder, which is small where it is trained, and computes in what it is stored in.

    Args:
        writes: whether this process does; the others that share the weights only lend theirs.

    Raises: OutputError when the disk does not take them.
    """
    models: dict[str, tuple[nn.Module, torch.dtype]] = {"transformer.safetensors": (student.transformer, dtype)}
    if student.prompts is not None:
        models["text_encoder.safetensors"] = (student.prompts.encoder, torch.float32)
    written = []
    for name, (model, kept) in models.items():
        weights = rounded(model, kept, keeps=writes)
        if writes:
            written.append(save_weights(folder / name, weights))
    return written


def rounded(model: nn.Module, dtype: torch.dtype, *, keeps: bool = True) -> dict[str, Tensor]:
    """Weights by name, each once and whole; matrices in `dtype`, the rest in float32.

    Args:
        keeps: without it nothing is returned: this process has helped others to have their weights whole.
    """
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _MATRICES)}
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = whole(parameter.detach())
        if keeps:
            weights[name] = tensor.to("cpu", dtype if name in matrices else torch.float32).contiguous()
    return weights


def save_weights(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a weight file whole or not at all.

    Raises: OutputError when the disk does not take it.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"format": "pt"})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written ({error}); the checkpoint is kept: free some space") from error
    return path

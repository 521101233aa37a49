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
from .student import Student

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv3d, nn.Embedding)


def export_student(student: Student, folder: Path, *, dtype: torch.dtype) -> list[Path]:
    """Write `transformer.safetensors`, and `text_encoder.safetensors` where that was trained.

    The transformer's matrices are stored in `dtype`, its norms, biases and modulation in float32; so is all of the text
    encoder, which is small where it is trained, and computes in what it is stored in.

    Raises: OutputError when the disk does not take them.
    """
    written = [save_weights(folder / "transformer.safetensors", rounded(student.transformer, dtype))]
    if student.prompts is not None:
        weights = rounded(student.prompts.encoder, torch.float32)
        written.append(save_weights(folder / "text_encoder.safetensors", weights))
    return written


def rounded(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by name, each once; matrices in `dtype`, the rest in float32."""
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, _MATRICES)}
    return {
        name: parameter.detach().to("cpu", dtype if name in matrices else torch.float32).contiguous()
        for name, parameter in model.named_parameters()
    }


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

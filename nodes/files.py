"""A transformer file of any kind that people have -> MODEL.

Knows which loader takes which kind of file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..s2v_core.checkpoints.files import open_weights
from ..s2v_core.checkpoints.keymaps import identify
from ..s2v_core.checkpoints.official import config_of
from ..s2v_core.errors import CheckpointError, ConfigError
from . import host, model
from .gguf import load_gguf
from .int8 import KIND as INT8
from .int8 import load_int8

OPTIONS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_file(path: Path, weight_dtype: str) -> host.ModelPatcher:
    """Read a Wan2.2-S2V transformer.

    Raises: CheckpointError for a file that is broken, or another model's; ConfigError for an unknown weight_dtype.
    """
    if weight_dtype not in (*OPTIONS, INT8):
        raise ConfigError(f"weight_dtype must be one of {', '.join((*OPTIONS, INT8))}; got {weight_dtype!r}")
    file = open_weights(path)
    kind, prefix = identify(file.tensors)
    if kind.component != "transformer":
        raise CheckpointError(
            f"{path.name} is {kind.title}, where the Wan2.2-S2V transformer is needed, "
            "such as wan2.2_s2v_14B_fp8_scaled.safetensors"
        )
    config = config_of("transformer", file)
    if path.suffix.lower() == ".gguf":
        return load_gguf(file, config)
    if weight_dtype == INT8:
        return load_int8(file, config)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in host.read_state_dict(path).items()}
    return model.load(tensors, config, name=path.name, options=OPTIONS[weight_dtype])

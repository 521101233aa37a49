"""A transformer file behind the host's MODEL with its large matrices in whole numbers of 8 bits, and multiplied so.

Knows how weights are rounded as they are read and after LoRAs; how 8-bit products are made is `s2v_core`'s business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..s2v_core.checkpoints.files import WeightFile
from ..s2v_core.checkpoints.loading import component_tensors, takes_eight_bits
from ..s2v_core.config import TransformerConfig
from ..s2v_core.ops.eight_bit import EightBit, EightBitLinear
from ..s2v_core.ops.quantized import unpack
from . import host
from .gguf import PackedLinear, load_packed

KIND = "int8"


def load_int8(file: WeightFile, config: TransformerConfig) -> host.ModelPatcher:
    """A file of any precision into a MODEL whose large matrices take a byte a number.

    Raises: CheckpointError for weights that are missing.
    """
    arithmetic = EightBit(KIND)
    tensors, formats = {}, {}
    for name, stored in component_tensors(file, "transformer").items():
        if takes_eight_bits(name, stored):
            tensors[name], tensors[scale_name(name)] = arithmetic.pack(stored.dense(torch.float32))
            formats[name] = arithmetic.kind.packed_format
        else:
            tensors[name] = stored.dense(None)
    linear = type("Int8Linear", (Int8Linear,), {"arithmetic": arithmetic})
    return load_packed(tensors, formats, config, name=file.path.name, linear=linear)


def scale_name(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


class Int8Linear(PackedLinear):
    """y = x W^T + b, both sides in 8 bits where W is kept so; W is rounded again after what LoRAs add."""

    arithmetic: EightBit

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        if self.packed_format is not None:
            self.scale = nn.Parameter(state_dict[scale_name(prefix + "weight")], requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed_format is None:
            return super().forward(input)
        packed, scale = (x.to(input.device, non_blocking=True) for x in (self.weight, self.scale))
        changes = self._changes()
        if changes:
            weight = unpack(packed, self.packed_format, scale=scale, dtype=input.dtype)
            for change in changes:
                weight = change(weight)
            packed, scale = self.arithmetic.pack(weight)
        bias = nn.Parameter(self._changed_bias(input), requires_grad=False)
        return EightBitLinear(packed, scale=scale, bias=bias, arithmetic=self.arithmetic)(input)

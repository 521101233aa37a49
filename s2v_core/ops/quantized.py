"""Layers whose weights stay packed (fp8, int8, GGUF blocks) and are unpacked for one use at a time.

Knows how bytes become numbers; not where the bytes came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import like, product

CHUNK = 2**22   # numbers unpacked at once: bounds the float32 temporaries beside a weight to some tens of MB

_FP8_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """One way to store numbers: `num_bytes` bytes hold `num_values` numbers."""

    num_values: int
    num_bytes: int
    unpack: Callable[[Tensor], Tensor]   # uint8 [n, num_bytes] -> float32 [n, num_values]


# ---- 8-bit numbers -------------------------------------------------------------------------------------------------


def _unpack_int8(raw: Tensor) -> Tensor:
    return raw.view(torch.int8).float()


@cache
def _fp8_table(name: str, device: torch.device) -> Tensor:
    """The 256 numbers of an fp8 type: a look-up is faster than the CPU's conversion, and works where fp8 does not."""
    return torch.arange(256, dtype=torch.uint8).view(_FP8_DTYPES[name]).float().to(device)


def _unpack_e4m3(raw: Tensor) -> Tensor:
    return _fp8_table("F8_E4M3", raw.device).index_select(0, raw.flatten().int()).unsqueeze(1)


def _unpack_e5m2(raw: Tensor) -> Tensor:
    return _fp8_table("F8_E5M2", raw.device).index_select(0, raw.flatten().int()).unsqueeze(1)


# ---- GGUF blocks ---------------------------------------------------------------------------------------------------
# Layouts as in ggml's block structs. n blocks; a "group" is a run of numbers that share a scale.


def _half(raw: Tensor) -> Tensor:
    """[n, 2] bytes -> [n, 1] the float16 they spell."""
    return raw.contiguous().view(torch.float16).float()


def _fields(raw: Tensor, bits: int, run: int) -> Tensor:
    """Split bytes into fields of `bits`, lowest first; every `run` bytes give 8/bits runs of `run` numbers.

    [n, k*run] -> uint8 [n, k*run*8/bits]
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=raw.device).view(1, 1, -1, 1)
    return ((raw.reshape(len(raw), -1, 1, run) >> shifts) & (2**bits - 1)).flatten(1)


def _grouped(values: Tensor, num_groups: int) -> Tensor:
    return values.view(len(values), num_groups, -1)


def _unpack_q8_0(raw: Tensor) -> Tensor:
    return raw[:, 2:].view(torch.int8).float() * _half(raw[:, :2])


def _unpack_q4_0(raw: Tensor) -> Tensor:
    return (_fields(raw[:, 2:], 4, 16).float() - 8) * _half(raw[:, :2])


def _unpack_q4_1(raw: Tensor) -> Tensor:
    return _fields(raw[:, 4:], 4, 16).float() * _half(raw[:, :2]) + _half(raw[:, 2:4])


def _five_bits(high: Tensor, low: Tensor) -> Tensor:
    """[n, 4] fifth bits, [n, 16] low nibbles -> [n, 32] in 0..31."""
    return (_fields(low, 4, 16) | (_fields(high, 1, 1) << 4)).float()


def _unpack_q5_0(raw: Tensor) -> Tensor:
    return (_five_bits(raw[:, 2:6], raw[:, 6:]) - 16) * _half(raw[:, :2])


def _unpack_q5_1(raw: Tensor) -> Tensor:
    return _five_bits(raw[:, 4:8], raw[:, 8:]) * _half(raw[:, :2]) + _half(raw[:, 2:4])


def _unpack_q2_k(raw: Tensor) -> Tensor:
    scales, quants, d, d_min = raw[:, :16], raw[:, 16:80], _half(raw[:, 80:82]), _half(raw[:, 82:84])
    scale = (d * (scales & 15).float()).unsqueeze(2)
    low = (d_min * (scales >> 4).float()).unsqueeze(2)
    return (scale * _grouped(_fields(quants, 2, 32), 16).float() - low).flatten(1)


def _unpack_q3_k(raw: Tensor) -> Tensor:
    high, quants, scales, d = raw[:, :32], raw[:, 32:96], raw[:, 96:108], _half(raw[:, 108:110])
    scale = (_fields(scales[:, :8], 4, 8) | (_fields(scales[:, 8:], 2, 4) << 4)).float() - 32
    values = _fields(quants, 2, 32).float() - 4 * (1 - _fields(high, 1, 32).float())   # a set bit means no offset
    return ((d * scale).unsqueeze(2) * _grouped(values, 16)).flatten(1)


def _six_bit_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 12] -> scales and minima of 8 groups, each [n, 8] in 0..63; the last four share their top bits around."""
    a, b, c = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = torch.cat([a & 63, (c & 15) | ((a >> 2) & 48)], dim=1)
    minima = torch.cat([b & 63, (c >> 4) | ((b >> 2) & 48)], dim=1)
    return scales.float(), minima.float()


def _scaled_with_minima(raw: Tensor, values: Tensor) -> Tensor:
    """What Q4_K and Q5_K share: 8 groups of 32, each with its scale and minimum."""
    scales, minima = _six_bit_scales(raw[:, 4:16])
    scale = (_half(raw[:, :2]) * scales).unsqueeze(2)
    low = (_half(raw[:, 2:4]) * minima).unsqueeze(2)
    return (scale * _grouped(values, 8).float() - low).flatten(1)


def _unpack_q4_k(raw: Tensor) -> Tensor:
    return _scaled_with_minima(raw, _fields(raw[:, 16:], 4, 32))


def _unpack_q5_k(raw: Tensor) -> Tensor:
    return _scaled_with_minima(raw, _fields(raw[:, 48:], 4, 32) | (_fields(raw[:, 16:48], 1, 32) << 4))


def _unpack_q6_k(raw: Tensor) -> Tensor:
    low, high, scales, d = raw[:, :128], raw[:, 128:192], raw[:, 192:208], _half(raw[:, 208:210])
    values = (_fields(low, 4, 64) | (_fields(high, 2, 32) << 4)).float() - 32
    scale = (d * scales.contiguous().view(torch.int8).float()).unsqueeze(2)
    return (scale * _grouped(values, 16)).flatten(1)


PACKED_FORMATS = {
    "INT8": PackedFormat(1, 1, _unpack_int8),   # ours: no file stores it
    "F8_E4M3": PackedFormat(1, 1, _unpack_e4m3),
    "F8_E5M2": PackedFormat(1, 1, _unpack_e5m2),
    "Q4_0": PackedFormat(32, 18, _unpack_q4_0),
    "Q4_1": PackedFormat(32, 20, _unpack_q4_1),
    "Q5_0": PackedFormat(32, 22, _unpack_q5_0),
    "Q5_1": PackedFormat(32, 24, _unpack_q5_1),
    "Q8_0": PackedFormat(32, 34, _unpack_q8_0),
    "Q2_K": PackedFormat(256, 84, _unpack_q2_k),
    "Q3_K": PackedFormat(256, 110, _unpack_q3_k),
    "Q4_K": PackedFormat(256, 144, _unpack_q4_k),
    "Q5_K": PackedFormat(256, 176, _unpack_q5_k),
    "Q6_K": PackedFormat(256, 210, _unpack_q6_k),
}


def unpack(
    packed: Tensor, packed_format: str, *, scale: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Numbers from bytes, computed in float32 some rows at a time.

    Args:
        packed: uint8 [rows, bytes]; a row holds whole blocks.
        packed_format: a name in PACKED_FORMATS.
        scale: float32, one number or [rows, 1]: multiplies every number.
        dtype: of the result.

    Returns: [rows, numbers] on packed's device.
    Raises: ConfigError for a format that we cannot unpack.
    """
    if packed_format not in PACKED_FORMATS:
        raise ConfigError(f"weights packed as {packed_format} cannot be read; we read {', '.join(PACKED_FORMATS)}")
    form = PACKED_FORMATS[packed_format]
    rows, width = packed.shape[0], packed.shape[1] // form.num_bytes * form.num_values
    out = torch.empty(rows, width, dtype=dtype, device=packed.device)
    step = max(1, CHUNK // width)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = form.unpack(packed[part].reshape(-1, form.num_bytes)).view(-1, width)
        if scale is not None:
            values *= scale[part] if scale.dim() == 2 and len(scale) == rows else scale
        out[part] = values
    return out


def _as_bits(scale: Tensor | None) -> Tensor | None:
    """float32 under an integer dtype: a cast of the module would round the scale."""
    return None if scale is None else scale.float().view(torch.int32)


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W kept packed: it takes its packed size in memory, and W exists for one call.

    The bytes and their scale are integer buffers, so `.to(dtype)` and `.half()` leave them alone; `.to(device)` moves
    them. W comes in the input's dtype and on its device.

    Args:
        packed: uint8 [out_features, bytes].
        packed_format: a name in PACKED_FORMATS.
        scale: float32, one number or [out_features, 1], or None.
        bias: [out_features] or None.
    """

    def __init__(self, packed: Tensor, packed_format: str, *, scale: Tensor | None, bias: nn.Parameter | None) -> None:
        super().__init__()
        form = PACKED_FORMATS[packed_format]
        self.packed_format = packed_format
        self.out_features = packed.shape[0]
        self.in_features = packed.shape[1] // form.num_bytes * form.num_values
        self.register_buffer("packed", packed)
        self.register_buffer("scale_bits", _as_bits(scale))
        self.register_parameter("bias", bias)
        self.register_parameter("weight", None)   # transformers' umT5 looks at `layer.weight`

    def dense_weight(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[out_features, in_features]"""
        scale = None if self.scale_bits is None else self.scale_bits.to(device).view(torch.float32)
        return unpack(self.packed.to(device, non_blocking=True), self.packed_format, scale=scale, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        return self.unpacked(input)

    def with_gelu(self, input: Tensor) -> Tensor:
        """`forward`, then tanh-GELU. Calls no hooks."""
        return self.unpacked(input, gelu=True)

    def unpacked(self, input: Tensor, *, gelu: bool = False) -> Tensor:
        weight = self.dense_weight(input.dtype, input.device)
        return product(input, weight, like(self.bias, input), gelu=gelu)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, packed as {self.packed_format}"


class QuantizedEmbedding(nn.Module):
    """A table kept packed: only the rows that are looked up are unpacked.

    Args:
        packed: uint8 [num_embeddings, bytes].
        packed_format: a name in PACKED_FORMATS.
        scale: float32, one number or [num_embeddings, 1], or None.
        dtype: of the rows handed out; casts of the module do not change it.
    """

    def __init__(self, packed: Tensor, packed_format: str, *, scale: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.packed_format = packed_format
        self.dtype = dtype
        self.register_buffer("weight", packed)   # by this name: callers ask a table's weight where it is
        self.register_buffer("scale_bits", _as_bits(scale))

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape -> [..., embedding_dim]."""
        rows = input.flatten()
        scale = None if self.scale_bits is None else self.scale_bits.view(torch.float32)
        if scale is not None and scale.dim() == 2:
            scale = scale[rows]
        values = unpack(self.weight[rows], self.packed_format, scale=scale, dtype=self.dtype)
        return values.view(*input.shape, -1)

    def extra_repr(self) -> str:
        return f"num_embeddings={len(self.weight)}, packed as {self.packed_format}"

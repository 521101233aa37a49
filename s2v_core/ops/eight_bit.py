"""Linear layers that multiply in 8 bits: weights are kept so, inputs are rounded as they come, by a scale per token.

Knows two kinds, fp8 and int8, and tries each on every device before it is used; not which layers of a model take them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import tanh_gelu
from .quantized import QuantizedLinear

log = logging.getLogger(__name__)

AT_ONCE = 2**24    # numbers that are rounded or scaled at once: bounds the float32 temporaries beside a product
MIN_TOKENS = 17    # kernels take no fewer
MULTIPLE = 16      # of which both sides of a weight must be
TRIED_TOKENS = 64
SMALLEST = 1e-30   # a token of zeros must have a scale, too

Way = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Tokens [M, K], 8-bit weight [N, K], its scale (one number or [N, 1]), bias or None -> [M, N] in the tokens' dtype."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """8-bit numbers."""

    dtype: torch.dtype
    largest: float   # what the largest of those that share a scale becomes

    def scale_of(self, x: Tensor) -> Tensor:
        """[M, K] -> [M, 1] float32."""
        parts = x.split(max(1, AT_ONCE // x.shape[1]))
        largest = torch.cat([part.abs().amax(1, keepdim=True) for part in parts])
        return largest.float().clamp_(min=SMALLEST).div_(self.largest)

    def round(self, x: Tensor, scale: Tensor) -> Tensor:
        """[M, K] -> x / scale in 8 bits, some rows at a time; scale [M or 1, 1] float32."""
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        step = max(1, AT_ONCE // x.shape[1])
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            values = x[part] / (scale if len(scale) == 1 else scale[part])
            out[part] = values if self.dtype.is_floating_point else values.round_()
        return out


FP8 = Rounding(torch.float8_e4m3fn, 448.0)
INT8 = Rounding(torch.int8, 127.0)


# ---- products --------------------------------------------------------------------------------------------------------


def _fp8_by_token(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    x_scale = FP8.scale_of(x)
    return _scaled_mm(FP8.round(x, x_scale), x_scale, weight, _row(scale, len(weight)), bias).to(x.dtype)


def _fp8_by_tensor(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """One scale for all tokens: less exact, and for devices and systems whose torch has no product by rows."""
    x_scale = FP8.scale_of(x).amax()
    rounded = FP8.round(x, x_scale.view(1, 1))
    if scale.numel() == 1:
        return _scaled_mm(rounded, x_scale, weight, scale.view(()), bias).to(x.dtype)
    out = _scaled_mm(rounded, x_scale, weight, scale.new_ones(()), None) * scale.view(1, -1)
    return (out if bias is None else out + bias).to(x.dtype)


def _scaled_mm(x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """bf16, the one dtype that every kernel gives; summed in float32."""
    bias = None if bias is None else bias.to(torch.bfloat16)
    return torch._scaled_mm(x, weight.t(), scale_a=x_scale, scale_b=scale, bias=bias, out_dtype=torch.bfloat16)


def _int8_by_token(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Summed in whole numbers, scaled in float32."""
    out = torch.empty(len(x), len(weight), dtype=x.dtype, device=x.device)
    scale = _row(scale, len(weight))
    step = max(MIN_TOKENS, AT_ONCE // max(weight.shape))
    starts = range(0, max(1, len(x) - MIN_TOKENS), step)
    for start, stop in zip(starts, [*starts[1:], len(x)], strict=True):
        part = x[start:stop]
        x_scale = INT8.scale_of(part)
        values = torch.mul(torch._int_mm(INT8.round(part, x_scale), weight.t()), x_scale)
        out[start:stop] = values.mul_(scale) if bias is None else torch.addcmul(bias.float(), values, scale, out=values)
    return out


def _row(scale: Tensor, length: int) -> Tensor:
    """A weight's scale -> [1, length]."""
    return scale.reshape(-1, 1).expand(length, 1).reshape(1, length).contiguous()


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of 8-bit product."""

    packed_format: str        # of weights, in `quantized.PACKED_FORMATS`
    rounding: Rounding
    has_scale_per_row: bool   # of weights that we round: whole numbers need it, fp8 has exponents
    ways: tuple[Way, ...]     # to compute it, the best first
    max_error: float          # of a product with normal random tokens, relative (Frobenius)


KINDS = {
    # Rounding a token's number moves it by 2^-4 of itself at most.
    "fp8": Kind(
        packed_format="F8_E4M3", rounding=FP8, has_scale_per_row=False, ways=(_fp8_by_token, _fp8_by_tensor),
        max_error=2**-4,
    ),
    # By half a step at most: 1/254 of the token's largest, and that is seldom beyond 5 standard deviations.
    "int8": Kind(
        packed_format="INT8", rounding=INT8, has_scale_per_row=True, ways=(_int8_by_token,), max_error=5 / 254
    ),
}  # fmt: skip


# ---- layers ----------------------------------------------------------------------------------------------------------


class EightBit:
    """How the layers of one model multiply: a kind, and the way that was found right on each device.

    On first use each way multiplies tokens drawn at random and is compared with the layer's own weights, unpacked. With
    none that agrees, layers unpack their weights on that device, and one warning says so.

    Args:
        kind: a name in KINDS.
    """

    def __init__(self, kind: str) -> None:
        self.name = kind
        self.kind = KINDS[kind]
        self._ways: dict[tuple[torch.device, torch.dtype], Way | None] = {}

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight [N, K] -> uint8 [N, K] and its scale, one number or [N, 1], float32."""
        rounding = self.kind.rounding
        scale = rounding.scale_of(weight)
        if not self.kind.has_scale_per_row:
            scale = scale.amax().view(1, 1)
        packed = rounding.round(weight, scale).view(torch.uint8)
        return packed, scale if self.kind.has_scale_per_row else scale.view(())

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """What a weight of this shape takes."""
        rows, columns = shape
        return rows * columns + 4 * (rows if self.kind.has_scale_per_row else 1)

    def way(self, layer: EightBitLinear, x: Tensor) -> Way | None:
        """How to multiply tokens [M, K] by this layer's weight; None: as it is, unpacked."""
        if len(x) < MIN_TOKENS or layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
            return None
        key = x.device, x.dtype
        if key not in self._ways:
            self._ways[key] = self._first_that_agrees(layer, x)
        return self._ways[key]

    def _first_that_agrees(self, layer: EightBitLinear, x: Tensor) -> Way | None:
        tokens = torch.randn(TRIED_TOKENS, layer.in_features, generator=torch.Generator().manual_seed(0)).to(x)
        expected = layer.unpacked(tokens).float()
        faults = []
        for way in self.kind.ways:
            try:
                out = layer.multiplied(tokens, way).float()
            except Exception as fault:   # a device without such kernels raises anything
                faults.append(f"does not run ({str(fault).strip().partition(chr(10))[0]})")
                continue
            error, size = (out - expected).norm().item(), expected.norm().item()
            if error <= self.kind.max_error * size:
                return way
            faults.append(f"is off by {error / max(size, SMALLEST):.2g}")
        log.warning(
            "multiplying in %s %s on %s; weights are brought to %s for each product instead",
            self.name, ", then ".join(faults), x.device, str(x.dtype).removeprefix("torch."),
        )  # fmt: skip
        return None


def make_eight_bit(kind: str) -> EightBit | None:
    """The arithmetic called "fp8" or "int8"; None for "off".

    Raises: ConfigError for an unknown name.
    """
    if kind == "off":
        return None
    if kind not in KINDS:
        raise ConfigError(f"matmul must be off, {' or '.join(KINDS)}; got {kind!r}")
    return EightBit(kind)


class EightBitLinear(QuantizedLinear):
    """y = x W^T + b, both sides in 8 bits; few tokens, and odd sizes, meet W unpacked.

    Args:
        packed: uint8 [out_features, in_features], in the kind's format.
        scale: float32, one number or [out_features, 1], or None.
        arithmetic: shared by a model's layers.
    """

    def __init__(
        self, packed: Tensor, *, scale: Tensor | None, bias: nn.Parameter | None, arithmetic: EightBit
    ) -> None:
        super().__init__(packed, arithmetic.kind.packed_format, scale=scale, bias=bias)
        self.arithmetic = arithmetic

    def forward(self, input: Tensor) -> Tensor:
        return self._product(input, gelu=False)

    def with_gelu(self, input: Tensor) -> Tensor:
        return self._product(input, gelu=True)

    def _product(self, input: Tensor, *, gelu: bool) -> Tensor:
        tokens = input.flatten(0, -2)
        way = self.arithmetic.way(self, tokens)
        if way is None:
            return self.unpacked(input, gelu=gelu)
        out = self.multiplied(tokens, way).view(*input.shape[:-1], -1)
        return tanh_gelu(out) if gelu else out

    def multiplied(self, tokens: Tensor, way: Way) -> Tensor:
        """[M, K] -> [M, N]"""
        there = {"device": tokens.device, "non_blocking": True}
        weight = self.packed.to(**there).view(self.arithmetic.kind.rounding.dtype)
        scale = tokens.new_ones((), dtype=torch.float32)
        if self.scale_bits is not None:
            scale = self.scale_bits.to(**there).view(torch.float32)
        bias = None if self.bias is None else self.bias.to(**there)
        return way(tokens, weight, scale, bias)

"""The layers a model is built from: torch's own, with weights brought to the input's dtype and device at use.

A model asks a namespace like this one for its layers, so a host can lend its own (the same names, the same rule).
Knows no model.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cpu


def like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """The parameter in `x`'s dtype and on its device; itself where nothing differs."""
    return None if parameter is None else parameter.to(device=x.device, dtype=x.dtype, non_blocking=True)


def wants_new_tensors(x: Tensor) -> bool:
    """Whether each result must be a tensor of its own: for gradients, under torch.compile (which plans memory itself),
    and where complex numbers are not at home. Otherwise what a layer made may be written over."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type not in ("cpu", "cuda", "meta")


def tanh_gelu(x: Tensor) -> Tensor:
    """x may be given up."""
    if wants_new_tensors(x):
        return F.gelu(x, approximate="tanh")
    return torch.ops.aten.gelu_(x, approximate="tanh")


def product(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x W^T + b of one dtype and device; `gelu`: then tanh-GELU, in one kernel where there is one."""
    if not wants_new_tensors(x) and cpu.multiplies(x):
        return cpu.linear(x, weight, bias, gelu=gelu)
    out = F.linear(x, weight, bias)
    return tanh_gelu(out) if gelu else out


class Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return product(input, like(self.weight, input), like(self.bias, input))

    def with_gelu(self, input: Tensor) -> Tensor:
        """`forward`, then tanh-GELU. Calls no hooks."""
        return product(input, like(self.weight, input), like(self.bias, input), gelu=True)


class Conv1d(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, like(self.weight, input), like(self.bias, input))


class Conv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, like(self.weight, input), like(self.bias, input))


class LayerNorm(nn.LayerNorm):
    """Reduced in float32 whatever the input."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, like(self.weight, input), like(self.bias, input), self.eps)


class RMSNorm(nn.RMSNorm):
    """Reduced in float32 whatever the input. torch has no fused kernel for a CPU: fewer passes are made here."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu" and not wants_new_tensors(input):
            length = torch.linalg.vector_norm(input, dim=-1, keepdim=True, dtype=torch.float32)
            inverse = length.square_().div_(input.shape[-1]).add_(self.eps).rsqrt_()
            return torch.mul(input, inverse).mul_(self.weight.to(input.device)).to(input.dtype)
        return F.rms_norm(input, self.normalized_shape, like(self.weight, input), self.eps)


class Embedding(nn.Embedding):
    pass


class Layers(Protocol):
    """What a model needs of its lender: layer classes that take torch's arguments and cast weights at use."""

    Linear: type[nn.Module]
    Conv1d: type[nn.Module]
    Conv3d: type[nn.Module]
    LayerNorm: type[nn.Module]
    RMSNorm: type[nn.Module]
    Embedding: type[nn.Module]


class Factory:
    """`Layers` with device and dtype filled in."""

    def __init__(self, layers: Layers, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        self.layers = layers
        self.where = {"device": device, "dtype": dtype}

    def linear(self, num_in: int, num_out: int) -> nn.Module:
        return self.layers.Linear(num_in, num_out, **self.where)

    def conv1d(self, num_in: int, num_out: int, kernel: int, stride: int = 1) -> nn.Module:
        return self.layers.Conv1d(num_in, num_out, kernel, stride=stride, **self.where)

    def patch_conv(self, num_in: int, num_out: int, patch: tuple[int, int, int]) -> nn.Module:
        """A 3-D convolution whose stride is its kernel: one token a patch."""
        return self.layers.Conv3d(num_in, num_out, kernel_size=patch, stride=patch, **self.where)

    def layer_norm(self, dim: int, eps: float, *, affine: bool = False) -> nn.Module:
        return self.layers.LayerNorm(dim, eps=eps, elementwise_affine=affine, **self.where)

    def rms_norm(self, dim: int, eps: float) -> nn.Module:
        return self.layers.RMSNorm(dim, eps=eps, **self.where)

    def embedding(self, num: int, dim: int) -> nn.Module:
        return self.layers.Embedding(num, dim, **self.where)

    def parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.zeros(*shape, **self.where))

"""Tensors that change places between the processes of a group, with their gradients.

Knows dims and groups; not what the tensors mean. Every process of the group makes the same calls in the same order.
B batch, n tokens of one rank, P ranks of the group, H heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor
from torch.autograd import Function


class _AllToAll(Function):
    """Part p of dim 0 goes to rank p; the gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grad, ctx.group), None


def _all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    dist.all_to_all_single(out, x, group=group)
    return out


def all_tokens_of_some_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, n, H, d] -> [B, P*n, H/P, d]: the tokens of all ranks in their order, this rank's share of the heads."""
    parts = rearrange(x, "b n (p h) d -> p b n h d", p=group.size())
    return rearrange(_AllToAll.apply(parts, group), "p b n h d -> b (p n) h d")


def own_tokens_of_all_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, P*n, H/P, d] -> [B, n, H, d]: the way back."""
    parts = rearrange(x, "b (p n) h d -> p b n h d", p=group.size())
    return rearrange(_AllToAll.apply(parts, group), "p b n h d -> b n (p h) d")


class _Gather(Function):
    """All ranks' parts everywhere. Backward: own part, times P.

    Each rank makes the same loss of what is gathered, and gradients of weights are means over ranks: the mean of P
    equal losses is one loss, of which each rank has the part that went through its own tokens, P times.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = list(x.new_empty(group.size(), *x.shape).unbind())
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.group.rank()] * ctx.group.size(), None


def gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, n, c] of every rank -> [B, P*n, c] on every rank, for a loss that every rank makes alike."""
    return rearrange(_Gather.apply(x, group), "p b n c -> b (p n) c")

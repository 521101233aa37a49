"""Ring attention: queries stay, keys and values pass from rank to rank, and their gradients travel home with them.

Knows blocks of a sequence; not what the tokens are. Every block is attended with torch's own kernel, which tells the
logarithm of its sum of exponentials (lse); with it the blocks' results become the whole sequence's.
B batch, h heads, n tokens of one rank, d channels of a head, R ranks of the ring.
Source: Liu et al., arXiv 2310.01889.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

Seeds = tuple[Tensor, ...]   # what CUDA's flash kernel wants back; without dropout it is not used


def ring_attention(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup, lengths: Sequence[int]) -> Tensor:
    """Attention of own queries to the keys and values of all ranks.

    Args:
        q, k, v: [B, n, h, d], the same n on every rank.
        lengths: per rank, how many of its keys count, from the first.

    Returns: [B, n, h, d].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return _RingAttention.apply(q, k, v, group, tuple(lengths)).transpose(1, 2)


class _RingAttention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup, lengths: tuple[int, ...]
    ) -> Tensor:
        """q, k, v [B, h, n, d]."""
        out = lse = None
        seeds: Seeds = ()
        pair = torch.stack([k, v])
        for hop, length in _hops(group, lengths):
            coming = _Passing(pair, group) if hop + 1 < group.size() else None
            if length:
                part, part_lse, seeds = attend_block(q, pair[0, :, :, :length], pair[1, :, :, :length])
                out, lse = (part.to(_wide(q)), part_lse) if out is None else merge(out, lse, part, part_lse)
            pair = coming.arrived() if coming else pair
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, lse, *seeds)
        ctx.group, ctx.lengths = group, lengths
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *seeds = ctx.saved_tensors
        group = ctx.group
        pair, pair_grad = torch.stack([k, v]), torch.zeros(2, *k.shape, dtype=_wide(k), device=k.device)
        q_grad = torch.zeros_like(pair_grad[0])
        for hop, length in _hops(group, ctx.lengths):
            coming = _Passing(pair, group) if hop + 1 < group.size() else None
            if length:
                keys, values = pair[0, :, :, :length], pair[1, :, :, :length]
                grads = attend_block_backward(grad, q, keys, values, out, lse, tuple(seeds))
                q_grad += grads[0]
                pair_grad[0, :, :, :length] += grads[1]
                pair_grad[1, :, :, :length] += grads[2]
            pair_grad = _Passing(pair_grad, group).arrived()   # after the last hop it is home
            pair = coming.arrived() if coming else pair
        return q_grad.to(q.dtype), pair_grad[0].to(k.dtype), pair_grad[1].to(v.dtype), None, None


def _hops(group: dist.ProcessGroup, lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(hop, length of the block that is here then): own block first, then the previous ranks'."""
    return [(hop, lengths[(group.rank() - hop) % group.size()]) for hop in range(group.size())]


def _wide(x: Tensor) -> torch.dtype:
    """Sums over blocks are kept in float32, or wider."""
    return torch.promote_types(x.dtype, torch.float32)


class _Passing:
    """A tensor under way to the next rank, and one from the rank before."""

    def __init__(self, tensor: Tensor, group: dist.ProcessGroup) -> None:
        rank, size = group.rank(), group.size()
        self.leaving = tensor.contiguous()   # kept until it has left
        self.coming = torch.empty_like(self.leaving)
        following, before = (dist.get_global_rank(group, (rank + step) % size) for step in (1, -1))
        self.work = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, self.leaving, following, group=group),
                dist.P2POp(dist.irecv, self.coming, before, group=group),
            ]
        )

    def arrived(self) -> Tensor:
        for work in self.work:
            work.wait()
        return self.coming


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Two results of attention to different keys, as one of attention to all of them.

    Args:
        out, part: [B, h, n, d]; lse, part_lse: [B, h, n].
    """
    both = torch.logaddexp(lse, part_lse)
    out = out * (lse - both).exp().unsqueeze(-1) + part * (part_lse - both).exp().unsqueeze(-1)
    return out, both


def attend_block(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Seeds]:
    """Attention [B, h, n, d] to one block of keys, its lse [B, h, n], and what the backward kernel wants of it."""
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        return out, lse, ()
    if q.dtype in (torch.float16, torch.bfloat16):
        found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
        return found[0], found[1], (found[6], found[7])
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5   # no kernel of the device tells the lse in float32
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp() @ v, lse, ()


def attend_block_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, seeds: Seeds
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v through one block, `out` and `lse` being those of the *whole* sequence.

    With them every probability is what it is among all keys. Those of the block alone would be wrong, and so is
    letting autograd differentiate `merge`, as the kernels have no gradient through lse.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, False
        )
    if q.dtype in (torch.float16, torch.bfloat16):
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, False, *seeds
        )
    scale = q.shape[-1] ** -0.5
    share = (q @ k.transpose(-1, -2) * scale - lse.unsqueeze(-1)).exp()
    inner = share * (grad @ v.transpose(-1, -2) - (grad * out).sum(-1, keepdim=True)) * scale
    return inner @ k, inner.transpose(-1, -2) @ q, share.transpose(-1, -2) @ grad

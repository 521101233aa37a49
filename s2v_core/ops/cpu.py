"""Products that torch computes slower than need be on CPUs that multiply bf16 without AMX units (AMD's since Zen 4).

Knows tensors without gradients; whose they are, and when to come here, its callers know.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 512   # queries at a time: their scores stay in the cache
MIN_KEYS = 256   # with fewer keys,
MIN_CHANNELS = 64   # or channels of a head, torch's one kernel is faster than several


@cache
def helps() -> bool:
    """Whether this CPU is of that kind. torch's SDPA multiplies in float32 there, and its linear layers are MKL's.

    What tells so, and oneDNN's kernel, are torch's own affairs: a torch that lacks them, or means something else by
    them, is left to its own ways.
    """
    try:
        return (
            torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported() and _linear_is_right()
        )
    except (AttributeError, RuntimeError, TypeError):
        return False


def _linear_is_right() -> bool:
    """On small numbers, of which bf16 rounds nothing that matters here."""
    x, weight, bias = torch.arange(12.0).view(3, 4) / 8, torch.arange(8.0).view(2, 4) / 4, torch.tensor([0.5, -1.0])
    with torch.inference_mode():
        plain = F.linear(x, weight, bias)
        gelu = F.gelu(plain, approximate="tanh")
        return bool(
            torch.allclose(linear(x, weight, bias), plain, atol=1e-4)
            and torch.allclose(linear(x, weight, bias, gelu=True), gelu, atol=1e-4)
        )


def multiplies(x: Tensor) -> bool:
    """Whether `linear` takes x, and is faster."""
    suits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.dim() > 1 and x.numel() > 0
    return suits and helps()


def attends(q: Tensor, k: Tensor) -> bool:
    """Whether `attention` takes them, and is faster."""
    enough = k.shape[1] >= MIN_KEYS and k.shape[3] >= MIN_CHANNELS
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and enough and helps()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """`F.linear` by oneDNN's kernel, float32 or bf16; `gelu`: then tanh-GELU, before anything is rounded."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "tanh" if gelu else "")


def attention(q: Tensor, k: Tensor, v: Tensor, last_counts: int = 1) -> Tensor:
    """Attention in bf16, rounded where torch's kernel rounds: scores and softmax are float32, their use is bf16.

    Args:
        q: [B, N, heads, d] bf16; k, v: [B, M, heads, d].
        last_counts: for so many equal keys does the last one stand.
    """
    (B, N, heads, d), M = q.shape, k.shape[1]
    out = torch.empty(q.shape, dtype=q.dtype)
    scores, weights = torch.empty(min(N, ROWS), M), torch.empty(min(N, ROWS), M, dtype=v.dtype)   # made once
    for b, h in product(range(B), range(heads)):
        keys, values = k[b, :, h].float().t(), v[b, :, h]
        for queries, found in zip(q[b, :, h].split(ROWS), out[b, :, h].split(ROWS), strict=True):
            s, w = scores[: len(queries)], weights[: len(queries)]
            torch.mm(queries.float().mul_(d**-0.5), keys, out=s)
            if last_counts > 1:
                s[:, -1] += math.log(last_counts)
            w.copy_(torch.softmax(s, -1, out=s))
            found.copy_(torch.mm(w, values))
    return out

"""Rotary positions over time, height and width: cos/sin tables made once, applied to heads.

Knows positions as integers; which token stands where is `models/positions.py`'s business.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channel pairs turn with time, height and width (22|21|21 of 64 for the 14B model)."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def rope_angles(positions: Tensor, head_dim: int) -> Tensor:
    """Angles [N, head_dim/2] float64 for integer positions [N, 3] (t, h, w); a negative t turns backwards."""
    columns = []
    for axis, num_pairs in enumerate(axis_pairs(head_dim)):
        exponents = torch.arange(num_pairs, dtype=torch.float64, device=positions.device) / max(num_pairs, 1)
        columns.append(positions[:, axis, None].double() * THETA**-exponents)
    return torch.cat(columns, dim=1)


def rope_table(positions: Tensor, head_dim: int) -> Tensor:
    """Cosines and sines of the positions' angles, computed in float64.

    Args:
        positions: [N, 3] integers (t, h, w).

    Returns: [N, 1, head_dim/2, 2] float32, cosine and sine last; the 1 stands for the heads, which share it.
    """
    angles = rope_angles(positions, head_dim)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float().unsqueeze(1)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent channel pairs of x [..., N, heads, head_dim]; computed in float32, returned in x's dtype."""
    cos, sin = table.split(1, dim=-1)
    pairs = x.float().unflatten(-1, (-1, 2))
    # nothing is joined, so torch.compile makes it one kernel with the norm before
    signs = torch.arange(-1, 2, 2, dtype=table.dtype, device=table.device)   # -1, 1; a list would wait for the device
    turned = pairs * cos + pairs.flip(-1) * sin * signs
    return turned.flatten(-2).to(x.dtype)


def apply_rope_(x: Tensor, table: Tensor) -> Tensor:
    """`apply_rope` in place, in one pass: a pair is a complex number. x is float32 and contiguous."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(torch.view_as_complex(table))
    return x

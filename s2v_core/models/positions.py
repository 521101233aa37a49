"""Where each token stands in (t, h, w): video, reference and motion tokens.

Knows integers only. Source: the reference's rope grids, SPEC section 2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..geometry import REFERENCE_TIME, LatentGrid


def grid_positions(times: list[int], rows: list[int], columns: list[int]) -> Tensor:
    """[len(times)*len(rows)*len(columns), 3] positions, row-major."""
    axes = (torch.tensor(axis, dtype=torch.int64) for axis in (times, rows, columns))
    return torch.cartesian_prod(*axes).reshape(-1, 3)


def spread(first: int, last: int, num: int) -> list[int]:
    """`num` values evenly from `first` to `last`, truncated towards zero: how coarse tokens sample a finer grid."""
    return np.linspace(first, last, num).astype(int).tolist()


def video_positions(grid: LatentGrid) -> Tensor:
    """[T*h*w, 3] of the noisy tokens."""
    return grid_positions(list(range(grid.frames)), list(range(grid.height // 2)), list(range(grid.width // 2)))


def reference_positions(grid: LatentGrid) -> Tensor:
    """[h*w, 3] of the reference tokens, all at one time."""
    return grid_positions([REFERENCE_TIME], list(range(grid.height // 2)), list(range(grid.width // 2)))


def motion_positions(height: int, width: int, buckets: tuple[int, int, int], num_near: int = 2) -> Tensor:
    """Positions of the motion tokens: near, middle, far.

    Times count back from the clip. A bucket's tokens are spread over the times and the rows and columns
    that it covers (far: -19, -14, -9, -4), so they do not stand on every fourth.

    Args:
        height, width: of the latents, cells.
        buckets: latent frames in the near, middle and far bucket.
        num_near: 2: all three; 1: without the near one; 0: the far one alone.
    """
    rows, columns = height // 2, width // 2
    parts = []
    for i, (num_latents, merge) in enumerate(zip(buckets, (1, 2, 4), strict=True)):
        if 2 - i > num_near:
            continue
        back = sum(buckets[: i + 1])
        times = [-t for t in spread(back, back - num_latents + 1, num_latents // merge)]
        parts.append(
            grid_positions(times, spread(0, rows - 1, rows // merge), spread(0, columns - 1, columns // merge))
        )
    return torch.cat(parts)

"""A picture's rows shared out to several devices: each computes its own run of them, and sees its neighbours' edges.

Knows what the autoencoder's layers ask of a `Carry`; not what they compute, nor who asked for the picture. Ranks are
those of the default group, from the top of the picture down; all make the same calls in the same order.
B batch, C channels, H W cells, P ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..models.vae_layers import Carry, Frames


def row_shares(num_rows: int, num_ranks: int) -> list[int]:
    """How many rows each rank has: equal runs, as far as they come out even; none is without where P <= rows."""
    edges = [num_rows * rank // num_ranks for rank in range(num_ranks + 1)]
    return [stop - start for start, stop in zip(edges, edges[1:], strict=False)]


class SharedCarry(Carry):
    """What one rank keeps of a stream whose pictures are shared out by rows.

    Args:
        rows: latent rows of every rank, 1 or more.
    """

    rows_around = 0   # `edged` adds them

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.rank = dist.get_rank()

    def edged(self, frames: Frames, *, above: bool = True) -> Frames:
        """Frames with the rank above's last row and the rank below's first; zeros where the picture ends."""
        if not frames:
            return frames
        rank, last = self.rank, len(self.rows) - 1
        passing = Passing()
        if rank > 0:
            passing.send(_rows_at(frames, 0), rank - 1)
        if rank < last and above:
            passing.send(_rows_at(frames, -1), rank + 1)
        upper = passing.receive(_rows_at(frames, 0), rank - 1) if rank > 0 and above else None
        lower = passing.receive(_rows_at(frames, 0), rank + 1) if rank < last else None
        passing.wait()
        return [
            _with_rows(x, above, None if upper is None else upper[i], None if lower is None else lower[i])
            for i, x in enumerate(frames)
        ]

    def all_cells(self, x: Tensor) -> Tensor:
        """Every rank's cells, filled up to the longest share for the way."""
        B, _, num_own, C = x.shape
        width = num_own // self.rows[self.rank]
        filled = x.new_zeros(B, 1, max(self.rows) * width, C)
        filled[:, :, :num_own] = x
        parts = [torch.empty_like(filled) for _ in self.rows]
        dist.all_gather(parts, filled)
        return torch.cat([part[:, :, : rows * width] for part, rows in zip(parts, self.rows, strict=True)], 2)


class Passing:
    """Tensors on their way to some ranks and from some, all at once."""

    def __init__(self) -> None:
        self.works: list[dist.P2POp] = []

    def send(self, x: Tensor, rank: int) -> None:
        self.works.append(dist.P2POp(dist.isend, x.contiguous(), rank))

    def receive(self, like: Tensor, rank: int) -> Tensor:
        """What that rank sends, once `wait` has returned; of this shape and dtype."""
        coming = torch.empty_like(like, memory_format=torch.contiguous_format)
        self.works.append(dist.P2POp(dist.irecv, coming, rank))
        return coming

    def wait(self) -> None:
        for work in dist.batch_isend_irecv(self.works) if self.works else []:
            work.wait()


def _rows_at(frames: Frames, row: int) -> Tensor:
    """[frames, B, W, C]: a row of each frame."""
    return torch.stack([x[:, :, row].transpose(1, 2) for x in frames])


def _with_rows(x: Tensor, above: bool, upper: Tensor | None, lower: Tensor | None) -> Tensor:
    """[B, C, H, W] with one more row [B, W, C] below and, where asked for, above; None: of zeros."""
    B, C, H, W = x.shape
    out = x.new_empty(B, H + above + 1, W, C)
    out[:, above : above + H] = x.permute(0, 2, 3, 1)
    if above:
        out[:, 0] = 0 if upper is None else upper
    out[:, -1] = 0 if lower is None else lower
    return out.permute(0, 3, 1, 2)   # in channels-last memory, as all frames

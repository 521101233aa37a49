"""The processes of a run: which one this is, which of them belong together, and what they agree on.

Knows torch.distributed and a layout; no model and no data. A run of one process is no special case to its callers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ..errors import ConfigError
from .layout import Layout


@dataclass(frozen=True, kw_only=True, slots=True)
class Meshes:
    """The same processes from three sides."""

    world: DeviceMesh     # [all]: weights are sharded over it
    groups: DeviceMesh    # [data, context]
    sequence: DeviceMesh  # [data, ring, ulysses], Ulysses innermost


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process among its own.

    Everything here that talks to other processes must be called by all of them, in the same order.
    """

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    meshes: Meshes | None = None   # None: there is one process

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.meshes is None

    @property
    def data_rank(self) -> int:
        """Which of the groups with a batch each this process belongs to."""
        return self.rank // self.layout.context

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process."""
        return flag if self.is_alone else self._reduced(float(flag), dist.ReduceOp.MAX) > 0

    def mean(self, value: float) -> float:
        """Over all processes."""
        return value if self.is_alone else self._reduced(value, dist.ReduceOp.SUM) / self.layout.size

    def wait(self) -> None:
        """Until all processes are here."""
        if not self.is_alone:
            self._reduced(0.0, dist.ReduceOp.SUM)

    def _reduced(self, value: float, how: dist.ReduceOp.RedOpType) -> float:
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, how)   # on the CPU, so through gloo, whatever the device
        return tensor.item()


def launched() -> tuple[int, int, int]:
    """Rank, local rank and number of processes, as torchrun and accelerate tell them; 0, 0, 1 without a launcher."""
    rank, local, size = (int(os.environ.get(name, default)) for name, default in
                         (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
    return rank, local, size


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Connected with the other processes of the launch, for a while; nothing happens where there are none."""
    if launched()[2] == 1:
        yield
        return
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    dist.init_process_group(backend)
    try:
        yield
        dist.all_reduce(torch.zeros(1))   # nobody hangs up on those who still work
    finally:
        dist.destroy_process_group()


def make_ranks(layout: Layout, device: torch.device) -> Ranks:
    """This process's place in a layout. The processes are `joined`.

    Raises: ConfigError when the layout is of another number of processes, or they are not connected.
    """
    if not dist.is_initialized():
        if launched()[2] > 1:
            raise ConfigError(f"{launched()[2]} processes were launched, and they are not connected: join them first")
        layout.check_size(1)
        return Ranks(layout=layout)
    layout.check_size(dist.get_world_size())
    kind = device.type
    return Ranks(
        layout=layout,
        rank=dist.get_rank(),
        meshes=Meshes(
            world=init_device_mesh(kind, (layout.size,), mesh_dim_names=("all",)),
            groups=init_device_mesh(kind, (layout.data, layout.context), mesh_dim_names=("data", "context")),
            sequence=init_device_mesh(
                kind, (layout.data, layout.ring, layout.ulysses), mesh_dim_names=("data", "ring", "ulysses")
            ),
        ),
    )

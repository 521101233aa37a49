"""Weights in shares: every device keeps an equal part of each tensor and gathers a block's just before it runs (FSDP2).

Knows which modules of the transformer run together; not what they compute. Names, optimiser and losses see the same
model as before, with tensors that are rows of the whole ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..models.dit import WanS2VTransformer
from ..models.dit_blocks import CrossAttention


def shard_layers(
    model: WanS2VTransformer, mesh: DeviceMesh, *, prepare: Callable[[nn.Module], None] | None = None
) -> None:
    """Shard a transformer's blocks and audio layers over a mesh of one dim; what is left is for `shard_rest`.

    They are gathered one by one, in the dtype they compute in, and gradients are summed in float32. Weights may still
    be in host memory. Keys and values of the prompt and of the sound are made outside the blocks' forward, so what
    makes them is gathered by itself.

    Args:
        prepare: told of every layer just before it is sharded: what it copies there is one layer's, never the model's.
    """
    prepare = prepare or _leave
    policy = _policy(model.compute_dtype)
    injector = model.audio_injector
    for layer in injector.injector:
        prepare(layer)
        _shard_together([layer.k, layer.norm_k, layer.v], mesh, policy)
        _shard_together([layer.q, layer.norm_q, layer.o], mesh, policy)
    if injector.use_adain:
        for adain in injector.injector_adain_layers:
            prepare(adain)
            fully_shard(adain, mesh=mesh, mp_policy=policy)
    for block in model.blocks:
        prepare(block)
        attention: CrossAttention = block.cross_attn
        _shard_together([attention.k, attention.norm_k, attention.v], mesh, policy)
        fully_shard(block, mesh=mesh, mp_policy=policy)


def shard_rest(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard what `shard_layers` has left of a module: small, so it stays gathered from its forward on to its backward.

    Only the module's own forward brings it together, and gradients are complete only if all of the module's work
    happens inside.
    """
    fully_shard(module, mesh=mesh, mp_policy=_policy(None), reshard_after_forward=False)
    # Torch warns of results that are views, in case they are changed in place; ours are not.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def _leave(module: nn.Module) -> None:
    """As it is."""


def _policy(dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """Gathered in `dtype` (None: as kept), gradients summed in float32; inputs are the model's business."""
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _shard_together(modules: list[nn.Module], mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Modules that run one after another, gathered at once."""
    fully_shard([module for module in modules if any(True for _ in module.parameters())], mesh=mesh, mp_policy=policy)


@contextmanager
def gathered_rest(module: nn.Module) -> Iterator[None]:
    """What `shard_rest` has sharded is there for a while, for an evaluation that does not go through its forward."""
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        let_go(module)


def let_go(module: nn.Module) -> None:
    """Drop what an evaluation has left gathered: it would hide weights that are changed now."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def own_rows(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: its rows where it is sharded, else all of it. Writing there changes it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; every process of the mesh asks for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_of(like: Tensor) -> tuple[int, int] | None:
    """Which rows of a sharded tensor this process has, from and up to; None: all."""
    if not isinstance(like, DTensor):
        return None
    mesh, total = like.device_mesh, like.shape[0]
    chunk = -(-total // mesh.size())
    start = min(total, mesh.get_local_rank() * chunk)
    return start, min(total, start + chunk)


def as_shard(rows: Tensor, like: Tensor) -> Tensor:
    """Own rows as a part of a tensor sharded like another."""
    if not isinstance(like, DTensor):
        return rows
    return DTensor.from_local(rows, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())

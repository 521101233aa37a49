"""Several processes denoise together: guidance's branches by group, the sequence shared inside a group.

One process leads: it has the inputs and makes what becomes of the latents. The others follow: they are told the inputs
and do their part of every step. Knows calls and their arguments; not what a clip is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..models.dit import ClipContext, TimeContext, WanS2VTransformer
from .context import share_sequences
from .ranks import Ranks

Denoise = Callable[[Any, Tensor, Callable[[int, int], None]], Tensor]
"""(inputs of a clip, noise, called after every step) -> latents."""

Velocities = Callable[[Tensor, "Tensor | TimeContext", Sequence[ClipContext]], tuple[Tensor, ...]]


def share_denoising(model: WanS2VTransformer, ranks: Ranks) -> None:
    """Let every group of ranks compute some of guidance's branches, and its ranks share the sequence.

    Raises: ConfigError when the heads cannot be shared out.
    """
    assert ranks.meshes is not None, "one process shares with nobody"
    share_sequences(model, ranks)
    if ranks.layout.data > 1:
        model.branches = partial(_branches_by_group, model.branches, ranks)


def _branches_by_group(
    compute: Velocities, ranks: Ranks, latents: Tensor, timestep: Tensor | TimeContext, clips: Sequence[ClipContext]
) -> tuple[Tensor, ...]:
    """The velocities of all clips; group g computes the clips g, g + groups, ..."""
    assert ranks.meshes is not None
    groups, own = ranks.layout.data, clips[ranks.data_rank :: ranks.layout.data]
    found = list(compute(latents, timestep, own)) if own else []
    most = -(-len(clips) // groups)
    *front, height, width = latents.shape
    empty = latents.new_zeros(*front, height // 2 * 2, width // 2 * 2, dtype=torch.float32)
    parts = torch.stack(found + [empty] * (most - len(found)))
    every = [torch.empty_like(parts) for _ in range(groups)]
    dist.all_gather(every, parts, group=ranks.meshes.groups.get_group("data"))
    return tuple(every[i % groups][i // groups] for i in range(len(clips)))


@contextmanager
def leading(denoise: Denoise, settings: object) -> Iterator[Denoise]:
    """A video's denoising, in which the others are told to take part.

    What is raised inside a step leaves the others in the middle of it: they are told nothing more.
    """
    _tell(settings)
    in_step = False

    def led(inputs: Any, noise: Tensor, on_step: Callable[[int, int], None]) -> Tensor:
        nonlocal in_step
        in_step = True
        _tell((_on_cpu(inputs), noise.cpu()))
        latents = denoise(inputs, noise, on_step)
        in_step = False
        return latents

    try:
        yield led
    finally:
        if not in_step:
            _tell(None)


def follow(denoising: Callable[[Any], AbstractContextManager[Denoise]]) -> None:
    """Take part in what is led, video by video, until there is no more.

    Args:
        denoising: a video's settings -> its denoiser, as the leader makes it.
    """
    while (settings := _told()) is not None:
        with denoising(settings) as denoise:
            while (call := _told()) is not None:
                denoise(*call, _nobody_watches)


def dismiss() -> None:
    """Tell those who follow that there is no more."""
    _tell(None)


def _nobody_watches(step: int, steps: int) -> None:
    pass


def _tell(what: object) -> None:
    dist.broadcast_object_list([what], src=0, device=torch.device("cpu"))


def _told() -> Any:
    heard: list[Any] = [None]
    dist.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
    return heard[0]


def _on_cpu(inputs: Any) -> Any:
    assert is_dataclass(inputs), "inputs are a frozen dataclass"
    values = {f.name: getattr(inputs, f.name) for f in fields(inputs)}
    return replace(inputs, **{name: value.cpu() for name, value in values.items() if isinstance(value, Tensor)})

"""Several processes make a video together: guidance's branches by group, the sequence shared inside a group.

One process leads: it has the inputs and makes what becomes of the results. The others follow: they are told what is
asked of them and do their part of it. Knows calls and their arguments; not what a clip is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import S2VError
from ..models.dit import ClipContext, TimeContext, WanS2VTransformer
from ..ops.attention import AttentionFn
from .context import SharedSequence, attend_with, share_sequences
from .ranks import Ranks

Denoise = Callable[[Any, Tensor, Callable[[int, int], None]], Tensor]
"""(inputs of a clip, noise, called after every step) -> latents."""

Velocities = Callable[[Tensor, "Tensor | TimeContext", Sequence[ClipContext]], tuple[Tensor, ...]]


def share_denoising(model: WanS2VTransformer, ranks: Ranks, everyone: Ranks) -> None:
    """Let every group of ranks compute some of guidance's branches, and its ranks share the sequence; branches that are
    left over, and the only one of a step without guidance, are shared by all.

    Args:
        everyone: the same processes, in a layout of one group.

    Raises: ConfigError when the heads cannot be shared out.
    """
    assert ranks.meshes is not None, "one process shares with nobody"
    if ranks.layout.data == 1:
        share_sequences(model, ranks)
        return
    sequences = Sequences(SharedSequence(model, ranks), SharedSequence(model, everyone))
    model.sharding = sequences
    attend_with(model, sequences.attend)
    model.branches = partial(_branches_by_group, model.branches, ranks, sequences)


class Sequences:
    """A sequence that the ranks of a group share, or all of them. A `models.dit.TokenSharding`."""

    def __init__(self, of_group: SharedSequence, of_all: SharedSequence) -> None:
        self._now, self._other = of_group, of_all

    @contextmanager
    def shared_by_all(self) -> Iterator[None]:
        self._now, self._other = self._other, self._now
        try:
            yield
        finally:
            self._now, self._other = self._other, self._now

    def split(self, x: Tensor, clip: ClipContext) -> tuple[Tensor, ClipContext]:
        return self._now.split(x, clip)

    def gather(self, patches: Tensor, clip: ClipContext) -> Tensor:
        return self._now.gather(patches, clip)

    def attend(self, attention: AttentionFn, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._now.attend(attention, q, k, v)


def _branches_by_group(
    compute: Velocities,
    ranks: Ranks,
    sequences: Sequences,
    latents: Tensor,
    timestep: Tensor | TimeContext,
    clips: Sequence[ClipContext],
) -> tuple[Tensor, ...]:
    """The velocities of all clips: as many as come out even by groups, group g the clips g, g + groups, ..."""
    assert ranks.meshes is not None
    groups = ranks.layout.data
    each = len(clips) // groups
    found: tuple[Tensor, ...] = ()
    if each:
        parts = torch.stack(compute(latents, timestep, clips[ranks.data_rank : each * groups : groups]))
        every = [torch.empty_like(parts) for _ in range(groups)]
        dist.all_gather(every, parts, group=ranks.meshes.groups.get_group("data"))
        found = tuple(every[i % groups][i // groups] for i in range(each * groups))
    if len(found) == len(clips):
        return found
    with sequences.shared_by_all():
        return (*found, *compute(latents, timestep, clips[each * groups :]))


class Lead:
    """How the first process tells the others what all do now.

    What is raised inside of common work leaves the others in the middle of it: they are told nothing more.
    """

    def __init__(self) -> None:
        self.is_lost = False

    @contextmanager
    def call(self, what: str, *arguments: object) -> Iterator[None]:
        """Common work. Raises: S2VError after some that failed."""
        self._require_all()
        self.is_lost = True
        _tell((what, *arguments))
        yield
        self.is_lost = False

    @contextmanager
    def denoising(self, denoise: Denoise, *about: object) -> Iterator[Denoise]:
        """A video's denoising, in which the others take part; they are told what it is `about`."""
        with self.call("video", *about):
            pass

        def led(inputs: Any, noise: Tensor, on_step: Callable[[int, int], None]) -> Tensor:
            with self.call("clip", _on_cpu(inputs), noise.cpu()):
                return denoise(inputs, noise, on_step)

        try:
            yield led
        finally:
            if not self.is_lost:
                _tell(("end",))

    def dismiss(self) -> None:
        """There is no more to do. Raises: S2VError after common work that failed: nobody is left who listens."""
        self._require_all()
        _tell(None)

    def _require_all(self) -> None:
        if self.is_lost:
            raise S2VError("the processes stopped in different places when this one failed: start all of them again")


class Part(Protocol):
    """What a process has of other common work; `parallel.codec.CodecPart`."""

    def encode(self, shape: Sequence[int]) -> object: ...
    def prime(self, number: int, latents: Tensor) -> None: ...
    def decode(self, number: int, latents: Tensor) -> object: ...
    def forget(self, numbers: Sequence[int]) -> None: ...


def follow(denoising: Callable[..., AbstractContextManager[Denoise]], part: Callable[[], Part]) -> None:
    """Take part in what is led, until there is no more.

    Args:
        denoising: what the leader says a video is about -> its denoiser, as the leader makes it.
        part: of this process in other work, made when it is first needed.
    """
    with ExitStack() as video:
        denoise: Denoise | None = None
        while (call := _told()) is not None:
            what, *arguments = call
            if what == "video":
                denoise = video.enter_context(denoising(*arguments))
            elif what == "clip":
                denoise(*arguments, _nobody_watches)
            elif what == "end":
                video.close()
            else:
                getattr(part(), what)(*arguments)


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

"""AdamW in the kinds that a run can ask for: fused, with 8-bit moments, or with its moments in CPU memory.

Knows parameters and packages; not steps, rates over a run, or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import ConfigError
from ..parallel.state import numbers
from ..parallel.weights import as_shard, own_rows
from .config import OptimizerConfig


class Optimizer(Protocol):
    """What the trainer needs of torch's optimisers, and of those that are like them."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def zero_grad(self) -> None: ...
    def step(self) -> object: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> Optimizer:
    """Raises: ConfigError when the kind needs a package that is not installed."""
    settings = {
        "lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay
    }  # fmt: skip
    if config.offload:
        return OffloadedAdamW(parameters, settings)
    if config.moments == "8bit":
        return _adamw_8bit(list(parameters), settings)
    return torch.optim.AdamW(parameters, fused=True, **settings)


@torch.no_grad()
def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)   # torchao's, compiled with it
        else:
            group["lr"] = rate


def load_moments(optimizer: Optimizer, state_for: Callable[[list[Tensor]], Mapping[str, Any]]) -> None:
    """Go on with saved moments and this optimiser's own settings: a saved state brings those that it was made with.

    Args:
        state_for: the parameters in the optimiser's order -> what `state_dict` gave.
    """
    groups = optimizer.param_groups
    settings = [{name: value for name, value in group.items() if name != "params"} for group in groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    state = state_for(parameters)
    for number, values in state["state"].items():
        _keep_in_kind(optimizer, parameters[number], values)
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _keep_in_kind(optimizer: Optimizer, parameter: Tensor, values: dict[str, Any]) -> None:
    """Moments as this optimiser keeps those of a parameter; they may be of another one, or of other shares."""
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        if name not in values:
            continue
        saved, make = own_rows(values[name]), getattr(optimizer, "_new_buffer", None)   # torchao's
        wanted = torch.empty(0) if make is None else make(parameter, signed)
        if type(own_rows(wanted)) is type(saved):
            continue
        if make is None:
            values[name] = as_shard(numbers(saved), parameter)
        else:
            own_rows(wanted).copy_(numbers(saved))
            values[name] = wanted


def _adamw_8bit(parameters: list[nn.Parameter], settings: dict[str, Any]) -> Optimizer:
    """torchao's, or bitsandbytes' where that alone is installed; the latter cannot take sharded weights."""
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise ConfigError("moments: 8bit needs torchao for sharded weights: pip install torchao") from None
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise ConfigError("moments: 8bit needs torchao or bitsandbytes: pip install torchao") from None
    return AdamW8bit(parameters, **settings)


class OffloadedAdamW:
    """AdamW on the CPU for weights anywhere: its moments, and a copy of the weights that it changes, lie in CPU memory.

    A step takes the gradients there and the new weights back; the numbers are those of AdamW on the CPU.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], settings: dict[str, Any]) -> None:
        self.parameters = list(parameters)
        self._copies = [nn.Parameter(p.detach().to("cpu", copy=True)) for p in self.parameters]
        self._inner = torch.optim.AdamW(self._copies, fused=True, **settings)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._inner.param_groups

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for parameter, copy in zip(self.parameters, self._copies, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.to("cpu")
        self._inner.step()
        for parameter, copy in zip(self.parameters, self._copies, strict=True):
            if copy.grad is not None:
                parameter.copy_(copy)
                copy.grad = None

    def state_dict(self) -> dict[str, Any]:
        return self._inner.state_dict()

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The weights themselves are not in the state: they are copied as they are now."""
        self._inner.load_state_dict(dict(state))
        for parameter, copy in zip(self.parameters, self._copies, strict=True):
            copy.copy_(parameter)

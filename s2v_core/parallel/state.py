"""A run's state in pieces: what one process has of it, and how pieces of other processes become its own again.

Knows nested mappings and lists of tensors; not files, nor what the tensors are for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .weights import as_shard, own_rows, rows_of


class Pieces:
    """A tensor of which every process of an earlier run has left its rows; together, in their order, they are it."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    def part_of(self, like: Tensor) -> Tensor:
        """What this process has of it, if it is sharded as `like` is: pieces are read only as far as they count."""
        rows = rows_of(like)
        if self.tensors[0].ndim == 0 or len(self.tensors) == 1 and rows is None:
            return self.tensors[0]
        start, stop = rows or (0, like.shape[0])
        at, parts = 0, []
        for tensor in self.tensors:
            end = at + tensor.shape[0]
            if at == start and end == stop:
                return tensor
            if max(at, start) < min(end, stop):
                parts.append(numbers(tensor)[max(at, start) - at : min(end, stop) - at])
            at = end
        return torch.cat(parts) if parts else numbers(self.tensors[0])[:0]


def numbers(tensor: Tensor) -> Tensor:
    """A tensor's numbers: kinds that keep them in 8 bits can be cut or joined in no other form."""
    return tensor if type(tensor) is Tensor else tensor.dequantize()


def own_part(state: object) -> object:
    """A state of which only own rows are left."""
    return _mapped(own_rows, state)


def from_pieces(states: Sequence[Any]) -> Any:
    """The own parts of all processes, in order, as one state whose tensors are `Pieces`."""
    first = states[0]
    if isinstance(first, Tensor):
        return Pieces(states)
    if isinstance(first, Mapping):
        return {key: from_pieces([state[key] for state in states]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(from_pieces(items) for items in zip(*states, strict=True))
    return first


def optimizer_state(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimiser's state of `Pieces` for parameters as they are sharded here, by their numbers."""
    moments = {
        number: {name: _like(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    groups = [{name: _whole(value) for name, value in group.items()} for group in state["param_groups"]]
    return {**state, "state": moments, "param_groups": groups}


def _whole(value: object) -> object:
    """A tensor that is alike everywhere, such as a learning rate."""
    return value.tensors[0].clone() if isinstance(value, Pieces) else value


def _like(value: object, parameter: Tensor) -> object:
    if not isinstance(value, Pieces):
        return value
    rows = value.part_of(parameter)
    return rows if rows.ndim == 0 else as_shard(rows.to(own_rows(parameter).device, copy=True), parameter)


def _mapped(change: Callable[[Tensor], Tensor], state: object) -> object:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, Mapping):
        return {key: _mapped(change, value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_mapped(change, value) for value in state)
    return state

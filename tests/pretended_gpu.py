"""A GPU for machines without one: real numbers on the CPU, in tensors that say they are elsewhere and keep to that.

What a real one refuses is refused: operations on tensors of two devices, `numpy` of what lies there. Copies that a
second stream makes are not-a-number until somebody waits for them. Counts the traffic between the two places.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
traffic: Counter[str] = Counter()
"""What went "over" and "back" since the start of the pretence, and what was "read": each of these makes a GPU wait."""


class There(Tensor):
    """A tensor whose numbers are in `here`; for torch it is on the GPU."""

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        shell = torch.empty_strided(here.shape, here.stride(), dtype=here.dtype, device="meta")
        return Tensor._make_subclass(cls, shell)

    def __init__(self, here: Tensor) -> None:
        self.here = here

    def __repr__(self) -> str:
        return f"There({self.here})"

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.here.__reduce_ex__(protocol)   # as a checkpoint that is read back on the CPU

    device, is_cuda, is_meta = property(lambda self: GPU), True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _inner(x: object) -> object:
    return x.here if isinstance(x, There) else x


def _numbered(x: object) -> object:
    is_gpu = x.type == GPU.type if isinstance(x, torch.device) else isinstance(x, str) and x == "cuda"
    return GPU if is_gpu else x


def _count(target: object, source: object) -> None:
    is_there = isinstance(target, There)
    if isinstance(source, Tensor) and is_there != isinstance(source, There):
        traffic["over" if is_there else "back"] += 1


def _run(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    asked = kwargs.get("device")
    is_there = bool(there) if asked is None else torch.device(asked).type == GPU.type
    inputs = tree_map(_inner, args), {**tree_map(_inner, kwargs), **({} if asked is None else {"device": "cpu"})}
    if func is aten.copy_.default:
        _count(args[0], args[1])
        func(*inputs[0], **inputs[1])
        return args[0]
    if func is aten._to_copy.default:
        return _copied(func(*inputs[0], **inputs[1]), isinstance(args[0], There), is_there)
    if there and any(x.dim() > 0 for x in tensors if not isinstance(x, There)):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found the GPU and the CPU")
    traffic["read"] += func is aten._local_scalar_dense.default and bool(there)
    known = {id(x.here): x for x in there}
    out = func(*inputs[0], **inputs[1])
    if not is_there:
        return out
    return tree_map(lambda x: (known[id(x)] if id(x) in known else There(x)) if isinstance(x, Tensor) else x, out)


def _copied(out: Tensor, was_there: bool, is_there: bool) -> Tensor:
    if was_there == is_there:
        return There(out) if is_there else out
    traffic["over" if is_there else "back"] += 1
    if not is_there:
        return out.clone()
    stream = current_stream()
    return There(out.clone() if stream.is_first else stream.later(out))


class Modes(TorchFunctionMode):
    """What asks the driver before it comes to the dispatcher: "cuda" without a number, tensors filled from lists."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(_numbered, args), tree_map(_numbered, kwargs or {})
        kwargs.pop("pin_memory", None)
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], There):
            args, kwargs = args[:1], {"device": GPU, "dtype": args[1].dtype, **kwargs}
        if func is Tensor.new_tensor and isinstance(args[0], There):
            traffic["over"] += 1
            return There(args[0].here.new_tensor(*args[1:], **kwargs))
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == GPU.type:
            traffic["over"] += 1
            return There(func(*tree_map(_inner, args), **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


# ---- streams ------------------------------------------------------------------------------------------------------


class Stream:
    """Work that is done when somebody waits for it."""

    def __init__(self, device: object = None, *, is_first: bool = False) -> None:
        self.is_first = is_first
        self.pending: list[tuple[Tensor, Tensor]] = []

    def later(self, source: Tensor) -> Tensor:
        target = torch.full_like(source, float("nan")) if source.is_floating_point() else torch.zeros_like(source)
        self.pending.append((target, source))
        return target

    def wait_event(self, event: Event) -> None:
        event.stream.finish(event.count)

    def finish(self, count: int) -> None:
        for target, source in self.pending[:count]:
            target.copy_(source)


class Event:
    def record(self, stream: Stream) -> None:
        self.stream, self.count = stream, len(stream.pending)

    def synchronize(self) -> None:
        self.stream.finish(self.count)


_FIRST, _local = Stream(is_first=True), threading.local()


def current_stream(device: object = None) -> Stream:
    return getattr(_local, "stream", _FIRST)


@contextlib.contextmanager
def use(stream: Stream) -> Iterator[None]:
    before, _local.stream = current_stream(), stream
    try:
        yield
    finally:
        _local.stream = before


class Pool(ThreadPoolExecutor):
    """Threads for which the pretence holds too."""

    def submit(self, work: Callable, /, *args: object, **kwargs: object) -> Future:
        def there() -> object:
            with Dispatch(), Modes():
                return work(*args, **kwargs)

        return super().submit(there)


def _get_data(tensor: Tensor) -> Tensor:
    return There(tensor.here) if isinstance(tensor, There) else torch._C.TensorBase.data.__get__(tensor)


def _set_data(tensor: Tensor, value: Tensor) -> None:
    if isinstance(tensor, There) or isinstance(value, There):
        fresh = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value.detach()
        torch.utils.swap_tensors(tensor, fresh)
    else:
        torch._C.TensorBase.data.__set__(tensor, value)


@contextlib.contextmanager
def pretended_gpu(free: int = 20 << 30) -> Iterator[Counter[str]]:
    """Inside, "cuda" is a device of this machine with `free` bytes. Yields: the traffic so far."""
    cuda = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "device_count": lambda: 1,
        "mem_get_info": lambda device=None: (free, free), "empty_cache": lambda: None,
        "memory_reserved": lambda device=None: 0, "memory_allocated": lambda device=None: 0,
        "synchronize": lambda device=None: None, "current_device": lambda: 0, "Stream": Stream, "Event": Event,
        "stream": use, "current_stream": current_stream,
    }  # fmt: skip
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    traffic.clear()
    try:
        with contextlib.ExitStack() as stack:
            for name, value in cuda.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, value))
            stack.enter_context(mock.patch.object(Tensor, "data", property(_get_data, _set_data)))
            stack.enter_context(mock.patch.object(Tensor, "record_stream", lambda self, stream: None))
            stack.enter_context(mock.patch("s2v_core.placement.ThreadPoolExecutor", Pool))
            stack.enter_context(Dispatch())
            stack.enter_context(Modes())
            yield traffic
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)

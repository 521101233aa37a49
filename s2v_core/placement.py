"""Where things run: device, dtype, offloading, and what it will cost in memory. The only caller of torch.cuda.

Knows modules and bytes; not what the modules compute.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import ConfigError

log = logging.getLogger(__name__)

OFFLOADS = ("auto", "none", "model", "blocks")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 1024**3
SLAB = GIB      # of pinned memory, at a time
ALIGNED = 512   # bytes, at a multiple of which a tensor in it begins

_HOST = torch.device("cpu")
_MEMORY = Path("/proc/meminfo")   # Linux

Arrival = tuple[list[Tensor], "torch.cuda.Event | None"]
"""Copies of a block's tensors, and the event after which they are there."""


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The named device, or the best one here: cuda, then mps, then cpu.

    Raises: ConfigError for a device that this machine does not have.
    """
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= count.get(device.type, 0):
        raise ConfigError(f"device {name!r} is not available here; use 'cpu', or 'auto' for the best there is")
    return device


def device_of_process(device: torch.device, local_rank: int) -> torch.device:
    """A GPU of its own for each of several processes on a machine; other devices are shared.

    Raises: ConfigError when there are too few, or one was named for all.
    """
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise ConfigError(f"device {device} cannot be every process's own; say 'cuda' (CUDA_VISIBLE_DEVICES chooses)")
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(f"process {local_rank + 1} has no GPU of its own, there are {num_gpus}: launch as many")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def choose_dtype(dtype: torch.dtype | None, device: torch.device, stored: torch.dtype) -> torch.dtype:
    """The dtype that the transformer computes in: as asked; else bf16 on a GPU, and on a CPU as the weights are stored.

    Quantised weights (fp8, GGUF) are stored in no dtype that computes: they ask for bf16.
    """
    if dtype is not None:
        return dtype
    if device.type == "mps":
        return torch.float16
    if device.type == "cuda" or stored not in DTYPES.values():
        return torch.bfloat16
    return stored


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device: what torch or the system only caches is free."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if _MEMORY.is_file():
        fields = (line.split() for line in _MEMORY.read_text().splitlines())
        return next((int(kilobytes) * 1024 for name, kilobytes, *_ in fields if name == "MemAvailable:"), 0)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0


def num_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def release_cached_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait_for(device: torch.device) -> None:
    """Until what was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """The module on the device for a while; its weights' home, which may be a mapped file, stays where it is."""
    home = [slot.data for slot in _slots(module)]
    try:
        for slot in _slots(module):
            slot.data = slot.data.to(device)
        yield module
    finally:
        for slot, tensor in zip(_slots(module), home, strict=True):
            slot.data = tensor
        release_cached_memory(device)


CopyBlock = Callable[[Sequence[Tensor]], list[Tensor]]
"""A block's tensors, at home, to copies on the device."""


class BlockStreamer:
    """Keeps a model's blocks in host memory and brings each to the device just before it runs.

    While a block computes, a thread copies the next one (on a GPU, on a second stream), so that only two blocks are on
    the device. The first block follows the last: the next step's start is prefetched too. A block that runs twice in
    a row is copied once.

    Args:
        blocks: in the order they run.
        device: where they run.
        copy: how a block's tensors are brought there; None: by `Tensor.to`.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device, copy: CopyBlock | None = None) -> None:
        self.device = device
        self.copy = copy or self._copy
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.blocks = list(blocks)
        total = sum(map(num_bytes, self.blocks))
        self.pins = self.stream is not None and 1.2 * total < free_memory(_HOST)
        self.slab = min(SLAB, _power_of_two(total))
        self.room = torch.empty(0, dtype=torch.uint8)   # pinned, not yet used
        self.home = [self._keep(block) for block in self.blocks]
        self.coming: dict[int, Future[Arrival]] = {}
        self.kept: tuple[int, list[Tensor]] | None = None   # the last block that ran
        self.copied_seconds = 0.0   # that copies took, on their thread
        self.waited_seconds = 0.0   # of these, what blocks had to wait for
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="blocks")
        self.handles = []
        for i, block in enumerate(self.blocks):
            self.handles.append(block.register_forward_pre_hook(lambda _module, _inputs, i=i: self._arrive(i)))
            self.handles.append(block.register_forward_hook(lambda _module, _inputs, _out, i=i: self._go_home(i)))

    def _keep(self, block: nn.Module) -> list[Tensor]:
        """The block's tensors in host memory: pinned, which is fastest; where RAM is short as they are, perhaps in a
        mapped file, which the thread then reads."""
        home = []
        for slot in _slots(block):
            slot.data = self._pinned(slot.data.to("cpu"))
            home.append(slot.data)
        return home

    def _pinned(self, tensor: Tensor) -> Tensor:
        """A copy in pinned memory, as long as there is some. It is asked for in powers of two, to which torch rounds
        what it pins: tensor by tensor that would be half as much again."""
        if not self.pins or tensor.is_pinned():   # an earlier video's streamer may have pinned it
            return tensor
        size = -(-tensor.nbytes // ALIGNED) * ALIGNED
        if size > len(self.room):
            try:
                self.room = torch.empty(max(self.slab, _power_of_two(size)), dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:   # systems limit it, some to half of the RAM
                log.warning("no more memory can be pinned (%s): blocks come from pageable memory, slower", error)
                self.pins = False
                return tensor
        piece, self.room = self.room[: tensor.nbytes], self.room[size:]
        return piece.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def _fetch(self, i: int) -> None:
        if i not in self.coming:
            done = None
            if self.stream is not None:
                done = torch.cuda.Event()
                done.record(torch.cuda.current_stream(self.device))
            self.coming[i] = self.thread.submit(self._bring, i, done)

    def _bring(self, i: int, done: torch.cuda.Event | None) -> Arrival:
        """Copy block i, once the device is `done` with the blocks before the one that it is at: a host that runs ahead
        would ask for room for all of them."""
        if done is not None:
            done.synchronize()
        start = time.perf_counter()
        if self.stream is None:
            arrival = self.copy(self.home[i]), None
        else:
            with torch.cuda.stream(self.stream):
                copies, event = self.copy(self.home[i]), torch.cuda.Event()
                event.record(self.stream)
            arrival = copies, event
        self.copied_seconds += time.perf_counter() - start
        return arrival

    def _copy(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.to(self.device, non_blocking=True, copy=True) for t in tensors]

    def _arrive(self, i: int) -> None:
        if self.kept is not None and self.kept[0] == i:
            copies = self.kept[1]
        else:
            self.kept = None
            copies = self._received(i)
        for slot, copy in zip(_slots(self.blocks[i]), copies, strict=True):
            slot.data = copy
        self._fetch((i + 1) % len(self.blocks))

    def _received(self, i: int) -> list[Tensor]:
        self._fetch(i)
        start = time.perf_counter()
        copies, event = self.coming.pop(i).result()
        self.waited_seconds += time.perf_counter() - start
        if event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(event)
            for copy in copies:
                copy.record_stream(current)
        return copies

    def _go_home(self, i: int) -> None:
        self.kept = i, [slot.data for slot in _slots(self.blocks[i])]
        for slot, tensor in zip(_slots(self.blocks[i]), self.home[i], strict=True):
            slot.data = tensor

    def stop(self) -> None:
        """Leave the blocks in host memory, as plain modules; one that was interrupted too."""
        for handle in self.handles:
            handle.remove()
        self.thread.shutdown()
        self.coming.clear()
        self.kept = None
        for block, home in zip(self.blocks, self.home, strict=True):
            for slot, tensor in zip(_slots(block), home, strict=True):
                slot.data = tensor
        release_cached_memory(self.device)


def blocks_that_stay(*, available: int, needed: int, per_block: int, num_blocks: int) -> int:
    """How many of a model's blocks can stay on the device while the others visit it.

    Args:
        available, needed: bytes that may be filled, and that everything else takes, visiting blocks included.
    """
    return max(0, min(num_blocks, (available - needed) // max(1, per_block)))


def _power_of_two(count: int) -> int:
    """The first that is not below count."""
    return 1 << max(0, count - 1).bit_length()


def _slots(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, whose `.data` can be swapped."""
    return [*module.parameters(), *module.buffers()]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """What a job is expected to take at its peak, bytes."""

    weights: int      # on the device while denoising
    denoising: int    # activations and prompt tables of one forward
    decoding: int     # the autoencoder at work
    host: int         # RAM beside the weights: frames, the sound encoder, on a CPU libraries
    available: int    # free on the device now
    is_host: bool = False   # the device's memory is the RAM
    encoding: int = 0       # the text encoder, before anything else is there

    @property
    def device_peak(self) -> int:
        at_work = self.weights + max(self.denoising, self.decoding)
        return max(at_work, self.encoding) + (self.host if self.is_host else 0)

    def __str__(self) -> str:
        parts = (
            f"weights {_gib(self.weights)}, denoising {_gib(self.denoising)}, "
            f"decoding {_gib(self.decoding)}, frames and more in RAM {_gib(self.host)}; "
            f"before them the text encoder {_gib(self.encoding)}"
        )
        smaller = "--vae-dtype bf16" if self.decoding > self.denoising else "--offload blocks"
        fits = "fits" if self.device_peak <= self.available else f"may NOT fit: use {smaller} or a smaller --size"
        return f"{_gib(self.device_peak)} at the peak ({parts}); {_gib(self.available)} free, {fits}"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GB" if count >= GIB / 10 else f"{count / 1024**2:.0f} MB"

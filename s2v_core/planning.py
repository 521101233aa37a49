"""How a job is run on a machine: the fastest way to place and cut its work that fits the memory, found by counting.

Knows bytes; nothing is read, moved or timed here. Every way gives the same numbers but for the dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from .config import TransformerConfig
from .geometry import TokenLayout
from .models.cost import FLOAT32, FORWARD_HOLES, activation_bytes, holes, prepared_bytes
from .placement import MemoryEstimate, blocks_that_stay

HEADROOM = 0.9   # of the free memory that a plan may fill: allocators fragment, displays want their share
FFN_CHUNKS = 8   # where memory is short: more save nothing, as attention is then the larger
NOT_BLOCKS = 5   # audio layers and embeddings are a fifth of a transformer's bytes
RGB = 3 * 4      # bytes of a pixel in RAM
WRITING = 440    # bytes a pixel that x264 keeps: frames that it looks ahead at or refers to (437 to 448 measured)
LIBRARIES = 64 << 20   # on a CPU, whatever the size: code of torch and FFmpeg that first runs, and what it keeps


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to run a job."""

    dtype: torch.dtype          # the transformer computes in it
    offload: str                # "none", "model" or "blocks", as `Components.set_offload` says
    chunk_tokens: int | None = None   # of the feed-forward at a time; None: all
    vae_tiles: int = 1          # that the autoencoder works on, one after the other
    resident_blocks: int = 0    # that stay on the device where the others visit it

    def __str__(self) -> str:
        told = [str(self.dtype).removeprefix("torch.")]
        if self.offload == "model":
            told.append("models take turns on the device")
        if self.offload == "blocks":
            stay = f"{self.resident_blocks} stay" if self.resident_blocks else "none stays"
            told.append(f"blocks visit the device, {stay}")
        if self.chunk_tokens is not None:
            told.append(f"feed-forward {self.chunk_tokens} tokens at a time")
        if self.vae_tiles > 1:
            told.append(f"autoencoder in {self.vae_tiles} tiles")
        return ", ".join(told)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a job has to hold, bytes."""

    config: TransformerConfig
    layout: TokenLayout
    transformer: Mapping[torch.dtype, int]   # its weights, by the dtypes that it may compute in, the best one first
    others: int        # weights that are on the device with it
    beside: int        # what else lasts as long as the denoising
    decoding: Mapping[int, int]   # by the numbers of tiles that it may be done in, the smallest one first
    encoding: int      # the text encoder, which is there alone, before the others
    decoded: int       # in RAM: the frames of a clip, which tiles are put together to
    host: int          # in RAM: all else
    is_host: bool      # the device's memory is the RAM

    def estimate(self, way: Way, available: int) -> MemoryEstimate:
        """What it takes at its peak when it is run that way."""
        transformer, item = self.transformer[way.dtype], way.dtype.itemsize
        block = transformer // self.config.num_layers
        here = transformer
        if way.offload == "blocks":
            here = (2 + way.resident_blocks) * block + transformer // NOT_BLOCKS   # two of them come and go
        work = self._activations(item, way.chunk_tokens)
        if self.is_host:
            largest = FLOAT32 * self.layout.total * self.config.dim
            work += holes(self._activations(FLOAT32, way.chunk_tokens), largest, FORWARD_HOLES)
        return MemoryEstimate(
            weights=self.others + here,
            denoising=work + prepared_bytes(self.config, self.layout, item) + self.beside,
            decoding=self.decoding[way.vae_tiles],
            encoding=self.encoding,
            host=self.host + (self.decoded if way.vae_tiles > 1 else 0),
            available=available,
            is_host=self.is_host,
        )

    def _activations(self, itemsize: int, chunk_tokens: int | None) -> int:
        return activation_bytes(self.config, self.layout, itemsize, chunk_tokens=chunk_tokens, on_cpu=self.is_host)


def frames_in_ram(num_frames: int, num_pixels: int) -> int:
    """Bytes beside the models' work, writing included.

    Args:
        num_frames: of a clip that is being decoded or on its way to disk, and of the past that a clip is shown.
    """
    return num_pixels * (RGB * num_frames + WRITING)


def choose_way(work: Work, offloads: Sequence[str], available: int) -> tuple[Way, MemoryEstimate]:
    """The first way that fits `HEADROOM` of the available memory, or the last one, which takes least.

    Args:
        offloads: that may be used, the fastest first.
        available: free bytes on the device.
    """
    room = int(HEADROOM * available)
    for way in _ways(work, offloads):
        estimate = work.estimate(way, available)
        if estimate.device_peak <= room:
            break
    return _with_residents(work, way, room, available)


def _ways(work: Work, offloads: Sequence[str]) -> Iterator[Way]:
    """From the fastest to the smallest."""
    chunk = -(-work.layout.total // FFN_CHUNKS)
    for dtype, offload in product(work.transformer, offloads):
        item = dtype.itemsize
        whole, chunked = (
            activation_bytes(work.config, work.layout, item, chunk_tokens=c, on_cpu=work.is_host) for c in (None, chunk)
        )
        chunks = (None, chunk) if chunked < whole else (None,)
        smallest = min(work.decoding.values())
        for tiles, room in work.decoding.items():
            for tokens in chunks:
                yield Way(dtype=dtype, offload=offload, chunk_tokens=tokens, vae_tiles=tiles)
            if room == smallest:   # more tiles would only be more work
                break


def _with_residents(work: Work, way: Way, room: int, available: int) -> tuple[Way, MemoryEstimate]:
    """With as many blocks on the device as there is room for, where blocks visit it."""
    estimate = work.estimate(way, available)
    if way.offload != "blocks":
        return way, estimate
    num_blocks = blocks_that_stay(
        available=room,
        needed=estimate.device_peak,
        per_block=work.transformer[way.dtype] // work.config.num_layers,
        num_blocks=work.config.num_layers,
    )
    way = replace(way, resident_blocks=num_blocks)
    return way, work.estimate(way, available)

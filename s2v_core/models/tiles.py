"""The video autoencoder on a part of the picture at a time: the same numbers in less memory, for some work done twice.

Knows streams and columns. The layers at the latents' own size see the whole picture, for one of them is attention; the
others see a few cells to either side, so each tile is computed with so many more and keeps its own.

B batch, F frames, T latent frames, H W pixels, h w latent cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..config import VAEConfig
from ..geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE
from .vae import WanVAE, normalised
from .vae_layers import Carry, Frames

Run = tuple[int, int, int, int]
"""Latent columns: those of a tile, from and to, and with its surroundings, from and to."""


class TiledVAE:
    """A `VideoCodec` that works on one of several runs of columns at a time.

    Args:
        vae: whose weights they are.
        num_tiles: how many runs a picture is cut into.
    """

    def __init__(self, vae: WanVAE, num_tiles: int) -> None:
        self.vae = vae
        self.num_tiles = num_tiles

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """As `WanVAE.encode`."""
        encoder, weight = self.vae.encoder, self.vae.conv1.weight
        later = frames[:, :, 1:].split(TEMPORAL_STRIDE, 2)
        groups = [frames[:, :, :1], *(group for group in later if group.shape[2] == TEMPORAL_STRIDE)]
        parts: list[list[Tensor]] = []
        for left, right, start, stop in cut(frames.shape[4] // SPATIAL_STRIDE, self.num_tiles, halo(self.vae.config)):
            carry, found = Carry(), []
            columns = slice(start * SPATIAL_STRIDE, stop * SPATIAL_STRIDE)
            for group in groups:
                here = [_placed(frame[..., columns], weight) for frame in group.unbind(2)]
                found += [x[..., left - start : right - start].cpu() for x in encoder.begin(here, carry)]
            parts.append(found)
        carry, latents = Carry(), []
        for pieces in zip(*parts, strict=True):
            whole = [_placed(torch.cat(pieces, 3), weight)]
            latents += [self.vae.conv1(out) for out in encoder.finish(whole, carry)]
        return normalised(torch.stack(latents, 2), self.vae.config)

    def decoder(self) -> TiledDecoderStream:
        return TiledDecoderStream(self.vae, self.num_tiles)


class TiledDecoderStream:
    """A decode in progress. A `VideoDecoder`: between calls it keeps latents, and goes on by replay."""

    def __init__(self, vae: WanVAE, num_tiles: int) -> None:
        self._vae = vae
        self._num_tiles = num_tiles
        self._past: list[Tensor] = []
        self._reach = vae.decoder.num_latents_seen()

    def prime(self, latents: Tensor) -> None:
        """As `DecoderStream.prime`."""
        self._past = [*self._past, *latents.unbind(2)][1 - self._reach :]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """As `DecoderStream.decode`; all frames are made before the first is handed out."""
        past, new = self._past, list(latents.unbind(2))
        self.prime(latents)
        begun = self._begun([*past, *new], len(past))
        runs = cut(latents.shape[4], self._num_tiles, halo(self._vae.config))
        tiles = [self._tile(begun, len(past), run) for run in runs]
        for parts in zip(*tiles, strict=True):
            yield torch.cat(parts, 4).float().clamp_(-1, 1)

    def _begun(self, latents: Sequence[Tensor], num_past: int) -> list[Frames]:
        """What the layers at the latents' size make of each, on the CPU."""
        carry, found = Carry(), []
        for i, latent in enumerate(latents):
            latent = latent.to(self._vae.conv1.weight.device)
            found.append([x.cpu() for x in self._vae.decoder.begin(latent, carry, _ahead(i, num_past))])
        return found

    def _tile(self, begun: Sequence[Frames], num_past: int, run: Run) -> list[Tensor]:
        """[B, 3, f, H, W'] of every new latent frame, of the tile's own columns, on the CPU."""
        left, right, start, stop = run
        own = slice((left - start) * SPATIAL_STRIDE, (right - start) * SPATIAL_STRIDE)
        carry, found = Carry(), []
        for i, frames in enumerate(begun):
            here = [_placed(x[..., start:stop], self._vae.conv1.weight) for x in frames]
            frames = self._vae.decoder.finish(here, carry, _ahead(i, num_past))
            if i >= num_past:
                found.append(torch.stack([x[..., own].cpu() for x in frames], 2))
        return found


def _ahead(i: int, num_past: int) -> int:
    """Of latent frame `i`, for `Decoder.step`."""
    return min(1, i + 1 - num_past)


def _placed(x: Tensor, weight: Tensor) -> Tensor:
    return x.to(weight.device, weight.dtype, copy=True, memory_format=torch.channels_last)


def cut(num_columns: int, num_tiles: int, around: int) -> list[Run]:
    """Runs of equally many columns, as far as they come out even."""
    edges = [num_columns * i // num_tiles for i in range(num_tiles + 1)]
    return [
        (left, right, max(0, left - around), min(num_columns, right + around))
        for left, right in zip(edges, edges[1:], strict=False)
    ]


def halo(config: VAEConfig) -> int:
    """Latent cells to either side that a cell's pixels depend on, or that depend on a pixel's, but for attention."""
    num_levels, blocks = len(config.dim_mult), config.num_res_blocks
    seen = 1   # of the frame, by the last convolution
    for level in range(num_levels):
        seen += 2 * (blocks + 1)
        if level < num_levels - 1:
            seen = -(-(seen + 1) // 2)
    heard = 0   # of the latents; backwards through the encoder
    for level in range(num_levels):
        heard += 2 * blocks
        if level < num_levels - 1:
            heard = 2 * heard + 2
    return max(seen, -(-(heard + 1) // SPATIAL_STRIDE))


def tiled_share(config: VAEConfig, num_columns: int, num_tiles: int) -> float:
    """The widest tile with its surroundings, of the whole picture."""
    return max(stop - start for _, _, start, stop in cut(num_columns, num_tiles, halo(config))) / num_columns

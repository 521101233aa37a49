"""The video autoencoder on several processes: each has some rows of every picture, the first has the pictures.

Knows streams and rows; not what a clip is. B batch, F frames, T latent frames, H W pixels, h w latent cells.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor

from ..geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE, num_latent_frames
from ..models.vae import DecoderStream, EncoderStream, WanVAE
from .rows import Passing, SharedCarry, row_shares
from .together import Lead


class CodecPart:
    """One rank's part in an autoencoder's work, of which the first rank has the input and gets the result."""

    def __init__(self, vae: WanVAE) -> None:
        self.vae = vae
        self.streams: dict[int, DecoderStream] = {}

    def shares(self, height: int) -> list[int]:
        """Every rank's latent rows of a picture of so many pixels' height."""
        return row_shares(height // SPATIAL_STRIDE, dist.get_world_size())

    @torch.no_grad()
    def encode(self, shape: Sequence[int], frames: Tensor | None = None) -> Tensor | None:
        """`WanVAE.encode`; frames [B, 3, F, H, W] of that shape, and what they become, are the first rank's."""
        B, channels, num_frames, H, W = shape
        rows = self.shares(H)
        stream, found = EncoderStream(self.vae, SharedCarry(rows)), []
        for i in range(num_latent_frames(num_frames)):
            start, stop = max(0, 1 + TEMPORAL_STRIDE * (i - 1)), 1 + TEMPORAL_STRIDE * i
            piece = None if frames is None else frames[:, :, start:stop]
            found.append(stream.encode(self._own_rows(piece, (B, channels, stop - start, H, W), rows)))
        return _collected(torch.cat(found, 2), rows)

    @torch.no_grad()
    def prime(self, number: int, latents: Tensor) -> None:
        """`DecoderStream.prime` of a stream; every rank has all latents [B, 16, T, h, w]."""
        self._stream(number, latents).prime(self._cut(latents))

    @torch.no_grad()
    def decode(self, number: int, latents: Tensor) -> list[Tensor | None]:
        """`DecoderStream.decode`; the frames are the first rank's."""
        stream, rows = self._stream(number, latents), row_shares(latents.shape[3], dist.get_world_size())
        return [_collected(frames, rows) for frames in stream.decode(self._cut(latents))]

    def forget(self, numbers: Sequence[int]) -> None:
        """Nobody goes on with these streams."""
        for number in numbers:
            self.streams.pop(number, None)

    def _stream(self, number: int, latents: Tensor) -> DecoderStream:
        if number not in self.streams:
            carry = SharedCarry(row_shares(latents.shape[3], dist.get_world_size()))
            self.streams[number] = DecoderStream(self.vae.decoder, carry)
        return self.streams[number]

    def _cut(self, latents: Tensor) -> Tensor:
        """Own rows."""
        return latents.split(row_shares(latents.shape[3], dist.get_world_size()), 3)[dist.get_rank()]

    def _own_rows(self, frames: Tensor | None, shape: Sequence[int], rows: Sequence[int]) -> Tensor:
        """[B, 3, f, own, W] of frames that the first rank has, in the weights' dtype on their device."""
        weight, pixels = self.vae.conv1.weight, [SPATIAL_STRIDE * num for num in rows]
        passing = Passing()
        if frames is None:
            *front, _, width = shape
            own = passing.receive(weight.new_empty(*front, pixels[dist.get_rank()], width), 0)
        else:
            own, *others = frames.to(weight.device, weight.dtype).split(pixels, 3)
            for rank, part in enumerate(others, 1):
                passing.send(part, rank)
        passing.wait()
        return own


def _collected(own: Tensor, rows: Sequence[int]) -> Tensor | None:
    """Every rank's rows of [B, C, f, H, W], on the first; None on the others."""
    passing = Passing()
    if dist.get_rank():
        passing.send(own, 0)
        passing.wait()
        return None
    *front, height, width = own.shape
    scale = height // rows[0]
    likes = [own.new_empty(*front, scale * num, width) for num in rows[1:]]
    parts = [own, *(passing.receive(like, rank) for rank, like in enumerate(likes, 1))]
    passing.wait()
    return torch.cat(parts, 3)


class SharedCodec:
    """A `VideoCodec` whose work all processes share; the first one has it. Pictures of fewer latent rows than there
    are processes, and heights that no VideoSize has, it computes alone."""

    def __init__(self, vae: WanVAE, lead: Lead) -> None:
        self.vae = vae
        self.lead = lead
        self.part = CodecPart(vae)
        self.numbers = count()
        self.gone: list[int] = []   # streams that nobody holds any more, and that the others still keep

    def encode(self, frames: Tensor) -> Tensor:
        """As `WanVAE.encode`."""
        if frames.ndim != 5 or frames.shape[3] % SPATIAL_STRIDE or 0 in self.part.shares(frames.shape[3]):
            return self.vae.encode(frames)
        with self.lead.call("encode", tuple(frames.shape)):
            return self.part.encode(frames.shape, frames)

    def decoder(self) -> SharedDecoder:
        """A fresh stream; what all keep of streams that nobody holds any more is let go."""
        gone = tuple(self.gone)
        if gone:
            with self.lead.call("forget", gone):
                self.part.forget(gone)
            del self.gone[: len(gone)]
        return SharedDecoder(self)


class SharedDecoder:
    """A `VideoDecoder` of a `SharedCodec`."""

    def __init__(self, codec: SharedCodec) -> None:
        self._codec = codec
        self._number = next(codec.numbers)
        self._alone: DecoderStream | None = None   # where the picture has too few rows to share
        weakref.finalize(self, codec.gone.append, self._number)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """As `DecoderStream.decode`."""
        if self._is_alone(latents):
            yield from self._stream().decode(latents)
            return
        for latent in latents.cpu().split(1, 2):
            with self._codec.lead.call("decode", self._number, latent):
                pieces = self._codec.part.decode(self._number, latent)
            yield from pieces

    def prime(self, latents: Tensor) -> None:
        """As `DecoderStream.prime`."""
        if self._is_alone(latents):
            self._stream().prime(latents)
            return
        with self._codec.lead.call("prime", self._number, latents.cpu()):
            self._codec.part.prime(self._number, latents)

    def _is_alone(self, latents: Tensor) -> bool:
        return latents.ndim != 5 or latents.shape[3] < dist.get_world_size()

    def _stream(self) -> DecoderStream:
        self._alone = self._alone or self._codec.vae.decoder()
        return self._alone

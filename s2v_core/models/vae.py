"""The Wan 2.1 video autoencoder as streams: frames to latents and back, any number a call.

Knows no clips and no files. Inference only; results stay on the weights' device.

B batch, F frames, T latent frames, C latent channels, H W pixels, h w latent cells (H/8, W/8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..config import VAEConfig
from ..errors import ConfigError, ShapeError
from ..geometry import TEMPORAL_STRIDE
from .vae_layers import Attention, Carry, CausalConv, Downsample, Frames, NormSiLU, PointConv, ResidualBlock, Upsample


class Encoder(nn.Module):
    """Frames to what `WanVAE.conv1` makes a latent distribution of."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * factor for factor in (1, *config.dim_mult)]
        self.conv1 = CausalConv(3, widths[0])
        self.downsamples = nn.ModuleList()
        for i, (num_in, num_out) in enumerate(zip(widths, widths[1:], strict=False)):
            for j in range(config.num_res_blocks):
                self.downsamples.append(ResidualBlock(num_out if j else num_in, num_out))
            if i < len(config.temporal_downsample):
                self.downsamples.append(Downsample(num_out, in_time=config.temporal_downsample[i]))
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.latent_channels)

    def forward(self, frames: Frames, carry: Carry) -> Frames:
        """The stream's first frame, or its next four, to what they give: [B, 2C, h, w], usually one."""
        return self.finish(self.begin(frames, carry), carry)

    def begin(self, frames: Frames, carry: Carry) -> Frames:
        """The part that comes down to the latents' size, by convolutions alone."""
        frames = self.conv1(frames, carry)
        for block in self.downsamples:
            frames = block(frames, carry)
        carry.is_first = False
        return frames

    def finish(self, frames: Frames, carry: Carry) -> Frames:
        """The part at that size, where every cell sees all others."""
        for block in self.middle:
            frames = block(frames, carry)
        norm, conv = self.head.values()
        return conv([norm(x) for x in frames], carry)


class Decoder(nn.Module):
    """Latent frames to frames. Calling it opens a stream: `vae.decoder()`."""

    def __init__(self, config: VAEConfig, entry: PointConv) -> None:
        super().__init__()
        self.config = config
        self._entry = (entry,)   # in a tuple, for its weights are registered with the whole model
        widths = [config.dim * factor for factor in (config.dim_mult[-1], *config.dim_mult[::-1])]
        self.conv1 = CausalConv(config.latent_channels, widths[0])
        self.middle = _middle(widths[0])
        self.upsamples = nn.ModuleList()
        self.rate = 1   # frames that a latent frame becomes, but for the stream's first
        for i, (num_in, num_out) in enumerate(zip(widths, widths[1:], strict=False)):
            num_in = num_in // 2 if i else num_in   # upsampling has halved them
            for j in range(config.num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(num_out if j else num_in, num_out))
            if i < len(config.temporal_downsample):
                in_time = config.temporal_downsample[::-1][i]
                self.upsamples.append(Upsample(num_out, in_time=in_time, rate=self.rate))
                self.rate *= 2 if in_time else 1
        self.head = _head(widths[-1], 3)

    def forward(self) -> DecoderStream:
        return DecoderStream(self)

    def step(self, latent: Tensor, carry: Carry, ahead: int = 1) -> Frames:
        """One latent frame to its frames, before clamping.

        Args:
            latent: [B, C, h, w] normalised.
            ahead: 1 makes all its frames. With 0 or less it makes none, and leaves out what frames that follow will
                not need: the next frames wanted are those of the latent frame `1 - ahead` later.
        """
        return self.finish(self.begin(latent, carry, ahead), carry, ahead)

    def begin(self, latent: Tensor, carry: Carry, ahead: int = 1) -> Frames:
        """The part at the latents' size, where every cell sees all others."""
        mean, std = _statistics(self.config, latent.device)
        latent = (latent.float() * std + mean).to(self.conv1.weight.dtype, memory_format=torch.channels_last)
        wanted = self._wanted(self.rate * ahead)
        frames = self.conv1([self._entry[0](latent)], carry, wanted.pop())
        for block in self.middle:
            frames = block(frames, carry, wanted.pop())
        return frames

    def finish(self, frames: Frames, carry: Carry, ahead: int = 1) -> Frames:
        """The part that goes up to frames, by convolutions alone."""
        wanted = self._wanted(self.rate * ahead)[: 1 + len(self.upsamples)]
        for block in self.upsamples:
            frames = block(frames, carry, wanted.pop())
        norm, conv = self.head.values()
        frames = conv([norm(x) for x in frames], carry, wanted.pop())
        carry.is_first = False
        return frames

    def num_latents_seen(self) -> int:
        """Latent frames that the frames of one latent frame depend on, itself included."""
        return self._wanted(self.rate)[-1] + 2

    def _wanted(self, wanted: int) -> list[int]:
        """How many of the newest frames are wanted of each layer, last layer first."""
        counts = [wanted, wanted + 2]
        for block in reversed((*self.middle, *self.upsamples)):
            counts.append(block.needed(counts[-1]))
        return counts


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), Attention(dim), ResidualBlock(dim, dim)])


def _head(num_in: int, num_out: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": NormSiLU(num_in), "2": CausalConv(num_in, num_out)})


def _statistics(config: VAEConfig, device: torch.device) -> Tensor:
    """[2, C, 1, 1] mean and standard deviation of the latents. Built at use: a model on the meta device has no data."""
    return torch.tensor([config.latent_mean, config.latent_std], device=device).unsqueeze(-1).unsqueeze(-1)


def normalised(distribution: Tensor, config: VAEConfig) -> Tensor:
    """[B, 2C, T, h, w] -> [B, C, T, h, w] latents, float32: the distribution's mean; its variance is not used."""
    latents = distribution.float().chunk(2, 1)[0]
    mean, std = _statistics(config, latents.device)
    return (latents - mean.unsqueeze(1)) / std.unsqueeze(1)


class WanVAE(nn.Module):
    """Frames in [-1, 1] to normalised latents and back. A `VideoCodec`.

    Computes in the weights' dtype; norms are reduced in float32, latents and frames handed out in float32.

    Source: the reference's `vae2_1.py`; parameter names are its.
    """

    def __init__(
        self, config: VAEConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        _check_config(config)
        self.config = config
        with nullcontext() if device is None else torch.device(device):
            self.encoder = Encoder(config)
            self.conv1 = PointConv(2 * config.latent_channels, 2 * config.latent_channels)
            self.conv2 = PointConv(config.latent_channels, config.latent_channels)
            self.decoder = Decoder(config, entry=self.conv2)
        self.to(dtype=dtype)

    def encode(self, frames: Tensor) -> Tensor:
        """[B, 3, F, H, W] frames -> [B, C, 1+(F-1)//4, h, w] latents: a whole video, so F mod 4 should be 1.

        The last (F-1) mod 4 frames are ignored, as are rows and columns that fill no latent cell (H mod 8, W mod 8).
        """
        return self.encoder_stream().encode(frames)

    def encoder_stream(self) -> EncoderStream:
        return EncoderStream(self)


def _check_config(config: VAEConfig) -> None:
    if len(config.temporal_downsample) != len(config.dim_mult) - 1:
        raise ConfigError(
            f"a VAE with {len(config.dim_mult)} widths has {len(config.dim_mult) - 1} downsampling steps, "
            f"temporal_downsample names {len(config.temporal_downsample)}"
        )
    if 2 ** sum(config.temporal_downsample) > TEMPORAL_STRIDE:
        raise ConfigError(f"at most {TEMPORAL_STRIDE} frames go into a latent frame; temporal_downsample asks for more")
    if not len(config.latent_mean) == len(config.latent_std) == config.latent_channels:
        raise ConfigError(f"latent_mean and latent_std need {config.latent_channels} values, one a latent channel")


class EncoderStream:
    """An encode in progress: hand it frames as they come, get latents as they are ready."""

    def __init__(self, vae: WanVAE, carry: Carry | None = None) -> None:
        self._vae = vae
        self._carry = carry or Carry()
        self._held: Frames = []   # frames that fill no latent frame yet
        self._shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """The stream's next frames to the latents that they complete.

        Args:
            frames: [B, 3, F, H, W] in [-1, 1], on any device.

        Returns: [B, C, T, h, w] float32. The stream's first frame makes a latent frame, then every four do; up to three
            wait for the next call, so T may be 0.
        Raises: ShapeError for another shape, or another size than the stream began with.
        """
        self._shape = _check_shape(frames, 3, self._shape, "frames [B, 3, F, H, W]")
        vae, weight = self._vae, self._vae.conv1.weight
        B, _, _, H, W = frames.shape
        cell = 2 ** len(vae.config.temporal_downsample)
        if min(H, W) < cell:
            raise ShapeError(f"the VAE takes frames of at least {cell}x{cell} pixels, got {W}x{H}")
        outs: Frames = []
        for frame in frames.unbind(2):
            # a copy in any case: it outlives the call, and the caller may write over the original
            self._held.append(frame.to(weight.device, weight.dtype, copy=True, memory_format=torch.channels_last))
            if len(self._held) == TEMPORAL_STRIDE or self._carry.is_first:
                outs += [vae.conv1(out) for out in vae.encoder(self._held, self._carry)]
                self._held = []
        if not outs:
            return weight.new_empty(B, vae.config.latent_channels, 0, H // cell, W // cell, dtype=torch.float32)
        return normalised(torch.stack(outs, 2), vae.config)


class DecoderStream:
    """A decode in progress. A `VideoDecoder`.

    It can be resumed by replay: the frames of a latent frame depend on it and the `decoder_receptive_field(config) - 1`
    before it, so a fresh stream that is handed those first goes on as the old one would have, bit for bit.
    """

    def __init__(self, decoder: Decoder, carry: Carry | None = None) -> None:
        self._decoder = decoder
        self._carry = carry or Carry()
        self._shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """The stream's next latents to frames, a latent frame at a time, so memory is bounded.

        Lazy: a latent frame is in the stream once its frames have been taken, so take all before the next call.

        Args:
            latents: [B, C, T, h, w] normalised, on any device.

        Yields: [B, 3, f, H, W] float32 in [-1, 1]; f is 1 for the stream's first latent frame, then 4.
        Raises: ShapeError for another shape, or another size than the stream began with.
        """
        for latent in self._split(latents):
            frames = self._decoder.step(latent, self._carry)
            yield torch.stack(frames, 2).float().clamp_(-1, 1)

    @torch.no_grad()
    def prime(self, latents: Tensor) -> None:
        """Take in the stream's next latents for the sake of what follows; nobody wants their own frames.

        Later frames are those that `decode` would have led to, bit for bit, for less work.
        """
        split = self._split(latents)
        for i, latent in enumerate(split, 1):
            self._decoder.step(latent, self._carry, ahead=i - len(split))

    def _split(self, latents: Tensor) -> Frames:
        channels = self._decoder.config.latent_channels
        self._shape = _check_shape(latents, channels, self._shape, "latents [B, C, T, h, w]")
        return list(latents.to(self._decoder.conv1.weight.device).unbind(2))


def _check_shape(x: Tensor, channels: int, known: tuple[int, ...] | None, what: str) -> tuple[int, ...]:
    """The batch size, height and width of `x`, which must be those of the stream so far."""
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise ShapeError(f"the VAE takes {what} of {channels} channels, got {list(x.shape)}")
    B, _, _, height, width = x.shape
    if known not in (None, (B, height, width)):
        raise ShapeError(
            f"a stream keeps its batch size, height and width: it began with {known}, got {(B, height, width)}; "
            "open another stream"
        )
    return B, height, width


def decoder_receptive_field(config: VAEConfig) -> int:
    """How many latent frames the frames of one latent frame depend on, itself included; 39 for Wan 2.1."""
    return WanVAE(config, device="meta").decoder.num_latents_seen()

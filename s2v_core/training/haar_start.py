"""Weights from which an autoencoder starts to learn: a blurred video that moves as the true one does.

Knows the autoencoder's layers; not how they are trained.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..geometry import TEMPORAL_STRIDE
from ..models.vae import WanVAE
from ..models.vae_layers import Attention, CausalConv, Downsample, ResidualBlock, Upsample

COLORS = 3
CARRIED = COLORS * TEMPORAL_STRIDE   # the colours of four frames
ANCHOR = 4.0        # a constant channel before the last norms, so that they scale all cells about alike
DETAIL_SCALE = 12.0 # of the differences among frames, which are small, in the latents


def haar_matrix() -> Tensor:
    """[12, 12] from four frames' colours to their mean's and three differences': orthogonal but for the scales."""
    times = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [0.5**0.5, -(0.5**0.5), 0, 0],
                          [0, 0, 0.5**0.5, -(0.5**0.5)]])   # fmt: skip
    return torch.kron(times * torch.tensor([[1.0], *[[DETAIL_SCALE]] * 3]), torch.eye(COLORS))


@torch.no_grad()
def begin_as_averages(vae: WanVAE) -> None:
    """Set the weights so that a latent cell holds its 8x8 pixels' mean colours in four frames, as Haar coefficients.

    Decoded, that is a blurred video that moves as the true one does. From random weights an autoencoder first learns
    to draw all four frames alike, and takes long to leave that state; from here there is only the blur to overcome.
    Twelve channels carry the colours through every layer; the others, and the blocks' insides, begin at random.

    Raises: ConfigError for a VAE whose layers are not Wan's, or too narrow.
    """
    config = vae.config
    if (
        tuple(config.temporal_downsample) != (False, True, True)
        or 2 * config.dim < CARRIED
        or config.latent_channels < CARRIED
    ):
        raise ConfigError(
            f"this beginning needs Wan's order of layers and {CARRIED} channels from the second level on: {config}"
        )
    for block in vae.modules():
        if isinstance(block, ResidualBlock):
            nn.init.zeros_(block.residual["6"].weight)
            nn.init.zeros_(block.residual["6"].bias)
        elif isinstance(block, Attention):
            nn.init.zeros_(block.proj.weight)
            nn.init.zeros_(block.proj.bias)
    _begin_encoder(vae)
    _begin_decoder(vae)


def _carry(conv: nn.Module, matrix: Tensor, kernel: Tensor | None = None) -> None:
    """Let a convolution's first outputs be `matrix` times its first inputs, spread by `kernel` (the last tap)."""
    rows, columns = matrix.shape
    weight = conv.weight
    if kernel is None:
        kernel = torch.zeros(weight.shape[2:])
        kernel[tuple(-1 if size == weight.shape[2] and i == 0 and weight.ndim == 5 else size // 2
                     for i, size in enumerate(kernel.shape))] = 1   # fmt: skip
    weight[:rows] = 0
    weight[:rows, :columns] = matrix.view(rows, columns, *[1] * kernel.ndim) * kernel
    if conv.bias is not None:
        conv.bias[:rows] = 0


def _taps(*matrices: Tensor) -> Tensor:
    """[rows, columns, 3, 1, 1] weight of a convolution over three frames, from a matrix a frame, the oldest first."""
    return torch.stack(matrices, 2)[..., None, None]


def _set_time(conv: CausalConv, weight: Tensor, first_row: int = 0) -> None:
    rows = slice(first_row, first_row + weight.shape[0])
    conv.weight[rows] = 0
    conv.weight[rows, : weight.shape[1]] = weight
    conv.bias[rows] = 0


def _anchored_head(conv: CausalConv, matrix: Tensor, shape: int) -> None:
    """A head whose inputs are x, -x and the anchor: silu(x) - silu(-x) = x, and the norm is nearly constant."""
    scale = math.sqrt(ANCHOR**2 + 0.25 * 2 * matrix.shape[1]) / math.sqrt(shape)
    _carry(conv, torch.cat([matrix, -matrix], 1) * scale)


def _join_negatives(conv: nn.Conv2d, carried: int) -> None:
    """After the carried outputs, their negatives and the anchor."""
    conv.weight[carried : 2 * carried] = -conv.weight[:carried]
    conv.bias[carried : 2 * carried] = 0
    conv.weight[2 * carried] = 0
    conv.bias[2 * carried] = ANCHOR


def _begin_encoder(vae: WanVAE) -> None:
    encoder = vae.encoder
    blocks, downs = _levels(encoder.downsamples, Downsample)
    quarter = torch.zeros(3, 3)
    quarter[:2, :2] = 0.25
    eye, none = torch.eye(CARRIED), torch.zeros(CARRIED, CARRIED)
    _carry(encoder.conv1, torch.eye(COLORS))
    _carry(downs[0].resample["1"], torch.eye(COLORS), quarter)
    _carry(blocks[1].shortcut, torch.eye(COLORS).repeat(TEMPORAL_STRIDE, 1))   # four copies: a still's four frames
    _carry(blocks[2].shortcut, eye)
    for down in downs[1:]:
        _carry(down.resample["1"], eye, quarter)
    first, second = none.clone(), none.clone()
    for i in range(TEMPORAL_STRIDE):   # a pair's frames by turns: a, b, a, b
        (second if i % 2 else first)[i * COLORS : (i + 1) * COLORS, :COLORS] = torch.eye(COLORS)
    _set_time(downs[1].time_conv, _taps(none, first, second))
    width = encoder.head["2"].in_channels
    if width <= 2 * CARRIED:
        raise ConfigError(f"this beginning needs {2 * CARRIED + 1} channels at the last level, the VAE has {width}")
    _join_negatives(downs[2].resample["1"], CARRIED)
    half = CARRIED // 2
    first, second = torch.zeros(width, width), torch.zeros(width, width)
    for at in (0, CARRIED):   # two pairs: a, b, c, d; of x and of -x
        first[at : at + half, at : at + half] = second[at + half : at + CARRIED, at : at + half] = torch.eye(half)
    second[2 * CARRIED, 2 * CARRIED] = 1
    rows = 2 * CARRIED + 1
    _set_time(downs[2].time_conv, _taps(torch.zeros(rows, width), first[:rows], second[:rows]))
    _anchored_head(encoder.head["2"], haar_matrix(), width)
    vae.conv1.weight.zero_()
    vae.conv1.bias.zero_()
    C = vae.config.latent_channels
    vae.conv1.weight[:C, :C, 0, 0, 0] = torch.eye(C)


def _begin_decoder(vae: WanVAE) -> None:
    decoder = vae.decoder
    blocks, ups = _levels(decoder.upsamples, Upsample)
    C = vae.config.latent_channels
    vae.conv2.weight.zero_()
    vae.conv2.bias.zero_()
    vae.conv2.weight[:, :, 0, 0, 0] = torch.eye(C)
    _carry(decoder.conv1, torch.linalg.inv(haar_matrix()))
    smooth = torch.tensor([1.0, 2.0, 1.0]) / 4
    carried = CARRIED
    for i, up in enumerate(ups):
        if not isinstance(blocks[i].shortcut, nn.Identity):
            _carry(blocks[i].shortcut, torch.eye(carried))
        if up.time_conv is not None:
            half, none = carried // 2, torch.zeros(carried // 2, carried)
            for j in range(2):
                pick = torch.eye(carried)[j * half : (j + 1) * half]
                _set_time(up.time_conv, _taps(none, none, pick), j * up.time_conv.in_channels)
            carried = half
        _carry(up.resample["1"], torch.eye(carried), torch.outer(smooth, smooth))
    width = decoder.head["2"].in_channels
    _join_negatives(ups[-1].resample["1"], COLORS)
    if not isinstance(blocks[-1].shortcut, nn.Identity):
        raise ConfigError("this beginning needs a decoder whose last level keeps its width")
    _anchored_head(decoder.head["2"], torch.eye(COLORS), width)


def _levels(layers: nn.ModuleList, kind: type) -> tuple[list[ResidualBlock], list]:
    """The first block of every level, and the layers between levels."""
    between = [layer for layer in layers if isinstance(layer, kind)]
    firsts = [layers[0], *(layers[i + 1] for i, layer in enumerate(layers) if isinstance(layer, kind))]
    return firsts, between

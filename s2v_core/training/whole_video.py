"""The video autoencoder on whole videos at once, with a gradient: the same arithmetic as its streams.

Knows the autoencoder's layers; not what it is shown, nor what its errors cost.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.vae import WanVAE
from ..models.vae_layers import Attention, CausalConv, Downsample, NormSiLU, ResidualBlock, Upsample

# B batch, C channels, F frames, H W cells; [B, C, F, H, W] throughout


def _conv(layer: CausalConv, x: Tensor) -> Tensor:
    side = layer.kernel_size[1] // 2
    return F.conv3d(F.pad(x, (side, side, side, side, 2, 0)), layer.weight, layer.bias)


def _norm(layer: NormSiLU, x: Tensor) -> Tensor:
    return F.silu(F.normalize(x, dim=1) * (math.sqrt(x.shape[1]) * layer.gamma))


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    norm1, conv1, norm2, conv2 = block.residual.values()
    out = _conv(conv2, _norm(norm2, _conv(conv1, _norm(norm1, x))))
    shortcut = block.shortcut
    return out + (x if isinstance(shortcut, nn.Identity) else F.conv3d(x, shortcut.weight, shortcut.bias))


def _framewise(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _attention(block: Attention, x: Tensor) -> Tensor:
    flat = _framewise(x)                                                        # [B*F, C, H, W]
    normed = F.normalize(flat, dim=1) * (math.sqrt(flat.shape[1]) * block.norm.gamma)
    q, k, v = block.to_qkv(normed).flatten(2).mT.chunk(3, -1)                   # [B*F, H*W, C] each
    out = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
    out = block.proj(out.mT.unflatten(2, flat.shape[2:]))
    return x + out.unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _downsample(block: Downsample, x: Tensor) -> Tensor:
    conv = block.resample["1"]
    x = F.conv3d(F.pad(x, (0, 1, 0, 1)), conv.weight[:, :, None], conv.bias, stride=(1, 2, 2))
    if block.time_conv is None or x.shape[2] == 1:
        return x
    paired = F.conv3d(x, block.time_conv.weight, block.time_conv.bias, stride=(2, 1, 1))
    return torch.cat([x[:, :, :1], paired], 2)


def _upsample(block: Upsample, x: Tensor) -> Tensor:
    if block.time_conv is not None and x.shape[2] > 1:
        even, odd = _conv(block.time_conv, x[:, :, 1:]).chunk(2, 1)
        x = torch.cat([x[:, :, :1], torch.stack([even, odd], 3).flatten(2, 3)], 2)
    conv = block.resample["1"]
    x = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    return F.conv3d(x, conv.weight[:, :, None], conv.bias, padding=(0, 1, 1))


_FORWARD = {ResidualBlock: _residual, Attention: _attention, Downsample: _downsample, Upsample: _upsample}


def _run(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = _FORWARD[type(block)](block, x)
    return x


def _head(head: nn.ModuleDict, x: Tensor) -> Tensor:
    norm, conv = head.values()
    return _conv(conv, _norm(norm, x))


def encode_frames(vae: WanVAE, frames: Tensor) -> Tensor:
    """[B, 3, F, H, W] frames -> [B, C, T, h, w] latents that are not yet normalised."""
    encoder = vae.encoder
    x = _run(encoder.middle, _run(encoder.downsamples, _conv(encoder.conv1, frames)))
    x = F.conv3d(_head(encoder.head, x), vae.conv1.weight, vae.conv1.bias)
    return x[:, : vae.config.latent_channels]   # the mean; sampling never uses the variance, and it is not trained


def decode_latents(vae: WanVAE, latents: Tensor) -> Tensor:
    """[B, C, T, h, w] latents that are not normalised -> frames [B, 3, 1+4(T-1), H, W], not clamped."""
    decoder = vae.decoder
    x = _conv(decoder.conv1, F.conv3d(latents, vae.conv2.weight, vae.conv2.bias))
    return _head(decoder.head, _run(decoder.upsamples, _run(decoder.middle, x)))

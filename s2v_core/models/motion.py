"""The past as tokens, FramePack-style: the newest latent frame finely, the farthest sixteen coarsely.

Knows latents; not how they came to be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..errors import ShapeError
from ..ops.layers import Factory


class FramePacker(nn.Module):
    def __init__(self, config: TransformerConfig, make: Factory) -> None:
        super().__init__()
        channels, dim = config.in_channels, config.dim
        self.proj = make.patch_conv(channels, dim, (1, 2, 2))
        self.proj_2x = make.patch_conv(channels, dim, (2, 4, 4))
        self.proj_4x = make.patch_conv(channels, dim, (4, 8, 8))
        self.buckets = config.motion_buckets
        self.drop_mode = config.motion_drop_mode

    def num_token_groups(self, num_near: int) -> int:
        """How many of (far, middle, near) have tokens."""
        return 1 + num_near if self.drop_mode == "drop" else 3

    def forward(self, latents: Tensor, num_near: int = 2) -> Tensor:
        """Motion tokens, newest first: near, middle, far.

        Args:
            latents: [B, 16, Tm, h, w]; the newest sum(buckets) are used, missing older ones are zeros.
            num_near: 2: all; 1: without the newest latent frame; 0: the far ones alone. What "without" means is
                the config's `motion_drop_mode`: zeroed latents, or no tokens.

        Returns: [B, N, D]. Rows and columns that do not fill a patch are lost, as in the reference.
        Raises: ShapeError below 8x8 latent cells.
        """
        if min(latents.shape[-2:]) < 8:
            size = "x".join(str(side) for side in latents.shape[-2:])
            raise ShapeError(f"motion latents need at least 8x8 cells (64x64 pixels), got {size}")
        latents = self._window(latents, num_near)
        far, middle, near = latents.split(self.buckets[::-1], dim=2)
        groups = [self.proj_4x(far), self.proj_2x(middle), self.proj(near)][: self.num_token_groups(num_near)]
        return torch.cat([group.flatten(2).transpose(1, 2) for group in reversed(groups)], dim=1)

    def _window(self, latents: Tensor, num_near: int) -> Tensor:
        num = sum(self.buckets)
        latents = latents[:, :, -num:]
        latents = F.pad(latents, (0, 0, 0, 0, num - latents.shape[2], 0))
        if num_near < 2 and self.drop_mode == "padd":
            num_zero = sum(self.buckets[: 2 - num_near])
            latents = F.pad(latents[:, :, :-num_zero], (0, 0, 0, 0, 0, num_zero))
        return latents

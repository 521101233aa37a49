"""The host's IMAGE and MASK as pictures, and frames as its IMAGE.

Knows the shapes that nodes give them; not what a picture is for.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..s2v_core.errors import MediaError


def picture_of(image: Tensor) -> Image.Image:
    """The first picture of a host IMAGE [B, H, W, C], grey or in colour. Raises: MediaError when there is none."""
    if not image.shape[0]:
        raise MediaError("the image input holds no picture; connect one to it")
    return _picture(image[0, ..., :3] if image.shape[-1] >= 3 else image[0, ..., :1].expand(-1, -1, 3))


def mask_pictures(mask: Tensor) -> list[Image.Image]:
    """A host MASK in 0..1 as grey pictures, at least one.

    Args:
        mask: [B, H, W]; some nodes give [H, W], [B, 1, H, W] or [B, H, W, 1].

    Raises: MediaError for one that is empty, or of any other shape.
    """
    channel = next((axis for axis in (1, -1) if mask.ndim == 4 and mask.shape[axis] == 1), None)
    masks = mask if channel is None else mask.squeeze(channel)
    masks = masks[None] if masks.ndim == 2 else masks
    if masks.ndim != 3 or not masks.numel():
        raise MediaError(f"the mask input is {list(mask.shape)}, and should be [masks, height, width]: connect a MASK")
    return [_picture(one) for one in masks]


def to_image(frames: Tensor) -> Tensor:
    """[1, 3, F, H, W] in [-1, 1] -> the host's IMAGE, [F, H, W, 3] in 0..1."""
    return frames[0].permute(1, 2, 3, 0).add(1).div(2).clamp(0, 1).contiguous()


def _picture(levels: Tensor) -> Image.Image:
    """[H, W] or [H, W, 3] in 0..1."""
    return Image.fromarray((levels.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())

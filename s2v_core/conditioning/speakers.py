"""Who is where: parts of a picture, as boxes or drawn, to masks of latent cells with soft edges.

Knows boxes and pixels; not files, sounds, nor what a mask is used for.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import SPATIAL_STRIDE, VideoSize
from .image import cover

SOFTNESS = 1 / 20   # of the video's shorter side: as wide is the band in which an edge falls from 1 to 0


def place_boxes(boxes: np.ndarray, picture: tuple[int, int], size: VideoSize) -> np.ndarray:
    """Boxes in pixels of a picture to where they lie in the video, scaled and cropped as `fit_picture` does.

    Args:
        boxes: [..., 4] left, top, right, bottom.
        picture: width and height.
    """
    width, height = cover(picture, size)
    scale = np.asarray([width / picture[0], height / picture[1]] * 2, np.float32)
    shift = np.asarray([(width - size.width) / 2, (height - size.height) / 2] * 2, np.float32)
    return np.asarray(boxes, np.float32) * scale - shift


def box_cells(boxes: Tensor, *, width: int, height: int) -> Tensor:
    """How much of each unit cell lies in a box.

    Args:
        boxes: [..., 4] left, top, right, bottom in cells.

    Returns: [..., height, width] float32 in 0..1.
    """
    left, top, right, bottom = boxes.unsqueeze(-1).unbind(-2)                     # each [..., 1]
    return _overlap(top, bottom, height).unsqueeze(-1) * _overlap(left, right, width).unsqueeze(-2)


def _overlap(low: Tensor, high: Tensor, count: int) -> Tensor:
    """How much of each of `count` unit cells lies between low and high."""
    starts = torch.arange(count, dtype=torch.float32)
    return (torch.minimum(high, starts + 1) - torch.maximum(low, starts)).clamp(0, 1)


def soft_mask(pixels: Tensor) -> Tensor:
    """A part of the video's picture as a speaker mask of one latent frame, its edges made soft.

    Where two parts touch, their masks come to 1; at the picture's border nothing is lost.

    Args:
        pixels: [H, W] in 0..1.

    Returns: [h, w] float32 in 0..1.
    """
    reach = round(SOFTNESS * min(pixels.shape) / 2)
    padded = F.pad(pixels.float()[None, None], (reach,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, 2 * reach + 1, stride=1), SPATIAL_STRIDE)[0, 0]

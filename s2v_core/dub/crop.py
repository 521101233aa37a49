"""The part of the footage that the model draws: a steady frame around the face, brought to the model's size and back.

Knows pictures and boxes; no faces, masks or models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..geometry import VideoSize
from .request import Box
from .tracking import smooth

CROP = 1.75             # height of the crop, in heights of the face
STEADY_SECONDS = 0.4    # standard deviation of the steadying of the crop: a slow camera, not a trembling one

Rect = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels."""


def crop_boxes(faces: Sequence[Box], width: int, height: int, size: VideoSize, step: float) -> np.ndarray:
    """[F, 4] left, top, right, bottom of the crops, in pixels: of the size's shape, and inside the picture.

    Args:
        faces: of consecutive frames, pixels.
        width, height: of the footage.
        size: at which the model draws.
        step: seconds a frame.
    """
    boxes = np.asarray(faces, np.float64)
    middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    steady = smooth(np.concatenate([middle, sides], axis=1), STEADY_SECONDS / step)
    ratio = size.width / size.height
    tall = CROP * np.maximum(steady[:, 3], steady[:, 2] / ratio).clip(min=1.0)
    tall = tall.clip(max=min(height, width / ratio))
    shape = np.stack([tall * ratio, tall], axis=1)
    # the face stays inside where it fits, however fast it goes
    low, high = boxes[:, 2:] - shape, boxes[:, :2]
    corner = np.clip(steady[:, :2] - shape / 2, np.minimum(low, high), np.maximum(low, high))
    corner = np.clip(corner, 0, np.asarray([width, height]) - shape)
    return np.concatenate([corner, corner + shape], axis=1)


def inner_rect(crop: Box) -> Rect:
    """The pixels that lie wholly in a crop."""
    left, top, right, bottom = crop
    tiny = 1e-6
    return (
        int(np.ceil(left - tiny)), int(np.ceil(top - tiny)), int(np.floor(right + tiny)), int(np.floor(bottom + tiny))
    )  # fmt: skip


def take_crop(picture: np.ndarray, crop: Box, size: VideoSize) -> Tensor:
    """[3, h, w] float32 in [-1, 1] of the crop of a picture [H, W, 3] uint8, at the model's size."""
    box = _within(crop, picture.shape[1], picture.shape[0])
    scaled = Image.fromarray(picture).resize((size.width, size.height), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 127.5 - 1


def put_back(drawn: Tensor, crop: Box, rect: Rect) -> np.ndarray:
    """[rh, rw, 3] float32, 0 to 255: what was drawn of a crop, at the pixels of `rect`, which lies inside it.

    Args:
        drawn: [3, h, w] in [-1, 1].
    """
    _, height, width = drawn.shape
    across, down = width / (crop[2] - crop[0]), height / (crop[3] - crop[1])
    box = _within(
        ((rect[0] - crop[0]) * across, (rect[1] - crop[1]) * down, (rect[2] - crop[0]) * across,
         (rect[3] - crop[1]) * down),
        width, height,
    )  # fmt: skip
    size = (rect[2] - rect[0], rect[3] - rect[1])
    levels = ((drawn.float().clamp(-1, 1) + 1) * 127.5).numpy()
    channels = [Image.fromarray(level).resize(size, Image.Resampling.BICUBIC, box=box) for level in levels]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def _within(box: Box, width: int, height: int) -> Box:
    """Without what rounding put outside."""
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height))


def latent_mask(alphas: Sequence[np.ndarray], crops: Sequence[Box], size: VideoSize) -> Tensor:
    """[h, w] float32: 1 in the latent cells that any of some frames' masks touches, and in the cells around them.

    Args:
        alphas: [rh, rw] of each frame, over its crop's `inner_rect`.
    """
    grid = size.latent_grid(1)
    cells = np.zeros((grid.height + 2, grid.width + 2), np.float32)
    for alpha, crop in zip(alphas, crops, strict=True):
        left, top, _, _ = inner_rect(crop)
        rows, columns = np.nonzero(alpha > 0)
        down = ((rows + top + 0.5 - crop[1]) / (crop[3] - crop[1]) * grid.height).astype(int).clip(0, grid.height - 1)
        across = ((columns + left + 0.5 - crop[0]) / (crop[2] - crop[0]) * grid.width).astype(int)
        cells[down + 1, across.clip(0, grid.width - 1) + 1] = 1
    touched = np.max([np.roll(cells, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
    return torch.from_numpy(touched[1:-1, 1:-1].copy())

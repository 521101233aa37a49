"""A picture brought to the video's size: scaled until it covers the frame, then cropped around its centre.

Knows no files; the reference's rule, which can leave black bars, is not kept.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..geometry import VideoSize


def fit_picture(picture: Image.Image, size: VideoSize) -> Tensor:
    """[1, 3, 1, H, W] float32 in [-1, 1]: the whole frame is picture, whatever the picture's shape."""
    cropped = centre_crop(resize(picture, *cover(picture.size, size)), size.width, size.height)
    pixels = torch.from_numpy(np.array(cropped)).permute(2, 0, 1)   # [3, H, W]
    return (pixels.float() / 127.5 - 1)[None, :, None]


def cover(picture: tuple[int, int], size: VideoSize) -> tuple[int, int]:
    """Width and height of the smallest copy of a `picture` (width, height) that fills `size`."""
    width, height = picture
    if size.width * height >= size.height * width:
        return size.width, max(size.height, size.width * height // width)
    return max(size.width, size.height * width // height), size.height


def resize(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Triangle filter, antialiased when it shrinks: the reference's filter, to the bit."""
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def centre_crop(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of a picture that is at least `width` x `height`."""
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))

"""Who is where and says what: parts of a picture to masks of latent cells, stretches of sound to a person's features.

Knows boxes, pixels and frames; not files, nor what masks and features are used for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..geometry import SPATIAL_STRIDE, VideoSize
from ..types import AudioFeatures
from .image import cover, fit_picture

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


def drawn_region(picture: Image.Image, size: VideoSize) -> Tensor:
    """A region that is drawn white on black, scaled and cropped as the reference picture is: [H, W] in 0..1."""
    return fit_picture(picture.convert("RGB"), size)[0, :, 0].mean(0) / 2 + 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """A stretch of a sound that somebody says, in frames of the video."""

    audio: AudioFeatures   # of the whole sound
    first_frame: int       # where the sound's own frame 0 lies
    start_frame: int       # heard from here ...
    stop_frame: int        # ... to the frame before this one


class SpokenFeatures:
    """All that one person says over a video, silent in between: an `AudioFeatures`. The later utterance goes first."""

    def __init__(self, silence: AudioFeatures, utterances: Sequence[Utterance]) -> None:
        self._silence = silence
        self._utterances = tuple(utterances)

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        """[1, L, C, stop-start]."""
        features = self._silence.window(start_frame, stop_frame).clone()
        for said in self._utterances:
            first, last = max(start_frame, said.start_frame), min(stop_frame, said.stop_frame)
            if first < last:
                heard = said.audio.window(first - said.first_frame, last - said.first_frame)
                features[..., first - start_frame : last - start_frame] = heard
        return features


def frame_at(seconds: float, fps: float) -> int:
    """The first frame that is not shown before a moment."""
    return math.ceil(seconds * fps - 1e-6)

"""How much of each pixel is made anew: the lower face or the user's mask, grown, cut to the crop and feathered.

Knows boxes and arrays; nothing of how a pixel is made.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .crop import Rect
from .faces import Mask
from .request import Box

FEATHER = 0.025   # of the face's height: a quarter of the way from 0 to 1

# The ellipse of mouth, cheeks and chin, in shares of the face's box.
MIDDLE_X, MIDDLE_Y, RADIUS_X, RADIUS_Y = 0.5, 0.72, 0.42, 0.28


class Region(Protocol):
    """Where a frame is made anew."""

    def hard(self, number: int, seconds: float, face: Box, rect: Rect) -> np.ndarray:
        """[rh, rw] bool over the pixels of `rect`, before it is grown and feathered."""
        ...


class LowerFace:
    """Mouth, cheeks and chin, from the face's box."""

    def hard(self, number: int, seconds: float, face: Box, rect: Rect) -> np.ndarray:
        width, height = face[2] - face[0], face[3] - face[1]
        across = (np.arange(rect[0], rect[2]) + 0.5 - face[0] - MIDDLE_X * width) / (RADIUS_X * width)
        down = (np.arange(rect[1], rect[3]) + 0.5 - face[1] - MIDDLE_Y * height) / (RADIUS_Y * height)
        return across[None] ** 2 + down[:, None] ** 2 < 1


class Painted:
    """The user's mask."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def hard(self, number: int, seconds: float, face: Box, rect: Rect) -> np.ndarray:
        mask = self._mask.at(number, seconds)
        if mask is None:
            return np.zeros((rect[3] - rect[1], rect[2] - rect[0]), bool)
        return mask[rect[1] : rect[3], rect[0] : rect[2]]


def feathered(hard: np.ndarray, face_height: float, padding: float) -> np.ndarray:
    """[h, w] float32 in 0..1 of a mask [h, w] bool: grown by the padding, and soft inwards from there.

    Args:
        face_height: pixels.
        padding: how far the mask grows, in heights of the face; below 0 it shrinks.
    """
    grow = round(padding * face_height)
    grown = _touches(hard, grow) if grow >= 0 else _fills(hard, -grow)
    soft = max(1, round(FEATHER * face_height))
    while soft and not (core := _fills(grown, 2 * soft)).any():
        soft //= 2   # a mask too thin for so soft an edge
    if not soft:
        return grown.astype(np.float32)
    alpha = box_mean(box_mean(core.astype(np.float64), soft), soft)
    return np.where(alpha > 1e-3, alpha.clip(0, 1), 0).astype(np.float32)   # what float sums left is no mask


def box_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """[h, w] means over squares of 2*radius + 1 pixels; 0 beyond the edges."""
    side = 2 * radius + 1
    for axis in (0, 1):
        edges = [(0, 0), (0, 0)]
        edges[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(values.astype(np.float64), edges), axis=axis)
        stop = total.shape[axis]
        values = (np.take(total, range(side, stop), axis) - np.take(total, range(stop - side), axis)) / side
    return values


def _touches(mask: np.ndarray, radius: int) -> np.ndarray:
    return mask if radius == 0 else box_mean(mask, radius) > 0.5 / (2 * radius + 1) ** 2


def _fills(mask: np.ndarray, radius: int) -> np.ndarray:
    return mask if radius == 0 else box_mean(mask, radius) > 1 - 0.5 / (2 * radius + 1) ** 2

"""A person's joints, hands and face drawn the way a pose video shows them: coloured sticks and dots on black.

Knows points of a picture; not where they come from.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

JOINTS = 18
# Pairs of joints, in the order of their colours. Joints: nose, neck; right shoulder, elbow, wrist; left; right hip,
# knee, ankle; left; right eye, left eye, right ear, left ear (OpenPose's order for COCO).
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
# A wrist, then four points of each finger from its root to its tip.
FINGERS = tuple((0 if step == 0 else root + step - 1, root + step) for root in (1, 5, 9, 13, 17) for step in range(4))
LIMB_BRIGHTNESS = 0.6   # sticks are darker than the joints on them
STICK = 1 / 128         # of the shorter side: width of a limb and radius of a joint; 4 pixels of 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """Points in pixels of a picture, x and y; NaN where one is not seen."""

    body: np.ndarray                # [18, 2]
    hands: tuple[np.ndarray, ...]   # of those that are seen, each [21, 2]
    face: np.ndarray | None         # [68, 2]; None: not seen


def draw_skeleton(skeleton: Skeleton | None, width: int, height: int) -> np.ndarray:
    """[height, width, 3] uint8: the drawing that DWPose makes of a person; None is nobody: black."""
    picture = Image.new("RGB", (width, height))
    if skeleton is not None:
        pen = _Pen(picture)
        for index, (start, end) in enumerate(LIMBS):
            pen.line(skeleton.body[start], skeleton.body[end], _hue(index / JOINTS, LIMB_BRIGHTNESS), 2)
        for index, joint in enumerate(skeleton.body):
            pen.dot(joint, _hue(index / JOINTS), 1)
        for hand in skeleton.hands:
            for index, (start, end) in enumerate(FINGERS):
                pen.line(hand[start], hand[end], _hue(index / len(FINGERS)), 0.5)
            for point in hand:
                pen.dot(point, (0, 0, 255), 1)
        for point in () if skeleton.face is None else skeleton.face:
            pen.dot(point, (255, 255, 255), 0.75)
    return np.array(picture)


def _hue(share: float, brightness: float = 1.0) -> tuple[int, int, int]:
    """A colour of the circle of hues, which begins with red."""
    return tuple(int(255 * part) for part in colorsys.hsv_to_rgb(share, 1.0, brightness))


class _Pen:
    """Draws in widths of a stick; what is not seen is left out."""

    def __init__(self, picture: Image.Image) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._unit = STICK * min(picture.size)

    def line(self, start: np.ndarray, end: np.ndarray, colour: tuple[int, int, int], width: float) -> None:
        if np.isfinite(start).all() and np.isfinite(end).all():
            self._draw.line((*start, *end), fill=colour, width=max(1, round(width * self._unit)))

    def dot(self, centre: np.ndarray, colour: tuple[int, int, int], radius: float) -> None:
        if np.isfinite(centre).all():
            reach = max(1.0, radius * self._unit)
            self._draw.ellipse((*(centre - reach), *(centre + reach)), fill=colour)

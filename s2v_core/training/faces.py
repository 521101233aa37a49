"""Cartoon heads drawn with Pillow: a look that stays, a pose that moves, a camera that frames them.

Knows no sound, no clock and no files.

A scene is measured in picture sides: x to the right, y down, (0, 0) in the middle of what the camera sees at rest, and
1 the shorter side of the picture. Colours are (red, green, blue), 0 to 255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]   # left, top, right, bottom

HEAD_WIDTH, HEAD_HEIGHT = 0.235, 0.305   # half axes of a head of size 1
MOUTH_BELOW = 0.155                      # of the head's middle
MOUTH_WIDTH, MOUTH_HEIGHT = 0.088, 0.066   # half axes of the cavity, wide open
LIP = 0.014
SHUT = 0.03                              # openings below are drawn as closed lips
CANVAS = 448                             # pixels of the side that is drawn on, at least, before it is reduced

SKINS: tuple[Color, ...] = (
    (247, 219, 196), (238, 196, 165), (222, 174, 135), (196, 143, 104), (158, 108, 76), (120, 80, 58)
)  # fmt: skip
HAIR_COLORS: dict[str, Color] = {
    "black": (30, 27, 32), "brown": (92, 58, 36), "blond": (226, 196, 92), "red": (186, 66, 28),
    "grey": (168, 168, 176), "blue": (58, 92, 190), "green": (52, 142, 84),
}  # fmt: skip
HAIR_STYLES = ("short", "long", "curly", "bun", "bob")
EYE_COLORS: tuple[Color, ...] = ((62, 44, 30), (58, 104, 168), (62, 122, 70), (96, 92, 88))
PAINTS: dict[str, Color] = {
    "blue": (62, 104, 186), "green": (70, 146, 96), "purple": (122, 78, 156), "white": (232, 234, 238),
    "grey": (128, 134, 142), "teal": (58, 150, 156), "pink": (226, 130, 170), "black": (44, 46, 54),
    "yellow": (222, 210, 70),
}  # fmt: skip
BACKGROUNDS: dict[str, Color] = {
    "light blue": (172, 206, 232), "green": (126, 178, 132), "grey": (176, 180, 186), "dark blue": (52, 70, 112),
    "lilac": (190, 176, 220), "mint": (180, 226, 204), "dark grey": (84, 88, 96), "white": (234, 238, 240),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What stays the same about a person."""

    person: str        # "woman" or "man"
    skin: Color
    hair: Color
    hair_name: str
    style: str
    eyes: Color
    brows: float       # thickness, 1 usual
    glasses: bool
    clothing: Color
    clothing_name: str
    width: float       # of the head, 1 usual
    eye_gap: float     # 1 usual
    mouth: float       # its size, 1 usual


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Where a head is in one frame and what it does. Positions in picture sides."""

    x: float
    y: float
    size: float            # 1 fills a picture with one head
    turn: float = 0.0      # the face's features to the side, of the head's half width
    tilt: float = 0.0      # the face's features downwards, of the head's half height
    opening: float = 0.0   # of the mouth: 0 shut, 1 wide
    width: float = 0.0     # of the mouth: -1 rounded, 1 stretched
    blink: float = 0.0     # 1 is shut


@dataclass(frozen=True, kw_only=True, slots=True)
class Backdrop:
    """What is behind the people: a colour that runs into another downwards, and rectangles of a third."""

    name: str
    top: Color
    bottom: Color
    ink: Color
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """What is seen of the scene."""

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0


def _jitter(color: Color, rng: np.random.Generator, amount: float = 8) -> Color:
    r, g, b = np.clip(np.asarray(color) + rng.uniform(-amount, amount, 3), 0, 255).astype(int).tolist()
    return r, g, b


def _shade(color: Color, factor: float) -> Color:
    r, g, b = (int(max(0.0, min(255.0, c * factor))) for c in color)
    return r, g, b


def random_look(rng: np.random.Generator, *, held_out: bool) -> Look:
    """Somebody. One in five combinations of skin, hair colour and style is held out and never trained on."""
    names = list(HAIR_COLORS)
    while True:
        skin, hair, style = (int(rng.integers(len(x))) for x in (SKINS, names, HAIR_STYLES))
        if ((skin + 2 * hair + 3 * style) % 5 == 0) == held_out:
            break
    clothing = list(PAINTS)[rng.integers(len(PAINTS))]
    return Look(
        person="woman" if HAIR_STYLES[style] in ("long", "bun", "bob") else "man",
        skin=_jitter(SKINS[skin], rng, 5),
        hair=_jitter(HAIR_COLORS[names[hair]], rng),
        hair_name=names[hair],
        style=HAIR_STYLES[style],
        eyes=EYE_COLORS[rng.integers(len(EYE_COLORS))],
        brows=rng.uniform(0.7, 1.4),
        glasses=bool(rng.random() < 0.35),
        clothing=_jitter(PAINTS[clothing], rng),
        clothing_name=clothing,
        width=rng.uniform(0.93, 1.07),
        eye_gap=rng.uniform(0.92, 1.08),
        mouth=rng.uniform(0.92, 1.08),
    )


def random_backdrop(rng: np.random.Generator) -> Backdrop:
    name = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    top = _jitter(BACKGROUNDS[name], rng)
    boxes = []
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(-0.9, 0.7), rng.uniform(-0.6, 0.2)
        boxes.append((x, y, x + rng.uniform(0.1, 0.4), y + rng.uniform(0.1, 0.4)))
    bottom = _shade(top, rng.uniform(0.8, 1.0))
    return Backdrop(name=name, top=top, bottom=bottom, ink=_shade(top, rng.uniform(0.8, 0.92)), boxes=tuple(boxes))


class Painter:
    """Draws scenes of one picture size, antialiased by drawing them larger."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.factor = max(2, -(-CANVAS // min(width, height)))
        self._unit = min(width, height)

    def picture(self, backdrop: Backdrop, people: Sequence[tuple[Look, Pose]], camera: Camera) -> np.ndarray:
        """[H, W, 3] uint8."""
        size = (self.width * self.factor, self.height * self.factor)
        image = Image.new("RGB", size)
        pen = _Pen(ImageDraw.Draw(image), size, self._unit * self.factor, camera)
        _draw_backdrop(pen, size, backdrop)
        for look, pose in people:
            _draw_person(pen, look, pose)
        return np.asarray(image.reduce(self.factor))

    def face_box(self, pose: Pose, camera: Camera) -> Box:
        """The head from its hair line to its chin, in pixels."""
        return self._pixels(pose.x, pose.y, HEAD_WIDTH * pose.size, HEAD_HEIGHT * pose.size, camera)

    def mouth_box(self, look: Look, pose: Pose, camera: Camera) -> Box:
        """What the mouth needs when it is wide open, in pixels."""
        x, y, k = _mouth_middle(look, pose)
        return self._pixels(x, y, (1.25 * MOUTH_WIDTH + LIP) * k, (1.2 * MOUTH_HEIGHT + LIP) * k, camera)

    def _pixels(self, x: float, y: float, half_width: float, half_height: float, camera: Camera) -> Box:
        scale = self._unit * camera.zoom
        x, y = self.width / 2 + (x - camera.x) * scale, self.height / 2 + (y - camera.y) * scale
        return x - half_width * scale, y - half_height * scale, x + half_width * scale, y + half_height * scale


class _Pen:
    """Pillow's drawing, in scene units as the camera sees them."""

    def __init__(self, draw: ImageDraw.ImageDraw, size: tuple[int, int], unit: int, camera: Camera) -> None:
        self.draw = draw
        self.scale = unit * camera.zoom
        self.dx, self.dy = size[0] / 2 - camera.x * self.scale, size[1] / 2 - camera.y * self.scale

    def at(self, x: float, y: float) -> tuple[float, float]:
        return x * self.scale + self.dx, y * self.scale + self.dy

    def ellipse(self, x: float, y: float, a: float, b: float, color: Color) -> None:
        self.draw.ellipse((*self.at(x - a, y - b), *self.at(x + a, y + b)), fill=color)

    def ring(self, x: float, y: float, a: float, b: float, color: Color, width: float) -> None:
        pixels = max(1, round(width * self.scale))
        self.draw.ellipse((*self.at(x - a, y - b), *self.at(x + a, y + b)), outline=color, width=pixels)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        self.draw.rectangle((*self.at(left, top), *self.at(right, bottom)), fill=color)

    def round_box(self, left: float, top: float, right: float, bottom: float, radius: float, color: Color) -> None:
        self.draw.rounded_rectangle((*self.at(left, top), *self.at(right, bottom)), radius * self.scale, fill=color)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        pixels = max(1, round(width * self.scale))
        self.draw.line([self.at(*point) for point in points], fill=color, width=pixels, joint="curve")


def _draw_backdrop(pen: _Pen, size: tuple[int, int], backdrop: Backdrop) -> None:
    bands = 16   # as high as the scene, so they move with the camera
    for i in range(bands):
        share = i / (bands - 1)
        r, g, b = (int(t + (u - t) * share) for t, u in zip(backdrop.top, backdrop.bottom, strict=True))
        top = -0.6 + 1.2 * i / bands
        y0, y1 = pen.at(0, top)[1], pen.at(0, top + 1.2 / bands)[1]
        y0, y1 = (0 if i == 0 else y0), (max(size[1], y1) if i == bands - 1 else y1)
        pen.draw.rectangle((0, min(y0, y1), size[0], y1), fill=(r, g, b))
    for left, top, right, bottom in backdrop.boxes:
        pen.box(left, top, right, bottom, backdrop.ink)


def _draw_person(pen: _Pen, look: Look, pose: Pose) -> None:
    k, x, y = pose.size, pose.x, pose.y
    a, b = HEAD_WIDTH * k * look.width, HEAD_HEIGHT * k
    _draw_hair_behind(pen, look, x, y, a, b)
    body = 0.02 * k   # stays, as the head moves
    pen.round_box(x - 1.45 * a, 1.32 * b + body, x + 1.45 * a, 1.32 * b + 2.0 * k, 0.16 * k, look.clothing)
    pen.round_box(x - 0.36 * a, y + 0.7 * b, x + 0.36 * a, 1.42 * b + body, 0.06 * k, _shade(look.skin, 0.74))
    pen.ellipse(x - a, y + 0.04 * b, 0.05 * k, 0.065 * k, _shade(look.skin, 0.88))
    pen.ellipse(x + a, y + 0.04 * b, 0.05 * k, 0.065 * k, _shade(look.skin, 0.88))
    pen.ellipse(x, y, a, b, look.skin)
    _draw_hair_before(pen, look, x, y, a, b)
    _draw_eyes(pen, look, pose, a, b)
    _draw_mouth(pen, look, pose)


def _draw_hair_behind(pen: _Pen, look: Look, x: float, y: float, a: float, b: float) -> None:
    if look.style == "long":
        pen.round_box(x - 1.25 * a, y - 0.9 * b, x + 1.25 * a, y + 1.25 * b, 0.8 * a, look.hair)
    elif look.style == "bob":
        pen.round_box(x - 1.2 * a, y - 0.9 * b, x + 1.2 * a, y + 0.62 * b, 0.7 * a, look.hair)
    elif look.style == "bun":
        pen.ellipse(x, y - 1.2 * b, 0.42 * a, 0.3 * b, look.hair)
    elif look.style == "curly":
        for i in range(9):
            angle = np.pi * (1 + i / 8)
            pen.ellipse(
                x + 1.02 * a * np.cos(angle), y - 0.1 * b + 0.95 * b * np.sin(angle), 0.36 * a, 0.3 * b, look.hair
            )


def _draw_hair_before(pen: _Pen, look: Look, x: float, y: float, a: float, b: float) -> None:
    """The top of the head, down to the hair line."""
    top = 1.12 if look.style != "short" else 1.08
    box = (*pen.at(x - 1.06 * a, y - top * b), *pen.at(x + 1.06 * a, y + 0.35 * b))
    pen.draw.chord(box, 202, 338, fill=look.hair)
    if look.style in ("long", "bob"):
        for side in (-1, 1):
            pen.ellipse(x + side * 1.0 * a, y - 0.15 * b, 0.2 * a, 0.55 * b, look.hair)


def _features(look: Look, pose: Pose) -> tuple[float, float, float]:
    """Middle of the face's features, and their scale: they move further than the head, as on a ball."""
    k = pose.size
    return pose.x + pose.turn * HEAD_WIDTH * k * look.width, pose.y + pose.tilt * HEAD_HEIGHT * k, k


def _mouth_middle(look: Look, pose: Pose) -> tuple[float, float, float]:
    x, y, k = _features(look, pose)
    return x, y + MOUTH_BELOW * k, k * look.mouth


def _draw_eyes(pen: _Pen, look: Look, pose: Pose, a: float, b: float) -> None:
    x, y, k = _features(look, pose)
    lid = _shade(look.skin, 0.8)
    for side in (-1, 1):
        ex, ey = x + side * 0.098 * k * look.eye_gap, y - 0.035 * k
        if pose.blink > 0.5:
            pen.line(
                [(ex - 0.04 * k, ey + 0.01 * k), (ex, ey + 0.02 * k), (ex + 0.04 * k, ey + 0.01 * k)], lid, 0.012 * k
            )
        else:
            pen.ellipse(ex, ey, 0.046 * k, 0.034 * k, (250, 250, 250))
            pen.ellipse(ex, ey, 0.026 * k, 0.028 * k, look.eyes)
            pen.ellipse(ex, ey, 0.012 * k, 0.013 * k, (15, 15, 18))
        brow = y - 0.1 * k
        points = [(ex - 0.05 * k, brow + 0.008 * k), (ex, brow - 0.008 * k), (ex + 0.05 * k, brow + 0.008 * k)]
        pen.line(points, _shade(look.hair, 0.8), 0.016 * k * look.brows)
        if look.glasses:
            pen.ring(ex, ey, 0.075 * k, 0.066 * k, (34, 34, 40), 0.011 * k)
    if look.glasses:
        pen.line([(x - 0.03 * k, y - 0.04 * k), (x + 0.03 * k, y - 0.04 * k)], (34, 34, 40), 0.011 * k)
    nose = _shade(look.skin, 0.84)
    pen.line([(x, y + 0.0 * k), (x - 0.018 * k, y + 0.055 * k), (x + 0.012 * k, y + 0.062 * k)], nose, 0.013 * k)


def _draw_mouth(pen: _Pen, look: Look, pose: Pose) -> None:
    x, y, k = _mouth_middle(look, pose)
    stretch = 1 + 0.2 * pose.width
    half_width = MOUTH_WIDTH * k * stretch
    half_height = MOUTH_HEIGHT * k * pose.opening / stretch   # so that the area says how far it is open
    r, g, b = look.skin
    lips = (int(r * 0.84), int(g * 0.58), int(b * 0.60))
    pen.ellipse(x, y, half_width + LIP * k, half_height + LIP * k, lips)
    if pose.opening > SHUT:
        pen.ellipse(x, y, half_width, half_height, (56, 8, 18))

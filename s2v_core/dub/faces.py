"""Where faces are: found by OpenCV's cascades, or said by the user as boxes or as a mask.

Knows single frames; following a face over time is `tracking.py`'s.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import ConfigError, MediaError
from ..media.image_io import read_picture
from ..media.video_io import read_timed_frames
from .request import Box, check_box
from .shot import FrameReader

DETECTION_SIDE = 640    # pixels of the longer side that cascades look at
SMALLEST_FACE = 0.08    # of the shorter side
TOP, BOTTOM = 0.1, 1.2  # of a cascade's box: where the hairline and the chin are
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
COLUMNS = ("frame", "left", "top", "right", "bottom")


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """A face in a frame."""

    box: Box                    # pixels, from the hairline to the chin
    in_profile: bool = False


class Faces(Protocol):
    """Says where the faces of a frame are."""

    is_given: bool   # by the user: taken as it is, neither bridged nor doubted

    def seen(self, number: int, seconds: float, picture: np.ndarray) -> Sequence[Face]:
        """The faces of frame `number`, a picture [H, W, 3] uint8."""
        ...


class FoundFaces:
    """Faces in photographic pictures, by the cascades that OpenCV 4 brings: frontal ones, else ones in profile.

    Source: Viola and Jones, CVPR 2001, as trained by the OpenCV project.
    """

    is_given = False

    def __init__(self) -> None:
        self._frontal = _cascade("haarcascade_frontalface_default.xml")
        self._profile = _cascade("haarcascade_profileface.xml")

    def seen(self, number: int, seconds: float, picture: np.ndarray) -> Sequence[Face]:
        height, width = picture.shape[:2]
        scale = min(1.0, DETECTION_SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = np.asarray(Image.fromarray(picture).convert("L").resize(size, Image.Resampling.BILINEAR))
        smallest = max(20, round(SMALLEST_FACE * min(size)))

        def boxes(cascade: object, pixels: np.ndarray) -> list[tuple[float, ...]]:
            found = cascade.detectMultiScale(
                np.ascontiguousarray(pixels), scaleFactor=1.1, minNeighbors=6, minSize=(smallest, smallest)
            )
            return [tuple(float(side) for side in box) for box in found]

        frontal = boxes(self._frontal, grey)
        if frontal:
            return [Face(box=(x / scale, (y + TOP * h) / scale, (x + w) / scale, (y + BOTTOM * h) / scale))
                    for x, y, w, h in frontal]  # fmt: skip
        sides = boxes(self._profile, grey)   # of faces that look to the left; the mirrored picture has the others
        sides += [(size[0] - x - w, y, w, h) for x, y, w, h in boxes(self._profile, grey[:, ::-1])]
        return [
            Face(box=(x / scale, y / scale, (x + w) / scale, (y + h) / scale), in_profile=True) for x, y, w, h in sides
        ]


def _cascade(name: str) -> object:
    try:
        import cv2
    except ImportError as error:
        raise ConfigError(
            "finding faces needs OpenCV: pip install 'opencv-python-headless<5'; "
            "or say where the face is, by a box or mask"
        ) from error
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    if not hasattr(cv2, "CascadeClassifier") or not Path(folder, name).is_file():
        raise ConfigError(
            f"this OpenCV ({cv2.__version__}) comes without face cascades: pip install 'opencv-python-headless<5'; "
            "or say where the face is, by a box or mask"
        )
    return cv2.CascadeClassifier(str(Path(folder, name)))


class GivenBoxes:
    """One box for all frames, or one a frame: a frame without one shows no face."""

    is_given = True

    def __init__(self, boxes: Box | dict[int, Box]) -> None:
        """`boxes` in shares of the picture's sides."""
        self._boxes = boxes

    def seen(self, number: int, seconds: float, picture: np.ndarray) -> Sequence[Face]:
        box = self._boxes.get(number) if isinstance(self._boxes, dict) else self._boxes
        if box is None:
            return ()
        height, width = picture.shape[:2]
        return (Face(box=(box[0] * width, box[1] * height, box[2] * width, box[3] * height)),)


def read_boxes(path: Path) -> dict[int, Box]:
    """Boxes by frame number from a CSV file whose first line is `frame,left,top,right,bottom`.

    Raises: MediaError for a file that cannot be read, ConfigError naming the line that is wrong.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MediaError(f"{path} cannot be read as a CSV file ({error}); check the path") from error
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise ConfigError(f"{path} must begin with the line {','.join(COLUMNS)}, and hold a line for each frame")
    boxes: dict[int, Box] = {}
    for line, row in enumerate(rows, start=2):
        try:
            number, left, top, right, bottom = int(row["frame"]), *(float(row[name]) for name in COLUMNS[1:])
        except (TypeError, ValueError):
            raise ConfigError(f"{path} line {line}: frame must be a whole number, the others numbers") from None
        check_box((left, top, right, bottom), f"{path} line {line}:")
        boxes[number] = (left, top, right, bottom)
    return boxes


class Mask(Protocol):
    """What the user wants made anew, frame by frame."""

    def at(self, number: int, seconds: float) -> np.ndarray | None:
        """[H, W] bool of the shot's size; None where there is nothing to do."""
        ...


class StillMask:
    """The same mask for all frames."""

    def __init__(self, mask: np.ndarray) -> None:
        self._mask = mask if mask.any() else None

    def at(self, number: int, seconds: float) -> np.ndarray | None:
        return self._mask


class MaskFrames:
    """One mask a frame of the shot, in memory; frames past the last one are left alone."""

    def __init__(self, masks: np.ndarray) -> None:
        """`masks` [F, H, W] bool."""
        self._masks = masks

    def at(self, number: int, seconds: float) -> np.ndarray | None:
        return self._masks[number] if number < len(self._masks) and self._masks[number].any() else None


class MaskVideo:
    """A mask as a video: at each moment the mask frame that a player would show; nothing past its end."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._path, self._size = path, (width, height)
        self._reader = FrameReader(path, keep=32)

    @cached_property
    def _times(self) -> list[float]:
        return [frame.seconds for frame in read_timed_frames(self._path)]

    def at(self, number: int, seconds: float) -> np.ndarray | None:
        times = self._times
        step = times[-1] / (len(times) - 1) if len(times) > 1 else 0.0
        index = int(np.searchsorted(times, seconds + 1e-3, side="right")) - 1
        if index < 0 or (index == len(times) - 1 and seconds > times[-1] + step):
            return None
        mask = mask_pixels(Image.fromarray(self._reader.picture(index)), *self._size, name=str(self._path))
        return mask if mask.any() else None


def read_mask(path: Path, width: int, height: int) -> Mask:
    """A mask file for a shot of `width` x `height`: a picture for all frames, or a video.

    Raises: MediaError for a file that cannot be read, or whose shape is not the shot's.
    """
    if path.suffix.lower() in PICTURES:
        mask = mask_pixels(read_picture(path, behind="black"), width, height, name=str(path))
        if not mask.any():
            raise MediaError(f"{path} is black all over: paint white what is to be made anew")
        return StillMask(mask)
    return MaskVideo(path, width, height)


def mask_pixels(picture: Image.Image, width: int, height: int, *, name: str) -> np.ndarray:
    """[height, width] bool: what is nearer to white than to black, scaled where only the size differs."""
    if abs(picture.width * height - picture.height * width) > 0.02 * picture.width * height:
        raise MediaError(
            f"{name} is {picture.width}x{picture.height} and the footage {width}x{height}: give a mask of that shape"
        )
    grey = picture.convert("L")
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(grey) >= 128


class MaskedFaces:
    """The face around a mask: a mask of mouth and chin is taken for its lower half."""

    is_given = True

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def seen(self, number: int, seconds: float, picture: np.ndarray) -> Sequence[Face]:
        mask = self._mask.at(number, seconds)
        if mask is None:
            return ()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        side = max(1.3 * (right - left), 2.0 * (bottom - top))
        middle = (left + right) / 2
        return (Face(box=(middle - side / 2, float(bottom - side), middle + side / 2, float(bottom))),)

"""Poses out of footage: frames of a person become drawn poses, one by one as they are asked for.

Knows the optional package that finds joints; how they are drawn is `skeleton.py`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .pose import TimedFrame
from .skeleton import Skeleton, draw_skeleton

PACKAGE = "mediapipe>=0.10.14,<0.10.30"   # those that bring their weights along
SEEN = 0.3                                # visibility from which a joint is drawn

# Joints of `skeleton.py` among mediapipe's 33 landmarks; the neck lies between the shoulders (11, 12).
BODY = (0, None, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
# The usual 68 points of a face among mediapipe's 468: jaw, brows, nose, eyes, lips.
FACE = (
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63, 105, 66, 107, 336, 296,
    334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380, 61,
    39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip

FindSkeleton = Callable[[np.ndarray], "Skeleton | None"]
"""[H, W, 3] uint8 -> the person in it; None: nobody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnFrame:
    """The pose in a frame, drawn when it is asked for."""

    frame: TimedFrame
    find: FindSkeleton

    @property
    def seconds(self) -> float:
        return self.frame.seconds

    def picture(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        picture = self.frame.picture()
        return draw_skeleton(self.find(picture), picture.shape[1], picture.shape[0])


def drawn_poses(frames: Iterable[TimedFrame], find: FindSkeleton) -> Iterator[DrawnFrame]:
    """The poses of footage, at its times."""
    return (DrawnFrame(frame=frame, find=find) for frame in frames)


def skeleton_finder() -> FindSkeleton:
    """Finds the body, hands and face of one person in a picture, each picture by itself.

    Raises: ConfigError where the package is missing.
    """
    try:
        from mediapipe.python.solutions.holistic import Holistic
    except ImportError:
        raise ConfigError(
            f"poses are drawn from footage with mediapipe (Python 3.10 to 3.12): pip install '{PACKAGE}'; "
            "or give poses that are drawn already as the pose video"
        ) from None
    holistic = Holistic(static_image_mode=True, model_complexity=1)

    def find(picture: np.ndarray) -> Skeleton | None:
        found = holistic.process(np.ascontiguousarray(picture))
        if found.pose_landmarks is None:
            return None
        size = np.array([picture.shape[1], picture.shape[0]], np.float64)
        hands = (found.left_hand_landmarks, found.right_hand_landmarks)
        face = found.face_landmarks
        return Skeleton(
            body=_joints(found.pose_landmarks.landmark, size),
            hands=tuple(_points(hand.landmark, size) for hand in hands if hand is not None),
            face=None if face is None else _points(face.landmark, size)[list(FACE)],
        )

    return find


def _points(landmarks: Iterable[object], size: np.ndarray) -> np.ndarray:
    """[n, 2] in pixels."""
    return np.array([(landmark.x, landmark.y) for landmark in landmarks]) * size


def _joints(landmarks: list[object], size: np.ndarray) -> np.ndarray:
    """[18, 2] in pixels, NaN where not seen."""
    points = _points(landmarks, size)
    points[[landmark.visibility < SEEN for landmark in landmarks]] = np.nan
    neck = (points[11] + points[12]) / 2
    return np.array([neck if index is None else points[index] for index in BODY])

"""Footage of a person becomes drawn poses, at its own times."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from s2v_core.conditioning.pose import PoseVideo
from s2v_core.conditioning.pose_footage import FACE, PACKAGE, drawn_poses, skeleton_finder
from s2v_core.conditioning.skeleton import FINGERS, JOINTS, LIMBS, Skeleton, draw_skeleton
from s2v_core.errors import ConfigError
from s2v_core.geometry import VideoSize

SIDE = 256
NOBODY = np.full((JOINTS, 2), np.nan)


def person(x: float = 128.0) -> Skeleton:
    """Somebody who stands there, seen from the front, without hands and face."""
    places = [
        (0, 60), (0, 90), (-30, 90), (-40, 130), (-40, 170), (30, 90), (40, 130), (40, 170), (-18, 160),
        (-18, 200), (-18, 240), (18, 160), (18, 200), (18, 240), (-6, 52), (6, 52), (-14, 56), (14, 56),
    ]  # fmt: skip
    return Skeleton(body=np.array([(x + dx, y) for dx, y in places], float), hands=(), face=None)


def test_nobody_is_black_and_a_person_is_drawn_in_the_colours_of_the_circle():
    assert not draw_skeleton(None, SIDE, SIDE).any()
    drawing = draw_skeleton(person(), SIDE, SIDE)
    assert drawing.shape == (SIDE, SIDE, 3) and drawing.dtype == np.uint8
    for index, colour in ((0, (255, 0, 0)), (1, (255, 85, 0)), (6, (0, 255, 0)), (12, (0, 0, 255)), (9, (0, 255, 255))):
        x, y = person().body[index].astype(int)
        assert np.abs(drawing[y, x].astype(int) - colour).max() <= 1
    x, y = ((person().body[2] + person().body[3]) / 2).astype(int)   # the right upper arm: third limb, darker
    assert np.abs(drawing[y, x].astype(int) - (153, 102, 0)).max() <= 1


def test_what_is_not_seen_is_not_drawn_and_takes_its_limbs_along():
    body = person().body.copy()
    body[[8, 9, 10, 11, 12, 13]] = np.nan
    drawing = draw_skeleton(Skeleton(body=body, hands=(), face=None), SIDE, SIDE)
    assert not drawing[180:].any() and drawing[:140].any()


def test_hands_and_face_are_drawn_where_they_are():
    hand = np.stack([np.linspace(20, 60, 21), np.linspace(200, 230, 21)], axis=1)
    face = np.stack([np.linspace(180, 230, 68), np.linspace(20, 60, 68)], axis=1)
    drawing = draw_skeleton(Skeleton(body=NOBODY, hands=(hand,), face=face), SIDE, SIDE)
    assert tuple(drawing[20, 180]) == (255, 255, 255) and tuple(drawing[200, 20]) == (0, 0, 255)
    assert not drawing[100:190].any()


def test_limbs_fingers_and_face_name_each_point():
    assert sorted({joint for limb in LIMBS for joint in limb}) == list(range(JOINTS)) and len(LIMBS) == 17
    assert sorted({point for bone in FINGERS for point in bone}) == list(range(21)) and len(FINGERS) == 20
    assert len(FACE) == len(set(FACE)) == 68


@dataclass
class Frame:
    seconds: float
    asked: list

    def picture(self) -> np.ndarray:
        self.asked.append(self.seconds)
        return np.full((64, 64, 3), round(100 * self.seconds), np.uint8)


def test_footage_is_drawn_at_its_times_and_only_where_it_is_shown():
    asked = []

    def find(picture):
        return person(float(picture[0, 0, 0]))

    video = PoseVideo(
        lambda: drawn_poses((Frame(index / 50, asked) for index in range(50)), find),
        duration=1.0, size=VideoSize(width=64, height=64), fps=10,
    )  # fmt: skip
    window = video.window(0, 10)
    assert asked == pytest.approx([k / 10 for k in range(10)])
    red = [int(frame[0, 60].argmax()) for frame in window[0].transpose(0, 1)]   # the nose
    assert red[:6] == pytest.approx([0, 10, 20, 30, 40, 50], abs=2)


def test_without_the_package_one_line_says_what_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.holistic", None)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ConfigError, match=f"pip install '{PACKAGE}'"):
        skeleton_finder()

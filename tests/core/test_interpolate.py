"""More frames a second: as many as asked for, at their own times, between the frames that there are."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from s2v_core.media.interpolate import at_rate, interpolated
from s2v_core.media.video_io import write_segment

SIDE = 96


def square(left: float) -> np.ndarray:
    """A bright square on a dark ground, its left edge where asked."""
    picture = np.full((SIDE, SIDE, 3), 40, np.uint8)
    picture[32:64, round(left) : round(left) + 24] = (230, 200, 60)
    return picture


def edge_of(picture: np.ndarray) -> int:
    return int(np.flatnonzero(picture[48, :, 0] > 135)[0])


def moving(count: int) -> list[np.ndarray]:
    return [square(8 + 3 * index) for index in range(count)]


@pytest.mark.parametrize("to_fps", [Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001)])
def test_frame_k_shows_the_moment_k_over_fps(to_fps):
    count = int(Fraction(16, 16) * to_fps) - 3   # the last source frame begins at 15/16 s
    frames = list(interpolated(moving(16), fps=Fraction(16), to_fps=to_fps, num_frames=count))
    due = [8 + 3 * float(16 * k / to_fps) for k in range(count)]
    assert len(frames) == count and frames[0].shape == (SIDE, SIDE, 3)
    assert np.abs(np.array([edge_of(frame) for frame in frames]) - due).max() <= 1.5


def test_past_its_end_the_last_frame_is_held():
    frames = list(interpolated(moving(8), fps=Fraction(16), to_fps=Fraction(25), num_frames=16))
    assert len(frames) == 16 and all(edge_of(frame) == 8 + 3 * 7 for frame in frames[11:])


def test_one_picture_is_enough_and_stays_as_it_is():
    frames = list(interpolated([square(20)], fps=Fraction(16), to_fps=Fraction(25), num_frames=5))
    assert len(frames) == 5 and all(np.abs(frame.astype(int) - square(20)).max() <= 2 for frame in frames)


def test_at_a_cut_nothing_is_mixed():
    cut = [np.full((SIDE, SIDE, 3), 30, np.uint8)] * 6 + [np.full((SIDE, SIDE, 3), 220, np.uint8)] * 6
    frames = list(interpolated(cut, fps=Fraction(16), to_fps=Fraction(25), num_frames=18))
    assert {int(frame[48, 48, 0]) // 10 for frame in frames} <= {2, 3, 21, 22}


def test_the_same_pictures_give_the_same_frames():
    one, other = (list(interpolated(moving(8), fps=Fraction(16), to_fps=Fraction(25), num_frames=12)) for _ in "ab")
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_is_raised_at_a_frame_ends_the_work_and_leaves_nothing(tmp_path):
    write_segment(tmp_path / "one.mp4", moving(8), fps=16)
    told = []

    def stop_at_the_third():
        told.append(None)
        if len(told) == 3:
            raise RuntimeError("Cancel")

    with pytest.raises(RuntimeError, match="Cancel"):
        with at_rate([tmp_path / "one.mp4"], 16, 25, 12, tmp_path, on_frame=stop_at_the_third):
            pass
    assert len(told) == 3 and [path.name for path in tmp_path.iterdir()] == ["one.mp4"]

"""The measurement, held against rendered truth that it does not know."""

from __future__ import annotations

import numpy as np
import pytest

from s2v_core.errors import ShapeError
from s2v_core.training.measure import (
    _usual_color,
    best_lag,
    compressed_loudness,
    correlation,
    identity_error,
    motion,
    mouth_opening,
    track_face,
)
from s2v_core.training.synthetic import FPS, SyntheticClip

SEEDS = range(8)


def clip(seed, **options):
    return SyntheticClip(seed, **{"num_frames": 49, "engine": "formant", "held_out": True, **options})


@pytest.mark.parametrize("side", [64, 128])
def test_measured_mouths_follow_the_drawn_ones_and_the_sound(side):
    truth, sound = [], []
    for seed in SEEDS:
        made = clip(seed, width=side, height=side)
        mouth = mouth_opening(made.frames())
        truth.append(correlation(mouth, made.openings[0]))
        sound.append(correlation(mouth, compressed_loudness(made.waveform, 49, FPS)))
    assert min(truth) > 0.98 and min(sound) > 0.97


def test_mouths_hardly_follow_another_clips_sound():
    clips = [clip(seed, num_frames=97) for seed in SEEDS]
    mouths = [mouth_opening(made.frames()) for made in clips]
    sounds = [compressed_loudness(made.waveform, 97, FPS) for made in clips]
    others = [correlation(mouths[i], sounds[j]) for i in range(8) for j in range(8) if i != j]
    assert abs(np.mean(others)) < 0.2


def test_a_mouth_that_comes_late_is_found_late():
    made = clip(1, num_frames=81)
    mouth, sound = mouth_opening(made.frames()), compressed_loudness(made.waveform, 81, FPS)
    assert best_lag(mouth, sound)[0] == 0
    assert best_lag(np.roll(mouth, 3), sound)[0] == 3
    assert best_lag(np.roll(mouth, -2), sound)[0] == -2


def test_a_shut_mouth_measures_nothing():
    for seed in SEEDS:
        made = clip(seed, silent=True, num_frames=17, motion="nods")
        assert mouth_opening(made.frames()).max() < 0.01


def test_a_shirt_of_the_skins_colour_is_no_part_of_the_face():
    frames = clip(0, motion="still", camera="still").frames()
    dressed = frames.copy()
    dressed[:, 116:] = np.rint(track_face(frames).skin)
    assert np.allclose(track_face(dressed).height, track_face(frames).height, atol=1)
    assert correlation(mouth_opening(dressed), mouth_opening(frames)) > 0.99


def test_the_usual_colour_is_the_same_whatever_round_numbers_it_lies_at():
    rng = np.random.default_rng(0)
    for skin in ((216.0, 168.0, 120.0), (228.0, 180.0, 132.0), (240.0, 192.0, 168.0)):
        cheeks, glasses = rng.normal(skin, 4, (300, 3)), rng.normal((200.0, 150.0, 150.0), 1, (60, 3))
        assert np.abs(_usual_color(np.concatenate([cheeks, glasses]).astype(np.float32)) - skin).max() < 3


def test_in_a_box_around_a_small_head_a_shirt_of_the_skins_colour_is_not_seen():
    made = clip(21, num_faces=2, num_frames=41, motion="still")
    frames, (left, top, right, bottom) = made.frames(), made.face_boxes(0, 1)[0, 0]
    dressed, box = frames.copy(), (left - 8, top - 8, right + 8, bottom + 8)
    dressed[:, int(bottom) + 4 :, :64] = np.rint(track_face(frames, box).skin)
    assert correlation(mouth_opening(dressed, box), mouth_opening(frames, box)) > 0.99
    assert correlation(mouth_opening(dressed, tuple(made.regions[0])), mouth_opening(frames, box)) < 0.5


def test_two_speakers_are_told_apart_by_their_regions():
    made = clip(21, num_faces=2, num_frames=81)
    frames = made.frames()
    for person, region in enumerate(made.regions):
        mouth = mouth_opening(frames, tuple(region))
        own, other = (correlation(mouth, compressed_loudness(made.waveforms[i], 81, FPS)) for i in (person, 1 - person))
        assert own > 0.95 and other < 0.5


def test_head_and_camera_motion_are_told_apart():
    kinds = [("still", "still"), ("nods", "still"), ("shakes", "still"), ("still", "moves in"), ("still", "pans left"),
             ("still", "pans right")]   # fmt: skip
    right = []
    for seed in range(6):
        for head, camera in kinds:
            found = motion(clip(seed, num_frames=65, motion=head, camera=camera, width=64, height=64).frames(), FPS)
            right.append((found.head, found.camera) == (head, camera))
    assert np.mean(right) >= 0.9


def test_a_nod_is_seen_while_the_camera_moves_in():
    found = motion(clip(2, num_frames=81, motion="nods", camera="moves in").frames(), FPS)
    assert found.head == "nods" and found.camera == "moves in"


def test_identity_error_is_small_for_oneself_and_large_for_others():
    clips = [clip(seed, num_frames=9) for seed in range(12)]
    own = [identity_error(made.frames(), made.reference).mean() for made in clips]
    others = [identity_error(a.frames(), b.reference).mean() for a, b in zip(clips, clips[1:], strict=False)]
    assert max(own) < 0.06 and min(others) > 0.06


def test_identity_error_grows_as_colours_drift():
    made = clip(3, num_frames=9)
    faded = (made.frames().astype(float) * 0.85 + 20).astype(np.uint8)
    assert identity_error(faded, made.reference).mean() > identity_error(made.frames(), made.reference).mean() + 0.02


def test_the_face_is_found_where_it_is():
    made = clip(4, num_frames=17, motion="shakes")
    track, boxes = track_face(made.frames()), made.face_boxes()[:, 0]
    assert np.abs(track.x - (boxes[:, 0] + boxes[:, 2]) / 2).max() < 4
    assert np.abs(track.width / (boxes[:, 2] - boxes[:, 0]) - 0.9).max() < 0.15


def test_loudness_is_compressed_and_silent_at_zero():
    clock = np.arange(32_000) / 16_000
    tone = np.sin(2 * np.pi * 300 * clock)
    quiet, loud = compressed_loudness(0.1 * tone, 32, FPS), compressed_loudness(tone, 32, FPS)
    assert not compressed_loudness(0 * tone, 32, FPS).any()
    assert np.allclose(loud[4:-4] / quiet[4:-4], 10**0.6, rtol=0.01)


def test_correlation_of_what_does_not_move_is_none():
    assert correlation(np.ones(9), np.arange(9)) == 0
    assert np.isclose(correlation(np.arange(9), -2 * np.arange(9)), -1)


@pytest.mark.parametrize("frames", [np.zeros((4, 64, 64, 3)), np.zeros((64, 64, 3), np.uint8)])
def test_other_frames_are_refused(frames):
    with pytest.raises(ShapeError, match="uint8"):
        mouth_opening(frames)

"""Synthetic clips: repeatable, in time with their sound, never the same people in training and in the test."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from s2v_core.errors import ConfigError
from s2v_core.training.faces import HAIR_COLORS, HAIR_STYLES, random_look
from s2v_core.training.synthetic import CAMERA_MOTIONS, FPS, HEAD_MOTIONS, SyntheticClip
from s2v_core.training.voices import HELD_OUT_SENTENCES, sentence, sound_shape, voices


def clip(seed=0, **options):
    return SyntheticClip(seed, **{"num_frames": 33, "engine": "formant", **options})


def tone(seconds, *, start, stop):
    """Silence with a tone in it: [S] at 16 kHz."""
    clock = np.arange(int(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * 440 * clock) * ((clock >= start) & (clock < stop))).astype(np.float32)


def test_a_seed_makes_the_same_clip_again_and_another_seed_another():
    one, again, other = clip(3), clip(3), clip(4)
    assert one.prompt == again.prompt and np.array_equal(one.waveform, again.waveform)
    assert np.array_equal(one.frames(5, 8), again.frames(5, 8)) and np.array_equal(one.reference, again.reference)
    assert not np.array_equal(one.waveform, other.waveform)
    assert not np.array_equal(one.frames(5, 8), other.frames(5, 8))


@pytest.mark.parametrize("width, height", [(64, 64), (128, 128), (128, 80), (64, 112)])
def test_frames_and_sound_have_the_size_asked_for(width, height):
    made = clip(1, width=width, height=height, num_frames=9)
    assert made.frames().shape == (9, height, width, 3) and made.frames().dtype == np.uint8
    assert made.reference.shape == (height, width, 3)
    assert made.waveform.shape == (9 * 16_000 // FPS,) and np.abs(made.waveform).max() <= 1


def test_frame_k_shows_what_is_heard_at_k_over_fps():
    made = clip(num_frames=64, tracks=[tone(4, start=1.75, stop=2.25)])
    assert made.openings[0, 28:36].min() > 0.3      # 1.75 to 2.25 s
    quiet = [k for k in range(64) if not 26 <= k <= 38]
    assert not made.openings[0, quiet].any()
    loud = np.flatnonzero(made.openings[0])
    assert abs((loud[0] + loud[-1]) / 2 - 2.0 * FPS) <= 0.5   # the middle of the tone, not late or early


def test_a_silent_mouth_is_shut_and_draws_the_reference():
    made = clip(2, silent=True, motion="still", camera="still")
    assert not made.openings.any() and not made.waveform.any()
    open_eyed = next(k for k in range(33) if not made.people[0].blinks[k])
    assert np.abs(made.frame(open_eyed).astype(int) - made.reference).mean() < 4


def test_loudness_does_not_depend_on_the_recording_level():
    track = clip(5).waveform
    loud, _ = sound_shape(track, 33, FPS)
    quiet, _ = sound_shape(track * 0.1, 33, FPS)
    assert np.allclose(loud, quiet, atol=0.01) and loud.max() > 0.7


def test_a_mouth_is_wider_for_bright_sounds_than_for_dark_ones():
    clock = np.arange(16_000) / 16_000
    widths = [sound_shape(np.sin(2 * np.pi * pitch * clock), 16, FPS)[1].mean() for pitch in (350, 800, 2500)]
    assert widths[0] < -0.5 and abs(widths[1]) < 0.3 and widths[2] > 0.5


def test_the_mouth_is_inside_its_box_and_the_box_in_the_face():
    made = clip(7, num_frames=20, motion="nods", camera="moves in")
    wide, shut = (
        made.frames(),
        clip(7, num_frames=20, motion="nods", camera="moves in", tracks=[made.waveform * 0]).frames(),
    )
    changed = np.abs(wide.astype(int) - shut).max(-1) > 30
    for where, mouth, face in zip(changed, made.mouth_boxes()[:, 0], made.face_boxes()[:, 0], strict=True):
        rows, columns = np.nonzero(where)
        left, top, right, bottom = mouth
        assert ((columns >= left - 1) & (columns <= right) & (rows >= top - 1) & (rows <= bottom)).all()
        assert left > face[0] and right < face[2] and top > (face[1] + face[3]) / 2 and bottom < face[3]
    assert changed.any()


@pytest.mark.parametrize("num_faces", [2, 3])
def test_every_face_has_a_voice_and_a_region_of_its_own(num_faces):
    made = clip(11, num_faces=num_faces)
    assert len(made.waveforms) == num_faces and made.regions.shape == (num_faces, 4)
    for a, b in itertools.combinations(range(num_faces), 2):
        assert not np.array_equal(made.waveforms[a], made.waveforms[b])
    middles = (made.face_boxes()[..., 0] + made.face_boxes()[..., 2]) / 2     # [F, P]
    assert (middles > made.regions[:, 0]).all() and (middles < made.regions[:, 2]).all()
    assert made.regions[0, 0] == 0 and made.regions[-1, 2] == made.width


def test_held_out_looks_voices_and_sentences_are_never_trained_on():
    rng = np.random.default_rng(0)

    def looks(held_out):
        return {(look.hair_name, look.style, min(sum(look.skin) // 40, 99)) for look in
                (random_look(rng, held_out=held_out) for _ in range(1500))}   # fmt: skip

    assert not looks(True) & looks(False)
    assert not set(voices(held_out=True)) & set(voices(held_out=False))
    said = {sentence(rng, held_out=False) for _ in range(500)}
    assert not said & set(HELD_OUT_SENTENCES) and sentence(rng, held_out=True) in HELD_OUT_SENTENCES


def test_training_sees_every_hair_colour_and_style():
    rng = np.random.default_rng(1)
    looks = [random_look(rng, held_out=False) for _ in range(600)]
    assert {look.hair_name for look in looks} == set(HAIR_COLORS) and {look.style for look in looks} == set(HAIR_STYLES)


def test_the_prompt_tells_what_head_and_camera_do():
    words = {"nods": "nod", "shakes": "shak", "moves in": ("moves in", "comes closer"), "pans left": "left"}
    for motion, camera in itertools.product(HEAD_MOTIONS, CAMERA_MOTIONS):
        prompt = clip(1, num_frames=2, motion=motion, camera=camera).prompt
        for name, parts in words.items():
            told = any(part in prompt for part in ((parts,) if isinstance(parts, str) else parts))
            assert told == (name in (motion, camera)), prompt


def test_a_clip_longer_than_another_begins_alike():
    tracks = [tone(6, start=0.5, stop=3)]
    short, long = clip(9, num_frames=40, tracks=tracks), clip(9, num_frames=96, tracks=tracks)
    assert np.array_equal(short.openings[0], long.openings[0, :40])
    assert np.array_equal(short.camera_at(39).zoom, long.camera_at(39).zoom)


@pytest.mark.parametrize("options", [
    {"num_faces": 4}, {"num_faces": 0}, {"motion": "jumps"}, {"camera": "flies"},
    {"num_faces": 2, "tracks": [np.zeros(16_000, np.float32)]},
])  # fmt: skip
def test_an_impossible_clip_is_refused(options):
    with pytest.raises(ConfigError):
        clip(**options)


def test_of_several_faces_those_that_are_told_to_keep_silent():
    clip = SyntheticClip(3, num_frames=33, num_faces=3, silent=(True, False, True))
    assert [bool(w.any()) for w in clip.waveforms] == [False, True, False]
    assert [bool(o.max() > 0.3) for o in clip.openings] == [False, True, False]

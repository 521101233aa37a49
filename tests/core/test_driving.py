"""The sound that drives: cut, moved, brought to one loudness, and gated; never copied."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from s2v_core.conditioning.driving import Excerpt, stretch
from s2v_core.conditioning.sound_cleaning import block_loudness, clean, integrated, step_levels
from s2v_core.config import SAMPLE_RATE
from s2v_core.errors import ConfigError, MediaError
from s2v_core.media.audio_io import sound_from_waveform

SECOND = SAMPLE_RATE


def sound_of(samples):
    return sound_from_waveform(torch.from_numpy(np.asarray(samples, np.float32))[None], SAMPLE_RATE)


def sine(seconds: float, level: float, hertz: float = 997.0) -> np.ndarray:
    """A tone whose peak is `level` dB of full scale."""
    return 10 ** (level / 20) * np.sin(2 * math.pi * hertz * np.arange(round(seconds * SECOND)) / SECOND)


def whole(sound) -> np.ndarray:
    return sound.read(0, sound.num_samples)


NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * SECOND).astype(np.float32)


# ---- a stretch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start, seconds", [(0, 3), (0.5, 1), (1.25, 1.75), (-0.5, 2), (2.5, 2), (5, 1), (-3, 1)])
def test_a_stretch_has_the_samples_of_its_times_and_silence_beyond_the_sound(start, seconds):
    excerpt = Excerpt(sound_of(NOISE), start=Fraction(start), duration=Fraction(seconds))
    silence = np.zeros(4 * SECOND, np.float32)
    expected = np.concatenate([silence, NOISE, silence])[round((start + 4) * SECOND) :][: round(seconds * SECOND)]
    assert np.array_equal(whole(excerpt), expected)
    assert excerpt.mean == pytest.approx(expected.mean(), abs=1e-6)
    assert excerpt.variance == pytest.approx(expected.var(), abs=1e-6)
    assert np.array_equal(excerpt.read(100, 300), expected[100:300])


def test_a_stretch_is_exact_to_the_microsecond():
    assert stretch(Fraction(10), 0.1, 0.3) == (Fraction(1, 10), Fraction(1, 5))
    assert stretch(Fraction(10), 2.5, None) == (Fraction(5, 2), Fraction(15, 2))
    assert stretch(Fraction(10), 0, 99) == (0, 10)


@pytest.mark.parametrize("start, end, says", [(10, None, "from 10 s to its end"), (3, 2, "from 3 s to 2 s")])
def test_a_stretch_of_nothing_is_refused(start, end, says):
    with pytest.raises(ConfigError, match=f"{says} nothing is left of 10.00 s"):
        stretch(Fraction(10), start, end)


# ---- loudness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hertz, gain", [(997.0, 0.0), (100.0, -1.85), (4000.0, 3.3)])
def test_loudness_is_that_of_the_standard(hertz, gain):
    """A tone of 997 Hz at full scale in one channel has -3.01 LUFS; the other gains are those of the K weighting."""
    found = integrated(block_loudness(sound_of(sine(3, 0.0, hertz)))[:-4])
    assert found == pytest.approx(-3.01 + gain, abs=0.1)


def test_pauses_do_not_count_in_the_whole_loudness():
    speech = np.concatenate([sine(2, -20), np.zeros(6 * SECOND), sine(2, -20)])
    assert integrated(block_loudness(sound_of(speech))) == pytest.approx(-23.01, abs=0.5)


def test_a_quiet_half_is_brought_to_the_loudness_of_the_other():
    even = clean(sound_of(np.concatenate([sine(8, -10), sine(8, -24)])), loudness=-23, gate=None)
    levels = step_levels(even)
    early, late = levels[200:500].mean(), levels[1100:1400].mean()
    assert early == pytest.approx(late, abs=0.2) and early == pytest.approx(-23 + 0.0, abs=0.2)


def test_a_pause_stays_as_far_below_as_it_was():
    hiss = 1e-3 * np.random.default_rng(1).standard_normal(4 * SECOND)
    sound = sound_of(np.concatenate([sine(4, -12), hiss, sine(4, -12)]))
    even = clean(sound, loudness=-23, gate=None)
    before, after = step_levels(sound), step_levels(even)
    assert np.ptp((after - before)[50:-50]) < 1.0


def test_gain_has_its_limits():
    even = clean(sound_of(sine(4, -60)), loudness=-23, gate=None)
    assert step_levels(even)[100:300].mean() == pytest.approx(-63 + 20, abs=0.2)


# ---- the gate -------------------------------------------------------------------------------------------------------


def test_the_gate_silences_what_lies_below_it_and_leaves_the_rest_as_it_is():
    hiss = 1e-3 * np.random.default_rng(1).standard_normal(3 * SECOND)   # -60 dB
    samples = np.concatenate([hiss[:SECOND], sine(1, -12), hiss]).astype(np.float32)
    gated = whole(clean(sound_of(samples), loudness=None, gate=-45))
    assert np.array_equal(gated[SECOND : 2 * SECOND], samples[SECOND : 2 * SECOND])
    assert not gated[: round(0.9 * SECOND)].any() and not gated[round(2.3 * SECOND) :].any()


def test_the_gate_listens_after_the_loudness():
    samples = np.concatenate([sine(3, -40), np.zeros(SECOND)])
    quiet, even = (clean(sound_of(samples), loudness=level, gate=-35) for level in (-30, -20))
    assert whole(even).any() and np.abs(whole(even)).max() > np.abs(whole(quiet)).max()
    with pytest.raises(MediaError, match="a noise gate at -35 dB leaves nothing .* loudest moment is at -43 dB"):
        clean(sound_of(samples), loudness=None, gate=-35)


def test_stretches_read_apart_are_the_whole():
    even = clean(sound_of(np.concatenate([NOISE, 0.01 * NOISE])), loudness=-23, gate=-45)
    parts = [even.read(start, min(start + 7777, even.num_samples)) for start in range(0, even.num_samples, 7777)]
    assert np.array_equal(np.concatenate(parts), whole(even))


def test_with_neither_the_sound_is_left_alone():
    sound = sound_of(NOISE)
    assert clean(sound, loudness=None, gate=None) is sound

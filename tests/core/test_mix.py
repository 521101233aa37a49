"""Several sounds in one file."""

from __future__ import annotations

import wave
from fractions import Fraction

import numpy as np
import pytest

from s2v_core.errors import MediaError
from s2v_core.media.audio_io import open_sound
from s2v_core.media.mix import PlacedSound, mix_sounds

from ..cli.media import float_wav, tone


def samples(path):
    """[S, C] and the rate."""
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        return values / 32_767, file.getframerate()


def placed(path, start="0", seconds=None):
    duration = open_sound(path).duration
    return PlacedSound(path=path, start=Fraction(start), duration=min(Fraction(seconds or duration), duration))


@pytest.fixture
def folder(tmp_path):
    t = np.arange(16_000) / 16_000
    float_wav(tmp_path / "low.wav", 0.3 * np.sin(2 * np.pi * 200 * t))
    float_wav(tmp_path / "high.wav", 0.3 * np.sin(2 * np.pi * 900 * t))
    return tmp_path


def test_sounds_are_added_where_they_begin_and_cut_where_they_end(folder):
    low, high = folder / "low.wav", folder / "high.wav"
    mix_sounds([placed(low), placed(high, "0.75", "0.5")], folder / "mix.wav")
    mixed, rate = samples(folder / "mix.wav")
    t = np.arange(16_000) / 16_000
    expected = np.zeros(20_000)
    expected[:16_000] += 0.3 * np.sin(2 * np.pi * 200 * t)
    expected[12_000:] += 0.3 * np.sin(2 * np.pi * 900 * t[:8_000])
    assert rate == 16_000 and mixed.shape == (20_000, 1)
    assert np.abs(mixed[:, 0] - expected).max() < 1e-4


def test_a_pause_between_two_sounds_is_silent(folder):
    mix_sounds([placed(folder / "low.wav"), placed(folder / "high.wav", "1.5")], folder / "mix.wav")
    mixed, _ = samples(folder / "mix.wav")
    assert len(mixed) == 40_000 and not mixed[16_000:24_000].any() and mixed[24_100:].any()


def test_the_mix_has_the_highest_rate_and_stereo_where_one_is_stereo(folder):
    tone(folder / "stereo.wav", seconds=0.5, rate=44_100, channels=2)
    mix_sounds([placed(folder / "low.wav"), placed(folder / "stereo.wav")], folder / "mix.wav")
    mixed, rate = samples(folder / "mix.wav")
    assert rate == 44_100 and mixed.shape == (44_100, 2)


def test_what_would_be_too_loud_makes_the_whole_softer(folder):
    mix_sounds([placed(folder / "low.wav")] * 5, folder / "mix.wav")
    mixed, _ = samples(folder / "mix.wav")
    assert 0.99 < np.abs(mixed).max() <= 1
    t = np.arange(16_000) / 16_000
    assert np.abs(mixed[:, 0] - np.sin(2 * np.pi * 200 * t)).max() < 1e-3


def test_a_file_without_sound_is_named(folder):
    (folder / "text.wav").write_text("no sound")
    with pytest.raises(MediaError, match="text.wav"):
        mix_sounds([PlacedSound(path=folder / "text.wav", start=Fraction(0), duration=Fraction(1))], folder / "m.wav")

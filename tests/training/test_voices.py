"""Speech: repeatable, with words and pauses in it, whichever engine speaks."""

from __future__ import annotations

import numpy as np
import pytest

from s2v_core.errors import MediaError
from s2v_core.training.voices import Voice, espeak_program, espeak_speech, say, sound_shape, speech_track, voices

ENGINES = ["formant"] + ["espeak"] * (espeak_program() is not None)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_words_sound_the_same_again(engine):
    voice = voices(held_out=False, engine=engine)[0]
    once, again = (say(voice, "the baker sold a warm coat.", np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(once, again) and len(once) > 8000 and once.dtype == np.float32
    assert np.isclose(np.abs(once).max(), 1, atol=0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_track_speaks_and_pauses(engine):
    voice = voices(held_out=True, engine=engine)[0]
    track = speech_track(voice, 160_000, np.random.default_rng(0), held_out=True)
    loudness, _ = sound_shape(track, 160, 16)
    assert track.shape == (160_000,) and np.isfinite(track).all()
    assert 0.03 < (loudness == 0).mean() < 0.5 and loudness.max() > 0.9
    assert loudness.std() > 0.2


@pytest.mark.parametrize("engine", ENGINES)
def test_voices_differ_in_pitch(engine):
    def pitch(voice):
        """Hz of the strongest repetition between 70 and 320 Hz."""
        track = speech_track(voice, 48_000, np.random.default_rng(2), held_out=False)
        spectrum = np.abs(np.fft.rfft(track)) ** 2
        repeats = np.fft.irfft(spectrum)
        return 16_000 / (50 + np.argmax(repeats[50:230]))

    found = [pitch(voice) for voice in voices(held_out=False, engine=engine)]
    assert max(found) > 1.4 * min(found)


def test_formant_vowels_have_their_formants():
    rng = np.random.default_rng(0)
    voice = Voice(engine="formant", pitch=110)
    spectra = {v: np.abs(np.fft.rfft(say(voice, v * 4, rng), 8192)) for v in "iu"}
    frequencies = np.fft.rfftfreq(8192, 1 / 16_000)
    bright = {v: (s[frequencies > 1800] ** 2).sum() / (s**2).sum() for v, s in spectra.items()}
    assert bright["i"] > 2 * bright["u"]


def test_a_voice_that_espeak_lacks_is_an_error_with_its_name(monkeypatch):
    monkeypatch.setattr("s2v_core.training.voices.espeak_program", lambda: None)
    with pytest.raises(MediaError, match="espeak-ng is not installed"):
        espeak_speech("hello", Voice(engine="espeak", variant="en-us+m1"))
    assert {voice.engine for voice in voices(held_out=False)} == {"formant"}

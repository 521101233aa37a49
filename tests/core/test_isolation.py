"""The voice of a song: its loudness is left, the music's is not, and nothing else changes."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from s2v_core.conditioning import isolation
from s2v_core.conditioning.driving import drive
from s2v_core.conditioning.isolation import isolate_voice
from s2v_core.config import SAMPLE_RATE
from s2v_core.media.audio_io import sound_from_waveform
from s2v_core.training.measure import compressed_loudness, correlation
from s2v_core.training.voices import FORMANT_VOICES, speech_track
from s2v_core.types import DrivingSettings

FPS = 16.0
BEAT = SAMPLE_RATE // 2
CHORDS = ((220.0, 277.2, 329.6), (146.8, 185.0, 220.0), (164.8, 207.7, 246.9), (196.0, 246.9, 293.7))


def sound_of(samples):
    return sound_from_waveform(torch.from_numpy(np.asarray(samples, np.float32))[None], SAMPLE_RATE)


def whole(sound) -> np.ndarray:
    return sound.read(0, sound.num_samples)


def band(beats: int) -> np.ndarray:
    """[S] four chords that fade, with a drum and a snare by turns; the snare is never twice the same."""
    rng, t = np.random.default_rng(5), np.arange(BEAT) / SAMPLE_RATE
    drum, fading = np.sin(2 * np.pi * 60 * t) * np.exp(-12 * t), np.exp(-2 * t)
    parts = []
    for beat in range(beats):
        chord = sum(np.sin(2 * np.pi * pitch * n * t) / n for pitch in CHORDS[beat % 4] for n in (1, 2, 3, 4))
        parts.append(0.2 * chord * fading + (rng.standard_normal(BEAT) * np.exp(-25 * t) if beat % 2 else drum))
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return speech_track(FORMANT_VOICES[4], 24 * BEAT, np.random.default_rng(1), held_out=False)


@pytest.fixture(scope="module")
def song(speech) -> np.ndarray:
    """A voice and music, equally loud."""
    music = band(24)
    return speech + music * np.sqrt(np.mean(speech**2) / np.mean(music**2))


def likeness(samples, speech) -> float:
    """r of two sounds' loudness, frame by frame."""
    return correlation(*(compressed_loudness(x, round(12 * FPS), FPS) for x in (samples, speech)))


def test_the_loudness_that_drives_is_the_voices(song, speech):
    assert likeness(song, speech) < 0.75
    assert likeness(whole(isolate_voice(sound_of(song))), speech) > 0.9


def test_a_voice_without_music_is_left(speech):
    assert likeness(whole(isolate_voice(sound_of(speech))), speech) > 0.97


def test_what_nothing_repeats_is_left_sample_for_sample_and_as_long():
    noise = 0.3 * np.random.default_rng(0).standard_normal(15_001)   # shorter than the nearest repetition
    sound = sound_from_waveform(torch.from_numpy(np.repeat(noise, 3)[None].astype(np.float32)), 44_100)
    isolated = isolate_voice(sound)
    assert (isolated.duration, isolated.num_samples) == (Fraction(45_003, 44_100), sound.num_samples)
    assert np.allclose(whole(isolated)[:-1], whole(sound)[:-1], atol=1e-4)


def test_parts_join_without_a_seam(song, monkeypatch):
    at_once = whole(isolate_voice(sound_of(song)))
    monkeypatch.setattr(isolation, "BLOCK", 100)
    assert np.allclose(whole(isolate_voice(sound_of(song))), at_once, atol=1e-3)


def test_it_is_what_drives_and_not_what_is_heard(song):
    heard = sound_of(song)
    driving = drive(heard, None, DrivingSettings(start=2.0, isolate_voice=True))
    assert driving.seconds == 10 and driving.sound.num_samples == 10 * SAMPLE_RATE
    assert np.array_equal(whole(driving.sound), whole(isolate_voice(sound_of(song[2 * SAMPLE_RATE :]))))
    assert np.array_equal(whole(heard), song.astype(np.float32))

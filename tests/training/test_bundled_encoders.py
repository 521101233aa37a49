"""The bundled sound encoder hears what a mouth needs: measured on voices and sentences it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import s2v_core
from s2v_core.conditioning.audio import SoundFeatures
from s2v_core.config import AudioEncoderConfig
from s2v_core.media.audio_io import sound_from_waveform
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.training.measure import correlation
from s2v_core.training.sound import silence_distance
from s2v_core.training.synthetic import FPS, SyntheticClip

FOLDER = Path(s2v_core.__file__).parent / "bundled"
NUM_FRAMES = 96


def settings(part):
    values = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))[part]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


@pytest.fixture(scope="module")
def encoder():
    encoder = SoundEncoder(AudioEncoderConfig(**settings("audio_encoder")))
    weights = load_file(FOLDER / "audio_encoder.safetensors")
    encoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return encoder


def heard(encoder, seed, held_out):
    """[F, C+1] last features of every frame and a one, and [F] the mouth's truth."""
    clip = SyntheticClip(seed, num_frames=NUM_FRAMES, held_out=held_out, engine="formant")
    sound = sound_from_waveform(torch.from_numpy(clip.waveform)[None], 16_000)
    features = SoundFeatures(sound, encoder.hidden_states, fps=FPS).window(0, NUM_FRAMES)[0, -1].T
    return torch.cat([features, torch.ones(NUM_FRAMES, 1)], 1).numpy(), clip.openings[0]


def test_a_linear_map_of_the_features_follows_loudness_of_unheard_voices(encoder):
    learnt = [heard(encoder, seed, held_out=False) for seed in range(16)]
    x, y = np.concatenate([x for x, _ in learnt]), np.concatenate([y for _, y in learnt])
    weights = np.linalg.solve(x.T @ x + 0.1 * np.eye(x.shape[1]), x.T @ y)
    follows = [correlation(x @ weights, y) for x, y in (heard(encoder, seed, held_out=True) for seed in range(6))]
    assert np.mean(follows) > 0.9 and min(follows) > 0.85


def test_silence_sounds_unlike_speech(encoder):
    assert silence_distance(encoder) > 1.5

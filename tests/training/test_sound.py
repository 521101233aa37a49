"""The sound encoder's training: true spectra, a loss that falls, silence apart from speech."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from s2v_core.config import AudioEncoderConfig
from s2v_core.errors import ConfigError
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.training.sound import (
    NUM_MELS,
    SoundRecipe,
    TrackPool,
    main,
    mel_filters,
    normalise,
    spectrum_loss,
    spectrum_targets,
    train,
)

QUICK = SoundRecipe(hidden_size=32, num_layers=1, intermediate_size=32, conv_dim=16, steps=50, batch=2, shortest=1,
                    longest=1, tracks=8, learning_rate=5e-3, warmup=5)  # fmt: skip


def tone(pitch, seconds=1.0):
    return torch.sin(2 * torch.pi * pitch * torch.arange(int(seconds * 16_000)) / 16_000)[None]


def test_a_tone_lies_in_the_mel_band_of_its_pitch():
    middles = torch.fft.rfftfreq(400, 1 / 16_000)[mel_filters().argmax(1)]
    for pitch in (300, 1000, 3000):
        band = spectrum_targets(normalise(tone(pitch)))[0, :, :NUM_MELS].mean(0).argmax()
        assert abs(middles[band] - pitch) < 0.15 * pitch + 40


def test_mel_filters_leave_no_frequency_out():
    filters = mel_filters()
    frequencies = torch.fft.rfftfreq(400, 1 / 16_000)
    inside = (frequencies > 120) & (frequencies < 7400)
    assert (filters.sum(0)[inside] > 0.3).all() and (filters.sum(1) > 0).all()


def test_a_target_stands_where_its_hidden_state_hears():
    waveform = torch.zeros(1, 16_000)
    waveform[:, 8_000:8_160] = 1   # half a second in: within the windows of states 24 and 25
    targets = spectrum_targets(waveform)
    encoder = SoundEncoder(QUICK.encoder)
    assert targets.shape == (1, encoder.hidden_states(waveform).shape[1], NUM_MELS + 1)
    assert targets[0, :, :NUM_MELS].mean(-1).argmax() in (24, 25)
    assert abs(float(targets[0, :, -1].argmax()) - 24.5) <= 2.5


def test_silence_stays_silent_when_normalised():
    assert not normalise(torch.zeros(1, 800)).any()
    loud = normalise(tone(440) * 20 + 3)
    assert abs(loud.mean()) < 1e-4 and abs(loud.var() - 1) < 1e-3


def test_tracks_follow_from_the_seed():
    one, again = TrackPool(QUICK).batch(), TrackPool(QUICK).batch()
    assert torch.equal(one, again) and one.shape == (2, 16_000)


def test_the_loss_falls_and_speech_parts_from_silence():
    losses, encoder = [], None
    for report, encoder, _ in train(QUICK):   # noqa: B007 the last one is kept
        losses.append(report["loss"])
    assert losses[-1] < 0.7 * losses[0]
    silence = encoder.hidden_states(torch.zeros(1, 16_000))[-1][10:-10]
    speech = encoder.hidden_states(TrackPool(QUICK).batch()[:1])[-1]
    assert (speech.mean(0) - silence.mean(0)).norm() > 10 * silence.std(0).norm()


def test_every_weight_that_sound_passes_learns():
    torch.manual_seed(0)
    encoder = SoundEncoder(QUICK.encoder)
    heads = torch.nn.ModuleList(torch.nn.Linear(32, NUM_MELS + 1) for _ in range(2))
    spectrum_loss(encoder, heads, TrackPool(QUICK).batch()).backward()
    unheard = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert unheard <= {"wav2vec2.masked_spec_embed"} | {n for n in unheard if "k_proj.bias" in n}   # softmax ignores it


def test_the_command_writes_weights_settings_and_a_log(tmp_path):
    config = tmp_path / "small.yaml"
    settings = {
        "hidden_size": 32,
        "num_layers": 1,
        "intermediate_size": 32,
        "conv_dim": 16,
        "steps": 2,
        "batch": 1,
        "tracks": 1,
    }
    config.write_text(yaml.safe_dump(settings))
    main(["--config", str(config), "--out", str(tmp_path / "out")])
    lines = [json.loads(line) for line in (tmp_path / "small.log.jsonl").read_text().splitlines()]
    assert lines[0]["recipe"]["hidden_size"] == 32 and lines[1]["step"] == 2
    assert np.isfinite(lines[-1]["silence_distance"]) and "explained" in lines[-1]["held_out"]
    settings = json.loads((tmp_path / "out/audio_encoder.json").read_text())
    encoder = SoundEncoder(AudioEncoderConfig(**settings))
    encoder.load_state_dict(load_file(tmp_path / "out/audio_encoder.safetensors"))


def test_pieces_longer_than_the_tracks_are_refused():
    with pytest.raises(ConfigError, match="10 s"):
        SoundRecipe(longest=20)

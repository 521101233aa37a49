"""Every frame of a video hears the sound at its own time, however long the sound and whatever was asked for before."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from s2v_core.checkpoints.keymaps import audio_config_from_official
from s2v_core.conditioning.audio import (
    HOP,
    SoundFeatures,
    feature_indices,
    interpolate_states,
    num_features,
    num_hidden_states,
    num_video_frames,
    read_normalised,
    state_positions,
)
from s2v_core.config import FEATURE_WINDOW, AudioEncoderConfig
from s2v_core.errors import ShapeError
from s2v_core.media.audio_io import Sound, sound_from_waveform
from s2v_core.models.sound_encoder import SoundEncoder, sound_encoder_keys

from ..golden.case import read_cases

COMMITTED = Path(__file__).parents[1] / "golden/data"
SMALL = AudioEncoderConfig(
    hidden_size=48, num_hidden_layers=5, num_attention_heads=4, intermediate_size=96, conv_dim=(12,) * 7,
    num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> SoundEncoder:
    torch.manual_seed(0)
    return SoundEncoder(SMALL)


@cache
def speech(seconds: float) -> Tensor:
    """[1, S] at 16 kHz: voiced syllables of changing pitch, pauses, breath, a little room noise."""
    random, time = np.random.default_rng(0), np.arange(round(seconds * 16_000)) / 16_000

    def course(step: float) -> np.ndarray:
        grid = np.arange(0, seconds + 2 * step, step)
        return np.interp(time, grid, random.random(len(grid)))

    loud = course(0.12) ** 2 * (course(1.5) > 0.35)
    phase = 2 * np.pi * np.cumsum(90 + 120 * course(0.3)) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 9))
    noise = random.standard_normal(len(time))
    return torch.from_numpy(((0.15 * voice + 0.02 * noise) * loud + 5e-4 * noise).astype(np.float32))[None]


def sound_of(seconds: float) -> Sound:
    return sound_from_waveform(speech(seconds), 16_000)


def loudness(waveform: Tensor) -> Tensor:
    """A stand-in encoder that hears nothing outside a state's own window: [2, T, 3]."""
    windows = waveform[0].unfold(0, FEATURE_WINDOW, HOP)
    parts = torch.stack([windows.square().mean(1), windows.mean(1), windows[:, 0]], dim=1)
    return torch.stack([parts, parts + 1])


class Counted:
    """An encoder that remembers how much it was asked to encode."""

    def __init__(self, encode: object) -> None:
        self.encode = encode
        self.samples: list[int] = []

    def __call__(self, waveform: Tensor) -> Tensor:
        self.samples.append(waveform.shape[1])
        return self.encode(waveform)


class Nominal:
    """Sound of which only the length matters."""

    def __init__(self, duration: Fraction) -> None:
        self.duration = duration


def whole_track(sound: Sound, encode: object, fps: float) -> Tensor:
    """[L, C, F] as the reference does it: everything encoded, resampled to 30 a second, the nearest one picked."""
    states = encode(read_normalised(sound, 0, sound.num_samples))
    num_states = states.shape[1]
    at_30 = np.linspace(0, num_states - 1, num_features(num_states))
    indices = feature_indices(num_video_frames(sound, fps), fps).clamp(max=len(at_30) - 1)
    rows = states.double().transpose(1, 2).reshape(-1, num_states).numpy()
    values = np.stack([np.interp(at_30, np.arange(num_states), row) for row in rows])[:, indices]
    return torch.from_numpy(values).float().reshape(states.shape[0], states.shape[2], -1)


@pytest.mark.parametrize(
    ("duration", "fps", "num"),
    [
        (Fraction(5), 16, 80), (Fraction(5 * 48_000 + 1, 48_000), 16, 81), (Fraction(5 * 48_000 - 1, 48_000), 16, 80),
        (Fraction(1, 10), 30, 3), (Fraction(1, 40), 1, 1), (Fraction(1001), 30_000 / 1001, 30_000),
        (Fraction(1001 * 192_000 + 1, 192_000), 30_000 / 1001, 30_001), (Fraction(100), 29.97, 2997),
        (Fraction(3600 * 192_000 + 1, 192_000), 1, 3601),
    ],
)  # fmt: skip
def test_a_video_has_the_frames_that_cover_its_sound(duration: Fraction, fps: float, num: int) -> None:
    assert num_video_frames(Nominal(duration), fps) == num


def test_the_shortest_sound_makes_one_hidden_state() -> None:
    assert num_hidden_states(FEATURE_WINDOW) == 1
    with pytest.raises(ShapeError, match="at least 400 samples at 16 kHz, got 399"):
        num_hidden_states(399)


def test_at_16_fps_a_frame_hears_the_nearest_feature_and_ties_go_to_the_even_one() -> None:
    exact = [round(Fraction(30 * i, 16)) for i in range(4000)]
    assert feature_indices(4000, 16).tolist() == exact
    assert feature_indices(8, 16).tolist() == [0, 2, 4, 6, 8, 9, 11, 13]


@pytest.mark.parametrize("fps", [16, 25, 30])
def test_a_frame_hears_the_same_feature_in_a_video_of_any_length(fps: float) -> None:
    longest = feature_indices(5000, fps)
    assert all(torch.equal(feature_indices(n, fps), longest[:n]) for n in (1, 7, 80, 81, 999, 1600, 4999))


@pytest.mark.parametrize("fps", [12, 24, 29.97, 24_000 / 1001])
def test_a_heard_feature_is_never_more_than_half_a_step_away(fps: float) -> None:
    away = (feature_indices(3000, fps) - torch.arange(3000, dtype=torch.float64) * 30 / fps).abs()
    assert away.max() <= 0.5 + 1e-9


@pytest.mark.parametrize("num_states", [1, 2, 3, 49, 73, 250, 533])
def test_resampling_is_linear_with_both_ends_kept(num_states: int) -> None:
    states = torch.randn(2, num_states, 3, generator=torch.Generator().manual_seed(0))
    num = num_features(num_states)
    found = interpolate_states(states, *state_positions(torch.arange(num), num_states))
    wide = states.double().transpose(1, 2)
    torch.testing.assert_close(
        found, F.interpolate(wide, size=num, mode="linear", align_corners=True).transpose(1, 2).float()
    )
    assert torch.equal(found[:, 0], states[:, 0])
    assert num == 1 or torch.equal(found[:, -1], states[:, -1])


def test_an_hour_in_positions_are_still_exact() -> None:
    num_states = num_hidden_states(3600 * 16_000)
    last = num_features(num_states) - 1
    lower, weight = state_positions(torch.tensor([last - 1]), num_states)
    exact = Fraction((last - 1) * (num_states - 1), last)
    assert abs(lower.item() + Fraction(weight.item()) - exact) < 1e-6


def test_normalised_sound_is_what_the_published_processor_makes() -> None:
    waveform = speech(3.0) * 0.1 + 0.05
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True)(waveform[0].numpy(), sampling_rate=16_000).input_values[0]
    with sound_from_waveform(waveform, 16_000) as sound:
        ours = read_normalised(sound, 0, sound.num_samples)[0]
        torch.testing.assert_close(ours, torch.as_tensor(np.asarray(theirs)), rtol=0, atol=2e-5)
        assert torch.equal(read_normalised(sound, 700, 900)[0], ours[700:900])


@pytest.mark.parametrize("fps", [12, 16, 24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("seconds", [0.025, 0.31, 7.9])
def test_a_short_sound_gives_the_whole_tracks_features(encoder: SoundEncoder, seconds: float, fps: float) -> None:
    with sound_of(seconds) as sound:
        found = SoundFeatures(sound, encoder.hidden_states, fps=fps).window(0, num_video_frames(sound, fps))
        torch.testing.assert_close(found[0], whole_track(sound, encoder.hidden_states, fps), rtol=1e-5, atol=1e-5)
        assert found.dtype == torch.float32 and found.shape[:3] == (1, SMALL.num_hidden_layers + 1, SMALL.hidden_size)


@pytest.mark.parametrize("fps", [16, 24, 29.97])
def test_stretches_of_a_long_sound_join_without_a_seam(fps: float) -> None:
    """With an encoder that hears only a state's own window, stretches and the whole must agree."""
    with sound_of(171.3) as sound:
        encode = Counted(loudness)
        num = num_video_frames(sound, fps)
        found = SoundFeatures(sound, encode, fps=fps).window(0, num)[0]
        assert encode.samples == [2999 * HOP + FEATURE_WINDOW] * 5   # 60 s each
        torch.testing.assert_close(found, whole_track(sound, loudness, fps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fps", [12, 16, 24, 25, 29.97, 60])
def test_a_frame_hears_what_sounds_at_its_time(fps: float) -> None:
    """Bursts, some across the joints of stretches: heard from the frame where they begin to the one where they end."""
    seconds = [0.5, 7.03, 39.9, 40.01, 71.77, 79.95, 120.4, 149.5]
    waveform = torch.full((1, 150 * 16_000), 1e-4)
    for second in seconds:
        waveform[0, round(second * 16_000) : round((second + 0.3) * 16_000)] = 0.5
    # half a feature, a hidden state, its window, the grids' drift
    slack = 0.5 / 30 + 0.02 + FEATURE_WINDOW / 16_000 + 0.03
    with sound_from_waveform(waveform, 16_000) as sound:
        heard = SoundFeatures(sound, loudness, fps=fps).window(0, num_video_frames(sound, fps))[0, 0, 1]
    loud = heard > heard.max() / 2
    since = torch.arange(len(heard)) / fps - torch.tensor(seconds)[:, None]   # [bursts, F]
    within = ((since > slack) & (since < 0.3 - slack)).any(0)
    near = ((since > -slack) & (since < 0.3 + slack)).any(0)
    assert within.sum() >= len(seconds) and loud[within].all() and not loud[~near].any()


# What encoding in stretches costs, against encoding the whole sound at once: the difference of a feature in units of
# its layer's standard deviation. (Shorten the same sound by a fifth, and the reference's own features move by 0.02 to
# 0.05 on average and 1 at most.) It grows with the length, since the whole's attention thins out over ever more sound:
# with the recorded weights 0.035 and 0.004 at 130 s, 0.16 and 0.014 at 300 s.
LARGEST, MEAN = 0.05, 0.01


def stretches_against_the_whole(encoder: SoundEncoder) -> tuple[float, float]:
    with sound_of(75.0) as sound:
        num = num_video_frames(sound, 16)
        whole = whole_track(sound, encoder.hidden_states, 16)
        found = SoundFeatures(sound, encoder.hidden_states, fps=16).window(0, num)[0]
        apart = (found - whole).abs() / whole.std((1, 2), keepdim=True)
        return apart.max().item(), apart.mean().item()


def test_stretches_differ_from_the_whole_by_no_more_than_stated_with_recorded_weights() -> None:
    case = next(case for case in read_cases(COMMITTED) if case.kind == "wav2vec2")
    encoder = SoundEncoder(audio_config_from_official(case.config))
    encoder.load_state_dict({ours: case.weights[0][key] for key, ours in sound_encoder_keys(case.weights[0]).items()})
    largest, mean = stretches_against_the_whole(encoder)
    assert 0 < largest < LARGEST and mean < MEAN


def test_stretches_differ_from_the_whole_by_no_more_than_stated_with_other_weights(encoder: SoundEncoder) -> None:
    largest, mean = stretches_against_the_whole(encoder)
    assert 0 < largest < LARGEST and mean < MEAN


def test_what_was_asked_before_changes_nothing(encoder: SoundEncoder) -> None:
    encode = encoder.hidden_states
    with sound_of(62.0) as sound:
        num = num_video_frames(sound, 16)
        once = SoundFeatures(sound, encode, fps=16).window(-3, num + 9)
        pieces = SoundFeatures(sound, encode, fps=16)
        cut = torch.cat([pieces.window(i, min(i + 80, num + 9)) for i in range(-3, num + 9, 80)], dim=3)
        resumed = SoundFeatures(sound, encode, fps=16).window(697, 777)   # nothing before it was ever asked for
        assert torch.equal(cut, once)
        assert torch.equal(resumed, once[..., 700:780])
        assert torch.equal(pieces.window(0, 80), once[..., 3:83])


def test_each_stretch_is_encoded_once_in_a_run_and_two_are_kept() -> None:
    encode = Counted(loudness)
    with sound_of(200.0) as sound:
        features = SoundFeatures(sound, encode, fps=16)
        kept = []
        for start in range(-3, num_video_frames(sound, 16), 80):
            features.window(start, start + 80)
            kept.append(sum(chunk.nbytes for chunk in features._chunks.values()))
        assert len(encode.samples) == 5 + 1   # 200 s in fives of 40, and silence
        assert max(kept) <= 2 * (40 * 16 + 1) * 2 * 3 * 4   # frames, layers, width, bytes: of 80 s, whatever the length


def test_before_and_after_the_sound_there_is_silence_and_not_zeros(encoder: SoundEncoder) -> None:
    encode = encoder.hidden_states
    with sound_of(2.0) as sound:
        features = SoundFeatures(sound, encode, fps=16)
        states = encode(torch.zeros(1, 32_000))
        silence = states[:, 24:75].mean(1)   # [L, C]: the middle of 99 states
        assert silence.abs().amax() > 0.1
        for window in (features.window(-5, 0), features.window(32, 40), features.window(1000, 1001)):
            torch.testing.assert_close(window[0], silence[..., None].expand(-1, -1, window.shape[3]), atol=1e-5, rtol=0)
        around = features.window(-3, 35)
        assert torch.equal(around[..., :3], features.window(-3, 0))
        assert torch.equal(around[..., 3:35], features.window(0, 32))
        assert torch.equal(around[..., 35:], features.window(32, 35))


@pytest.mark.parametrize("seconds", [0.025, 0.1, 1.001, 4.99, 5.0])
@pytest.mark.parametrize("fps", [16, 24, 30, 60])
def test_a_frame_that_begins_before_the_sound_ends_is_not_silent(seconds: float, fps: float) -> None:
    """The reference runs out of features up to two frames early; the last one is held."""
    with sound_of(seconds) as sound:
        features = SoundFeatures(sound, loudness, fps=fps)
        num = math.ceil(sound.duration * fps)
        last = loudness(read_normalised(sound, 0, sound.num_samples))[:, -1]
        beyond = feature_indices(num, fps) >= num_features(num_hidden_states(sound.num_samples)) - 1
        window = features.window(0, num + 1)[0]
        if num_hidden_states(sound.num_samples) > 1:
            assert all(torch.equal(window[..., i], last) for i in range(num) if beyond[i])
        assert torch.equal(window[..., num], features.window(-1, 0)[0, ..., 0])
        assert not torch.equal(window[..., num - 1], window[..., num])


def test_another_clock_of_hidden_states_is_refused() -> None:
    with (
        sound_of(1.0) as sound,
        pytest.raises(ShapeError, match=r"the sound encoder made \[2, 24, 3\] of 15760 samples, where \[layers, 49"),
    ):
        SoundFeatures(sound, lambda waveform: loudness(waveform)[:, ::2][:, :24], fps=16).window(0, 16)


def test_features_are_float32_from_a_half_precision_encoder_too(encoder: SoundEncoder) -> None:
    rough = deepcopy(encoder).to(torch.bfloat16)
    with sound_of(1.0) as sound:
        full = SoundFeatures(sound, encoder.hidden_states, fps=16).window(-1, 17)
        half = SoundFeatures(sound, rough.hidden_states, fps=16).window(-1, 17)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.05 * full.std()


# the encoder


@pytest.mark.parametrize("stable", [True, False])
def test_hidden_states_are_those_of_transformers(stable: bool) -> None:
    torch.manual_seed(0)
    config = replace(SMALL, do_stable_layer_norm=stable)
    encoder, waveform = SoundEncoder(config), torch.randn(1, 12_345)
    with torch.no_grad():
        theirs = encoder.wav2vec2(waveform, output_hidden_states=True)
    ours = encoder.hidden_states(waveform)
    assert ours.shape == (SMALL.num_hidden_layers + 1, num_hidden_states(12_345), SMALL.hidden_size)
    for state, other in zip(ours[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(state, other[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[-1], theirs.last_hidden_state[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_samples", [400, 719, 720, 1039, 1040, 9_999, 16_000])
def test_the_count_of_hidden_states_is_the_convolutions(encoder: SoundEncoder, num_samples: int) -> None:
    assert encoder.hidden_states(torch.randn(1, num_samples)).shape[1] == num_hidden_states(num_samples)


def test_encoding_draws_no_random_numbers_and_is_always_in_inference_form(encoder: SoundEncoder) -> None:
    waveform = torch.randn(1, 4000)
    before = torch.get_rng_state()
    assert torch.equal(encoder.hidden_states(waveform), encoder.hidden_states(waveform))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module.training for module in encoder.wav2vec2.modules())
    assert encoder.wav2vec2.config._attn_implementation == "sdpa"


def test_published_names_fit_a_model_built_without_memory(encoder: SoundEncoder) -> None:
    ours = encoder.state_dict()
    conv = "encoder.pos_conv_embed.conv."
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    bare = {name.removeprefix("wav2vec2."): tensor for name, tensor in ours.items()}
    bare_old = dict(bare)
    for new_name, old_name in old.items():
        bare_old[conv + old_name] = bare_old.pop(conv + new_name)
    with_head = {f"wav2vec2.{name}": tensor for name, tensor in bare_old.items()}
    with_head |= {"lm_head.weight": torch.zeros(3, 48), "lm_head.bias": torch.zeros(3)}
    with_head |= {"wav2vec2.masked_spec_embed": torch.zeros(48)}
    waveform = torch.randn(1, 4000)
    for published in (ours, bare, bare_old, with_head):
        with torch.device("meta"):
            loaded = SoundEncoder(SMALL)
        names = sound_encoder_keys(published)
        loaded.load_state_dict({name: published[key] for key, name in names.items()}, assign=True)
        assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
        assert torch.equal(loaded.hidden_states(waveform), encoder.hidden_states(waveform))


def test_the_published_encoder_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        published = SoundEncoder(AudioEncoderConfig())
    masked_spec_embed, lm_head = 1024, 1024 * 33 + 33
    assert sum(p.numel() for p in published.parameters()) + masked_spec_embed + lm_head == 315_472_545

"""The autoencoder's training: the same arithmetic as the streams, a beginning that moves, a loss that falls."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from s2v_core.config import VAEConfig
from s2v_core.errors import ConfigError
from s2v_core.models.vae import WanVAE
from s2v_core.training.autoencoder import (
    AutoencoderRecipe,
    WindowPool,
    draw_window,
    haar,
    latent_statistics,
    main,
    rate_at,
    reconstruction_loss,
    train,
)
from s2v_core.training.haar_start import begin_as_averages, haar_matrix
from s2v_core.training.whole_video import decode_latents, encode_frames

PLAIN = {"latent_mean": (0.0,) * 16, "latent_std": (1.0,) * 16}
QUICK = AutoencoderRecipe(dim=8, batch=2, frames=5, crop=32, windows=24, steps=50, warmup=10, ema=0.9, whole_every=1000)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return WanVAE(VAEConfig(dim=8, num_res_blocks=1, **PLAIN))


@pytest.fixture(scope="module")
def begun():
    torch.manual_seed(0)
    vae = WanVAE(AutoencoderRecipe().vae)
    begin_as_averages(vae)
    return vae


@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_whole_videos_come_out_as_streams_do(vae, num_frames):
    frames = torch.rand(2, 3, num_frames, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = encode_frames(vae, frames)
        torch.testing.assert_close(latents, vae.encode(frames), atol=1e-4, rtol=1e-4)
        streamed = torch.cat(list(vae.decoder().decode(latents)), 2)
        torch.testing.assert_close(decode_latents(vae, latents).clamp(-1, 1), streamed, atol=1e-4, rtol=1e-4)


def test_every_weight_but_the_variances_learns(vae):
    frames = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    decode_latents(vae, encode_frames(vae, frames)).square().mean().backward()
    still = {name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    variances = vae.conv1.weight.grad[16:].abs().sum()
    vae.zero_grad()
    assert still == set() and variances == 0


def test_haar_keeps_energy_and_parts_mean_from_differences():
    frames = torch.randn(1, 3, 9, 4, 4)
    assert torch.isclose(haar(frames).square().sum(), frames[:, :, 1:].square().sum(), rtol=1e-5)
    still = frames[:, :, :1].expand(-1, -1, 9, -1, -1)
    assert haar(still)[:, :, :, 1:].abs().max() < 1e-6
    assert torch.allclose(haar_matrix() @ torch.linalg.inv(haar_matrix()), torch.eye(12), atol=1e-5)


def test_differences_within_a_latent_frame_cost_more_than_a_common_error():
    recipe = AutoencoderRecipe()
    frames, mouths = torch.zeros(1, 3, 5, 16, 16), torch.zeros(1, 1, 1, 16, 16)
    common, flicker = frames + 0.1, frames.clone()
    flicker[:, :, 1:] += 0.1 * torch.tensor([1.0, -1, 1, -1]).view(1, 1, 4, 1, 1)
    cost = [float(reconstruction_loss(out, frames, mouths, recipe)) for out in (frames, common, flicker)]
    assert cost[0] == 0 and cost[2] > 1.5 * cost[1]
    in_mouth = torch.ones_like(mouths)
    assert np.isclose(float(reconstruction_loss(common, frames, in_mouth, recipe)), recipe.mouth * cost[1])


def test_it_begins_with_a_blurred_video_that_moves(begun):
    frames = torch.full((1, 3, 9, 64, 64), -0.5)
    for k in range(9):   # something bright that jumps within a group of four
        frames[:, :, k, 16:32, 16 * (k % 4) : 16 * (k % 4) + 16] = 0.5
    with torch.no_grad():
        out = decode_latents(begun, encode_frames(begun, frames))
    assert (out - frames).abs().mean() < 0.15
    seen = [out[0, :, k, 16:32].mean(0).mean(0).view(4, 16).mean(1).argmax().item() for k in range(9)]
    assert seen == [k % 4 for k in range(9)]


def test_it_begins_with_a_still_whose_latents_are_those_of_a_still_video(begun):
    picture = torch.rand(1, 3, 1, 8, 8).repeat_interleave(8, -1).repeat_interleave(8, -2) * 2 - 1
    with torch.no_grad():
        latents = encode_frames(begun, picture.expand(-1, -1, 9, -1, -1))[:, :12]
    assert (latents[:, :, 0] - latents[:, :, 2]).abs().mean() < 0.25 * latents[:, :3].abs().mean()


@pytest.mark.parametrize("config", [VAEConfig(dim=4), VAEConfig(dim=16, temporal_downsample=(True, True, False))])
def test_a_beginning_is_refused_to_a_vae_that_it_does_not_fit(config):
    with pytest.raises(ConfigError, match="beginning needs"):
        begin_as_averages(WanVAE(config))


def test_windows_follow_from_their_seed_and_hold_mouths():
    recipe = AutoencoderRecipe()
    one, again = draw_window(5, recipe), draw_window(5, recipe)
    assert np.array_equal(one.frames, again.frames) and one.frames.shape[0] == recipe.frames
    left, top, right, bottom = one.mouths[0]
    assert right - left > 5 and bottom - top > 5
    inside = one.frames[:, int(top) : int(bottom), int(left) : int(right)].astype(float)
    assert inside.std(0).mean() > 2 * one.frames.astype(float).std(0).mean()   # that is where it moves


def test_batches_are_crops_or_whole_pictures():
    pool = WindowPool(QUICK)
    frames, mouths = pool.batch(whole=False)
    assert frames.shape == (2, 3, 5, 32, 32) and mouths.shape == (2, 1, 1, 32, 32)
    assert -1 <= frames.min() < frames.max() <= 1 and set(mouths.unique().tolist()) <= {0.0, 1.0}
    frames, mouths = pool.batch(whole=True)
    assert frames.shape[0] == 1 and frames.shape[-1] in (64, 96, 128) and mouths.shape[-1] == frames.shape[-1]


def test_the_learning_rate_rises_stays_and_falls():
    recipe = AutoencoderRecipe()
    rates = [
        rate_at(step, recipe, done=done) for step, done in ((0, 0), (200, 0.1), (600, 0.5), (900, 0.75), (1200, 1))
    ]
    assert rates[0] < 0.1 * rates[1] and rates[1] == recipe.learning_rate > rates[3] > rates[4] > 0
    assert rates[2] == pytest.approx(rates[1])


def test_the_loss_falls():
    torch.set_num_threads(1)
    losses = [report["loss"] for report, _ in train(QUICK, every=10)]
    assert losses[-1] < 0.9 * losses[0]


def test_latents_have_statistics_of_their_channels(begun):
    mean, std = latent_statistics(begun, side=64, num_clips=2)
    assert len(mean) == len(std) == 16 and min(std) > 0
    assert std[0] > std[15] * 0.1


def test_the_command_writes_weights_settings_and_a_log(tmp_path):
    config = tmp_path / "small.yaml"
    settings = {"dim": 8, "batch": 1, "frames": 5, "crop": 32, "windows": 2, "steps": 2}
    config.write_text(yaml.safe_dump(settings))
    main(["--config", str(config), "--out", str(tmp_path / "out"), "--clips", "1"])
    lines = [json.loads(line) for line in (tmp_path / "small.log.jsonl").read_text().splitlines()]
    assert lines[0]["recipe"]["dim"] == 8 and lines[1]["step"] == 2 and lines[1]["loss"] > 0
    assert {"psnr", "mouth_r", "worst_mouth_r"} <= lines[-1]["held_out"].keys()
    config = VAEConfig(**json.loads((tmp_path / "out/vae.json").read_text()))
    WanVAE(config).load_state_dict(load_file(tmp_path / "out/vae.safetensors"))
    assert min(config.latent_std) > 0


def test_a_decoder_alone_learns_while_all_latents_stay_as_they_were(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    settings = {"dim": 8, "batch": 1, "frames": 5, "crop": 32, "windows": 2, "steps": 2, "warmup": 1}
    first.write_text(yaml.safe_dump(settings))
    second.write_text(yaml.safe_dump(settings | {"only_decoder": True, "seed": 1}))
    main(["--config", str(first), "--out", str(tmp_path / "a"), "--clips", "1"])
    begin = tmp_path / "a/vae.safetensors"
    main(["--config", str(second), "--out", str(tmp_path / "b"), "--begin", str(begin), "--clips", "1"])
    assert (tmp_path / "b/vae.json").read_text() == (tmp_path / "a/vae.json").read_text()
    before, after = load_file(begin), load_file(tmp_path / "b/vae.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and {name.split(".")[0] for name in changed} == {"decoder", "conv2"}


def test_a_decoder_alone_needs_an_encoder_to_fit_it_to():
    with pytest.raises(ConfigError, match="--begin"):
        next(train(AutoencoderRecipe(only_decoder=True, dim=8)))


@pytest.mark.parametrize("wrong", [{"frames": 8}, {"crop": 40}, {"crop": 128}])
def test_a_recipe_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError):
        AutoencoderRecipe(**wrong)

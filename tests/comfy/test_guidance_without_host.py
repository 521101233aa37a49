"""Guidance of prompt and sound by our nodes, with the host faked as thinly as possible."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from s2v_core.sampling.guidance import ProjectedGuidance, guide

from .fake_host import CFGGuider, load_pack, part


@pytest.fixture
def pack(monkeypatch, tmp_path):
    return load_pack(monkeypatch, tmp_path)


def sampling(pack, **guidance):
    settings = {"seed": 0, "steps": 1, "cfg": 4.0, "sampler": "wan_unipc", "scheduler": "wan", **guidance}
    return part(pack, "nodes.sampling").Sampling(**settings)


def velocity(prompt, sound):
    plain = torch.tensor([[[3.0, -1.0, 2.0], [0.0, 5.0, -2.0]]])
    return plain + 10.0 * sound + torch.arange(6.0).view(1, 2, 3) * prompt


def guider(pack, scale=None, **guidance):
    """The guider of a clip, and what its model was told: 1 for the prompt, 1 for the sound, by evaluation."""
    module = part(pack, "nodes.sampling")
    denoiser = object.__new__(module.HostDenoiser)
    denoiser.sampling = sampling(pack, **guidance)
    denoiser.positives, denoiser.negative = [[[torch.ones(1), {}]]], [[torch.zeros(1), {}]]
    denoiser.asked = []

    def model(conditioning, x, sigma):
        ((prompt, values),) = conditioning
        told = (float(prompt), float(values["audio_embed"].any()))
        denoiser.asked.append(told)
        return x - sigma.view(-1, 1, 1) * velocity(*told)

    denoiser.model = model
    inputs = SimpleNamespace(
        index=0, reference_latent=torch.zeros(1, 16, 1, 2, 2), motion_latents=None, pose_latents=None,
        audio_features=torch.ones(1, 2, 3, 4), speaker_features=None, guidance_scale=scale,
    )  # fmt: skip
    return denoiser._guider(inputs), denoiser.asked


def test_as_trained_the_hosts_own_guidance_is_asked_for(pack):
    for settings, cfg in (({}, 4.0), ({"audio_guidance": 4.0}, 4.0), ({"scale": 6.0}, 6.0), ({"cfg": 1.0}, 1.0),
                          ({"cfg": 1.0, "apg": True}, 1.0), ({"cfg": 1.0, "sync_strength": 0.5}, 1.0)):  # fmt: skip
        made, _ = guider(pack, **settings)
        assert type(made) is CFGGuider and made.cfg == cfg


@pytest.mark.parametrize("settings, scales", [
    ({"sync_strength": 1.5}, (4.0, 6.0)), ({"audio_guidance": 2.5}, (4.0, 2.5)),
    ({"sync_strength": 1.5, "scale": 2.0}, (2.0, 3.0)), ({"audio_guidance": 3.0, "apg": True}, (4.0, 3.0)),
])  # fmt: skip
def test_two_scales_take_three_evaluations_and_give_the_cores_velocity(pack, settings, scales):
    made, asked = guider(pack, **settings)
    x, sigma = torch.randn(1, 2, 3), torch.tensor([0.7])
    denoised = made.predict_noise(x, sigma)
    assert asked == [(1, 1), (0, 1), (0, 0)]
    combine = ProjectedGuidance() if settings.get("apg") else guide
    expected = combine([velocity(1, 1), velocity(0, 1), velocity(0, 0)], scales)
    assert torch.allclose((x - denoised) / 0.7, expected, atol=1e-4)


@pytest.mark.parametrize("settings, branches", [
    ({"cfg": 1.0, "audio_guidance": 3.0}, [(1, 1), (1, 0)]), ({"audio_guidance": 1.0}, [(1, 1), (0, 1)]),
    ({"apg": True}, [(1, 1), (0, 0)]), ({"sync_strength": 0.0}, [(1, 1), (0, 1)]),
])  # fmt: skip
def test_one_scale_takes_two_evaluations(pack, settings, branches):
    made, asked = guider(pack, **settings)
    made.predict_noise(torch.randn(1, 2, 3), torch.tensor([0.7]))
    assert asked == branches


def test_apg_remembers_the_steps_of_one_clip_and_of_no_other(pack):
    x, sigma = torch.randn(1, 2, 3), torch.tensor([0.7])
    one, other = (guider(pack, apg=True)[0] for _ in range(2))
    first = one.predict_noise(x, sigma)
    assert not torch.allclose(one.predict_noise(x, sigma), first)
    assert torch.equal(other.predict_noise(x, sigma), first)


def test_scales_that_cannot_be_are_refused_before_anything_is_sampled(pack):
    with pytest.raises(Exception, match="say the same thing in two ways"):
        sampling(pack, sync_strength=2.0, audio_guidance=3.0)
    with pytest.raises(Exception, match="the sound's guidance must be 1 or more"):
        sampling(pack, audio_guidance=0.5)

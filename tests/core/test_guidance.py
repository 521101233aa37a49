"""Guidance of prompt and sound: how many evaluations, and what they come to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.denoiser import TransformerDenoiser
from s2v_core.errors import ConfigError
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.sampling.guidance import NEITHER, ProjectedGuidance, guide, guided_steps, plan_guidance
from s2v_core.sampling.sigmas import make_schedule
from s2v_core.types import SamplerSettings

from .test_denoiser import CONFIG as CONFIG  # the model's
from .test_denoiser import NOISE, inputs, quiet

STEPS = 3


def settings(**changes: object) -> SamplerSettings:
    return SamplerSettings(steps=STEPS, **changes)


def latents(model, **changes):
    return TransformerDenoiser(model, settings(**changes))(inputs(), NOISE, quiet)


def evaluations(model, **changes) -> int:
    """Model evaluations a step."""
    calls = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    latents(model, **changes)
    handle.remove()
    assert len(calls) % STEPS == 0
    return len(calls) // STEPS


@pytest.mark.parametrize(
    "text, audio, expected", [(1, 1, 1), (4.5, 4.5, 2), (1, 2, 2), (3, 1, 2), (5, 4, 3), (2, 4, 3)]
)
def test_no_evaluation_is_made_that_is_not_needed(model, text, audio, expected):
    assert evaluations(model, guidance_scale=float(text), audio_guidance_scale=float(audio)) == expected


def test_equal_scales_are_the_joint_scale_bit_for_bit(model):
    joint = latents(model, guidance_scale=4.5)
    assert torch.equal(latents(model, guidance_scale=4.5, audio_guidance_scale=4.5), joint)
    assert torch.equal(latents(model, guidance_scale=4.5, sync_strength=1.0), joint)
    assert not torch.equal(latents(model, guidance_scale=4.5, sync_strength=1.5), joint)


def test_three_evaluations_at_equal_scales_are_the_joint_scale_too():
    full, sound, neither = torch.randn(3, 1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guide((full, sound, neither), (4.5, 4.5)), guide((full, neither), (4.5,)))
    written_out = neither + 5 * (full - sound) + 4 * (sound - neither)
    torch.testing.assert_close(guide((full, sound, neither), (5.0, 4.0)), written_out)


def test_the_sounds_scale_is_between_hearing_it_and_not_and_the_prompts_between_having_it_and_not(model):
    one_step = SamplerSettings(steps=1, solver="euler", guidance_scale=5.0, audio_guidance_scale=3.0)
    denoiser = TransformerDenoiser(model, one_step)
    given, timestep = inputs(), denoiser.schedule.timesteps[:1]

    def velocity(prompt: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        clip = model.prepare_clip(
            prompt=model.prepare_prompt(prompt), num_latents=2, reference_latent=given.reference_latent,
            audio_features=sound, motion_latents=given.motion_latents,
        )  # fmt: skip
        return model(NOISE, timestep, clip)

    full = velocity(given.prompt_embeds, given.audio_features)
    sound = velocity(given.negative_prompt_embeds, given.audio_features)
    neither = velocity(given.negative_prompt_embeds, 0 * given.audio_features)
    expected = neither + 5 * (full - sound) + 3 * (sound - neither)
    found = denoiser(given, NOISE, quiet)
    torch.testing.assert_close(found, NOISE - denoiser.schedule.sigmas[0] * expected, atol=1e-4, rtol=1e-4)


def test_all_branches_in_one_pass_are_the_three_one_by_one(model):
    apart = settings(guidance_scale=5.0, audio_guidance_scale=4.0)
    speakers = replace(
        inputs(),
        speaker_features=torch.randn(1, 2, 25, 10, 8, generator=torch.Generator().manual_seed(4)),
        speaker_masks=torch.rand(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(5)),
    )
    for clip in (inputs(), speakers):
        one_by_one = TransformerDenoiser(model, apart)(clip, NOISE, quiet)
        together = TransformerDenoiser(model, apart, batch_branches=True)(clip, NOISE, quiet)
        torch.testing.assert_close(one_by_one, together, atol=2e-4, rtol=1e-3)


def test_a_branch_without_sound_hears_no_speaker_either(model, monkeypatch):
    heard = []

    def noted(name):
        make = getattr(model, name)

        def note(*args, **given):
            heard.append((bool(given["audio_features"].any()), given["speaker_features"] is not None))
            return make(*args, **given)

        monkeypatch.setattr(model, name, note)

    noted("prepare_clip")
    noted("with_other")
    clip = replace(inputs(), speaker_features=torch.ones(1, 1, 25, 10, 8), speaker_masks=torch.ones(1, 1, 2, 8, 8))
    TransformerDenoiser(model, settings(guidance_scale=5.0, audio_guidance_scale=4.0))(clip, NOISE, quiet)
    assert heard == [(True, True), (True, True), (False, False)]


def test_sync_strength_is_the_sounds_guidance_over_the_prompts():
    assert settings(guidance_scale=4.0, sync_strength=1.5).scales() == (4.0, 6.0)
    assert settings(guidance_scale=4.0, sync_strength=0.0).scales() == (4.0, 1.0), "never below 1"
    assert settings(guidance_scale=1.0, sync_strength=2.0).scales() == (1.0, 2.0), "works with distilled weights"
    assert settings(guidance_scale=4.0, sync_strength=1.5).scales(2.0) == (2.0, 3.0), "follows a clip's own guidance"
    assert settings(audio_guidance_scale=3.0).scales() == (4.5, 3.0)


def test_scales_that_make_no_sense_are_refused():
    for changes, message in (
        ({"audio_guidance_scale": 0.5}, "sound's guidance must be 1 or more"),
        ({"sync_strength": -1.0}, "sync strength must be 0 or more"),
        ({"audio_guidance_scale": 3.0, "sync_strength": 2.0}, "give one of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            settings(**changes)


def velocities(seed: int) -> list[torch.Tensor]:
    return list(torch.randn(3, 1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(seed)))


def test_projected_guidance_adds_nothing_along_the_full_velocity():
    found, full = ProjectedGuidance()(velocities(0), (5.0, 4.0)), velocities(0)[0]
    added = found - full
    assert abs(torch.sum(added * full) / full.norm()) < 1e-3 * added.norm()
    assert added.norm() > full.norm()


def test_projected_guidance_cuts_long_differences_and_remembers_with_the_opposite_sign():
    cond, uncond = 1e3 * velocities(0)[0], 1e3 * velocities(0)[1]
    assert (ProjectedGuidance()((cond, uncond), (2.0,)) - cond).norm() <= 55.001
    guided, again = ProjectedGuidance(), ProjectedGuidance()
    first = guided(velocities(1)[:2], (3.0,))
    assert torch.equal(first, again(velocities(1)[:2], (3.0,)))
    second = guided(velocities(1)[:2], (3.0,)) - velocities(1)[0]
    torch.testing.assert_close(second, 0.25 * (first - velocities(1)[0]), atol=1e-4, rtol=1e-4)


def test_projected_guidance_of_one_evaluation_changes_nothing(model):
    assert torch.equal(latents(model, guidance_scale=1.0, apg=True), latents(model, guidance_scale=1.0))
    assert evaluations(model, guidance_scale=4.5, apg=True) == 2
    assert not torch.equal(latents(model, guidance_scale=4.5, apg=True), latents(model, guidance_scale=4.5))


def test_the_joint_branch_is_told_nothing():
    assert plan_guidance(4.5, 4.5).branches[-1] == NEITHER


def branches_by_step(model, monkeypatch, **changes) -> list[int]:
    """How many evaluations each step makes."""
    steps = []
    plain = WanS2VTransformer.branches

    def counted(self, latents, time, clips):
        steps.append(len(clips))
        return plain(self, latents, time, clips)

    with monkeypatch.context() as patch:
        patch.setattr(WanS2VTransformer, "branches", counted)
        TransformerDenoiser(model, SamplerSettings(steps=8, guidance_scale=3.0, **changes))(inputs(), NOISE, quiet)
    return steps


def test_only_steps_at_noise_levels_in_the_interval_are_guided(model, monkeypatch):
    """Eight steps with shift 3 are at 1.0, 0.95, 0.90, 0.83, 0.75, 0.64, 0.50 and 0.30."""
    assert branches_by_step(model, monkeypatch) == [2] * 8, "off by default"
    assert branches_by_step(model, monkeypatch, guidance_interval=(0.0, 1.0)) == [2] * 8
    assert branches_by_step(model, monkeypatch, guidance_interval=(0.4, 0.85)) == [1, 1, 1, 2, 2, 2, 2, 1]
    assert branches_by_step(model, monkeypatch, guidance_interval=(0.4, 0.85), audio_guidance_scale=2.0) == [
        1, 1, 1, 3, 3, 3, 3, 1,
    ]  # fmt: skip
    assert branches_by_step(model, monkeypatch, guidance_interval=(0.4, 0.85), apg=True) == [1, 1, 1, 2, 2, 2, 2, 1]


def test_the_interval_means_the_same_levels_whatever_steps_shift_and_solver_are():
    few = make_schedule("few-step", 4, 5.0).sigmas.tolist()   # 1.0, 0.94, 0.83, 0.63
    assert guided_steps(few, (0.4, 0.85)) == (False, False, True, True)
    even = make_schedule("dpm++", 5, 1.0).sigmas.tolist()   # 1.0, 0.8, 0.6, 0.4, 0.2
    assert guided_steps(even, (0.3, 0.9)) == (False, True, True, True, False)
    assert guided_steps(even, None) == (True,) * 5


def test_a_whole_interval_changes_nothing_and_an_unguided_step_is_the_full_branch_alone(model):
    def changed(**changes):
        return TransformerDenoiser(model, SamplerSettings(steps=2, **changes))(inputs(), NOISE, quiet)

    assert torch.equal(changed(guidance_scale=3.0, guidance_interval=(0.0, 1.0)), changed(guidance_scale=3.0))
    nowhere = changed(guidance_scale=3.0, guidance_interval=(0.9, 0.91), solver="euler")   # between the two steps
    assert torch.equal(nowhere, changed(guidance_scale=1.0, solver="euler"))


def test_an_interval_goes_up_and_stays_in_0_to_1():
    for wrong in ((0.8, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.2, 1.1)):
        with pytest.raises(ConfigError, match="from a lower to a higher noise level"):
            settings(guidance_interval=wrong)

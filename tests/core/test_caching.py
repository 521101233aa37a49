"""The step cache: which steps are foretold, from what, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.components import Components
from s2v_core.config import WAN_S2V_14B
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.errors import ConfigError
from s2v_core.geometry import LatentGrid, VideoSize
from s2v_core.models.cost import step_cache_bytes
from s2v_core.sampling.caching import IN_A_ROW, StepCache, largest_change
from s2v_core.sampling.sigmas import make_schedule
from s2v_core.types import ClipSettings, SamplerSettings

from .test_denoiser import CONFIG as CONFIG  # the model's
from .test_denoiser import NOISE, inputs, quiet

STEPS = 20
SIGMAS = make_schedule("unipc", STEPS, 3.0).sigmas.tolist()
SHAPE = (1, 16, 3, 8, 8)


def line(sigma: float) -> torch.Tensor:
    """A velocity that changes evenly with the noise level, by 0.02 of its length over all of them."""
    return torch.ones(SHAPE) + 0.02 * sigma


def walk(cache: StepCache, velocity=line, told=lambda sigma: None, sigmas=SIGMAS) -> list[float]:
    """The levels at which the cache had the velocity computed."""
    computed = []

    def compute(sigma: float) -> torch.Tensor:
        computed.append(sigma)
        return velocity(sigma)

    for sigma in sigmas[:-1]:
        cache.velocity(sigma, told(sigma), lambda sigma=sigma: compute(sigma))
    return computed


def test_the_first_steps_the_last_and_one_after_two_foretold_ones_are_computed():
    steps = [SIGMAS.index(sigma) for sigma in walk(StepCache(1.0, SIGMAS))]
    assert steps == [0, 1, 2, 3, 6, 9, 12, 15, 18, 19]
    assert max(b - a for a, b in zip(steps, steps[1:], strict=False)) == IN_A_ROW + 1


def test_a_velocity_on_a_straight_line_is_foretold_exactly():
    cache = StepCache(0.2, SIGMAS)
    for sigma in SIGMAS[:-1]:
        found = cache.velocity(sigma, None, lambda sigma=sigma: line(sigma))
        torch.testing.assert_close(found, line(sigma))


def test_no_step_is_foretold_where_the_velocity_changes_more_than_the_threshold():
    assert len(walk(StepCache(1e-5, SIGMAS))) == STEPS
    assert len(walk(StepCache(0.2, SIGMAS))) < STEPS


def test_one_patch_of_one_latent_frame_is_enough_to_have_a_step_computed():
    """A mouth that opens: 16 of 1536 cells, which the whole picture's mean would not show."""

    def with_mouth(sigma: float) -> torch.Tensor:
        found = line(sigma)
        found[:, :, 1, 4:, :4] += 3 * sigma
        return found

    change = with_mouth(0.5) - with_mouth(0.55)
    assert change.norm() / with_mouth(0.5).norm() < 0.05 < largest_change(change, with_mouth(0.5))
    assert len(walk(StepCache(0.01, SIGMAS), with_mouth)) == STEPS
    assert len(walk(StepCache(0.01, SIGMAS))) < STEPS


def test_patches_at_the_edge_count_too():
    velocity = torch.ones(1, 16, 2, 10, 13)
    change = torch.zeros_like(velocity)
    change[..., -2:, -1:] = 1.0
    assert largest_change(change, velocity) == pytest.approx(1.0)


def test_another_way_of_telling_the_model_begins_anew():
    """Guided and unguided velocities, posed and free ones, lie on no common line."""
    turn = SIGMAS[9]
    computed = walk(StepCache(1.0, SIGMAS), told=lambda sigma: sigma > turn)
    assert SIGMAS[9] in computed and SIGMAS[10] in computed


def test_a_sampler_that_goes_back_and_forth_gets_every_velocity_computed():
    levels = [level for pair in zip(SIGMAS[:-1], SIGMAS[1:], strict=True) for level in pair]
    assert len(walk(StepCache(1.0, SIGMAS), sigmas=levels)) == len(levels) - 1


def evaluations(model, settings: SamplerSettings, clip=None) -> tuple[list[tuple], torch.Tensor]:
    """What goes into the model's blocks, by shape, evaluation by evaluation; and the latents."""
    shapes = []
    handle = model.head.register_forward_hook(lambda _, given, out: shapes.append((given[0].shape, out.shape)))
    latents = TransformerDenoiser(model, settings)(clip or inputs(), NOISE, quiet)
    handle.remove()
    return shapes, latents


@pytest.mark.parametrize("apg", [False, True])
def test_foretold_steps_make_no_evaluation_in_any_branch_and_the_others_are_made_as_ever(model, apg):
    exact = SamplerSettings(steps=STEPS, guidance_scale=2.0, apg=apg)
    every, without = evaluations(model, exact)
    made, latents = evaluations(model, replace(exact, step_cache=1.0))
    assert len(every) == 2 * STEPS and len(made) % 2 == 0 and 2 * 10 <= len(made) < 2 * STEPS
    assert set(made) == set(every), "no shape that a compiled model has not seen"
    assert latents.isfinite().all() and not torch.equal(latents, without)


def test_it_is_off_unless_it_is_asked_for_and_off_is_exact_to_the_bit(model):
    assert SamplerSettings().step_cache == 0.0
    exact = SamplerSettings(steps=6, guidance_scale=2.0)
    (every, first), (again, second) = (evaluations(model, replace(exact, step_cache=x)) for x in (0.0, 1e-9))
    assert len(every) == len(again) == 12 and torch.equal(first, second)


def test_clips_do_not_hear_of_each_other(model):
    denoiser = TransformerDenoiser(model, SamplerSettings(steps=12, guidance_scale=2.0, step_cache=1.0))
    first = denoiser(inputs(), NOISE, quiet)
    denoiser(inputs(), -NOISE, quiet)
    assert torch.equal(denoiser(inputs(), NOISE, quiet), first)


def test_what_it_keeps_is_in_the_estimate():
    cache = StepCache(1.0, SIGMAS)
    walk(cache)
    kept = sum(velocity.nbytes for _, velocity in cache._computed)
    grid = LatentGrid(frames=SHAPE[2], height=SHAPE[3], width=SHAPE[4])
    assert step_cache_bytes(WAN_S2V_14B.transformer, grid) == kept + line(0.0).nbytes


def test_the_plan_of_a_run_with_the_cache_counts_it():
    components = Components.find(
        None, dtype=None, device="cpu", attention="sdpa", offload="none", loras=(), load_weights=False
    )
    size, clip = VideoSize(width=128, height=64), ClipSettings()
    with_it, without = (components.estimate(size, clip, step_cache=on).denoising for on in (True, False))
    config = components.config.transformer
    assert with_it - without == step_cache_bytes(config, size.latent_grid(clip.num_latents)) > 0


def test_a_threshold_that_makes_no_sense_is_refused():
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="step cache's threshold must be 0 .off. to 1"):
            SamplerSettings(step_cache=wrong)

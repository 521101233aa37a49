"""Footage kept while the rest is denoised: what the model sees outside the mask, and what comes out."""

from __future__ import annotations

import pytest
import torch

from s2v_core.sampling.denoise import denoise
from s2v_core.sampling.sigmas import make_schedule
from s2v_core.sampling.solvers import SOLVER_STEPS
from s2v_core.sampling.source import first_step
from s2v_core.types import SOLVERS, SourceLatents

SHAPE = (1, 16, 3, 4, 4)


def footage(strength: float = 1.0) -> SourceLatents:
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(1, 1, 3, 4, 4)
    mask[..., 2:] = 1
    return SourceLatents(latents=torch.randn(SHAPE, generator=generator), mask=mask, strength=strength)


def walk(solver: str, source: SourceLatents, steps: int = 5):
    """The walk's end, and what the model saw at each level."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    schedule = make_schedule(solver, steps, 3.0)
    seen = []

    def velocity(latents, timestep):
        seen.append(latents)
        return torch.sin(3 * latents) + timestep / 1000   # anything that moves

    done = []
    end = denoise(velocity, noise, schedule, SOLVER_STEPS[solver], lambda i, n: done.append((i, n)), source)
    return end, seen, noise, schedule.sigmas.tolist(), done


@pytest.mark.parametrize("solver", SOLVERS)
def test_outside_the_mask_every_step_sees_the_footage_at_its_own_noise_level(solver):
    source = footage()
    end, seen, noise, sigmas, _ = walk(solver, source)
    outside = (source.mask == 0).expand(SHAPE)
    for sample, sigma in zip(seen, sigmas, strict=False):
        expected = (1 - sigma) * source.latents + sigma * noise
        assert torch.allclose(sample[outside], expected[outside], atol=1e-5)
    assert torch.allclose(end[outside], source.latents[outside], atol=1e-5)
    assert (end - source.latents)[~outside].abs().min() > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_inside_the_mask_the_walk_is_the_one_without_footage(solver):
    source = footage()
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    plain = denoise(
        lambda x, t: torch.sin(3 * x) + t / 1000, noise, make_schedule(solver, 5, 3.0), SOLVER_STEPS[solver],
        lambda i, n: None,
    )  # fmt: skip
    end = walk(solver, source)[0]
    inside = (source.mask == 1).expand(SHAPE)   # this model looks at each number alone
    assert torch.equal(end[inside], plain[inside])


@pytest.mark.parametrize("solver", SOLVERS)
def test_below_full_strength_the_walk_begins_with_the_footage_at_that_level(solver):
    source = footage(strength=0.6)
    _, seen, noise, sigmas, done = walk(solver, source, steps=8)
    first = next(i for i, sigma in enumerate(sigmas) if sigma <= 0.6)
    assert first > 0 and len(seen) == 8 - first and done[-1] == (8, 8)
    assert torch.allclose(seen[0], (1 - sigmas[first]) * source.latents + sigmas[first] * noise, atol=1e-6)


def test_the_weakest_walk_takes_one_step():
    assert first_step([1.0, 0.8, 0.5, 0.0], 0.01) == 2
    assert [first_step([1.0, 0.8, 0.5, 0.0], s) for s in (1.0, 0.9, 0.8, 0.6, 0.5)] == [0, 1, 1, 2, 2]

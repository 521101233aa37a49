"""The solvers as numerical methods, and the loop over steps that runs them."""

from __future__ import annotations

import math

import pytest
import torch

from s2v_core.errors import Interrupted
from s2v_core.sampling.denoise import denoise
from s2v_core.sampling.guidance import guide
from s2v_core.sampling.sigmas import make_schedule
from s2v_core.sampling.solvers import SOLVER_STEPS, History
from s2v_core.types import SOLVERS

MEAN, SPREAD = 0.7, 1.5   # of Gaussian data, for which the best velocity and the exact path are known


def gaussian_velocity(x, sigma):
    """The velocity of a perfect model of N(MEAN, SPREAD^2)."""
    centred = (x - (1 - sigma) * MEAN) / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
    return sigma * centred - (MEAN + (1 - sigma) * SPREAD**2 * centred)


def run(solver, steps, noise, velocity=gaussian_velocity, shift=3.0):
    sigmas, x, history = make_schedule(solver, steps, shift).sigmas.tolist(), noise, History()
    for i in range(steps):
        x, history = SOLVER_STEPS[solver](sigmas, i, x, velocity(x, sigmas[i]), history)
    return x


def gaussian_error(solver, steps):
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    top = make_schedule(solver, steps, 3.0).sigmas[0].item()
    spread = SPREAD / math.sqrt((1 - top) ** 2 * SPREAD**2 + top**2)
    return (run(solver, steps, noise) - (MEAN + spread * (noise - (1 - top) * MEAN))).abs().max().item()


@pytest.mark.parametrize("solver, order", [("unipc", 2), ("dpm++", 2), ("euler", 1), ("few-step", 1)])
def test_halving_the_steps_costs_what_the_order_of_the_solver_says(solver, order):
    gain = gaussian_error(solver, 80) / gaussian_error(solver, 160)
    assert order - 0.4 < math.log2(gain) < order + 0.2


def test_the_corrector_makes_unipc_the_most_exact():
    assert gaussian_error("unipc", 40) < gaussian_error("dpm++", 40) < gaussian_error("euler", 40)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_model_that_always_sees_the_same_picture_ends_on_it(solver, steps):
    picture, noise = torch.linspace(-1, 1, 6), torch.linspace(3, -2, 6)
    ended = run(solver, steps, noise, lambda x, sigma: (x - picture) / sigma)
    assert torch.allclose(ended, picture, atol=1e-5)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_pure_noise_has_no_say_in_the_second_step(solver):
    """At sigma 1 the log signal-to-noise is -inf, so the estimate made there may not steer the next step."""
    sigmas = [1.0, 0.8, 0.5, 0.0]
    step, x = SOLVER_STEPS[solver], torch.randn(5, generator=torch.Generator().manual_seed(0))
    plain = step(sigmas, 1, x, torch.sin(x), History())[0]
    for past in (x, 100 * x):
        history = History((past,))
        assert torch.allclose(step(sigmas, 1, x, torch.sin(x), history)[0], plain)


def test_unipc_from_pure_noise_stays_finite():
    sigmas, x, history = [1.0, 0.9, 0.7, 0.4, 0.0], torch.linspace(-2, 2, 5), History()
    for i in range(4):
        x, history = SOLVER_STEPS["unipc"](sigmas, i, x, gaussian_velocity(x, sigmas[i]), history)
        assert x.isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_taken_twice_from_the_same_history_is_the_same_step(solver):
    sigmas, step = make_schedule(solver, 6, 3.0).sigmas.tolist(), SOLVER_STEPS[solver]
    x, history = torch.linspace(-2, 2, 7), History()
    for i in range(6):
        velocity = torch.cos(x)
        first, second = (step(sigmas, i, x, velocity, history) for _ in range(2))
        assert torch.equal(first[0], second[0])
        x, history = first


def test_guidance_of_one_is_the_conditional_branch_and_more_goes_beyond_it():
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0])
    assert torch.equal(guide([cond, uncond], [1.0]), cond)
    assert torch.equal(guide([cond, uncond], [3.0]), torch.tensor([3.0, 0.0]))


def test_the_walk_is_float32_and_tells_the_model_its_timesteps():
    schedule, told, counted = make_schedule("unipc", 3, 3.0), [], []

    def velocity(latents, timestep):
        told.append((latents.dtype, timestep))
        return latents.bfloat16()

    noise = torch.randn(1, 2, 1, 2, 2, generator=torch.Generator().manual_seed(1)).bfloat16()
    latents = denoise(velocity, noise, schedule, SOLVER_STEPS["unipc"], lambda *done: counted.append(done))
    assert latents.dtype == torch.float32 and latents.shape == noise.shape
    assert told == [(torch.float32, t) for t in (999.0, 856.0, 599.0)]
    assert counted == [(1, 3), (2, 3), (3, 3)]


def test_an_interruption_after_a_step_ends_the_walk_there():
    evaluations = []

    def on_step(done, total):
        if done == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        schedule = make_schedule("euler", 5, 3.0)
        denoise(lambda x, t: evaluations.append(t) or x, torch.ones(1), schedule, SOLVER_STEPS["euler"], on_step)
    assert len(evaluations) == 2

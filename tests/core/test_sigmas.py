"""The schedules of the four solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s2v_core.errors import ConfigError
from s2v_core.sampling.sigmas import make_schedule, shift_sigmas
from s2v_core.types import SOLVERS


def reference_grid(top: float, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """The reference's arithmetic in numpy, operation by operation: the last bit decides a truncation."""
    sigmas = np.linspace(top, 0.0, steps + 1)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return np.append(sigmas, 0).astype(np.float32), (sigmas * 1000).astype(np.int64)


TOPS = [("unipc", float(np.float32(0.999))), ("euler", float(np.float32(0.999))), ("dpm++", 1.0)]


@pytest.mark.parametrize("solver, top", TOPS)
def test_whole_timesteps_are_those_of_the_reference_for_any_steps_and_shift(solver, top):
    for steps in range(1, 101):
        for shift in (0.5, 1.0, 1.7, 3.0, 5.0, 8.0, 12.0):
            schedule = make_schedule(solver, steps, shift)
            sigmas, timesteps = reference_grid(top, steps, shift)
            assert schedule.timesteps.tolist() == timesteps.tolist(), (steps, shift)
            assert schedule.sigmas.tolist() == sigmas.tolist(), (steps, shift)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sigmas_fall_to_zero_and_every_step_has_one_timestep(solver):
    schedule = make_schedule(solver, 7, 3.0)
    assert schedule.sigmas.dtype == schedule.timesteps.dtype == torch.float32
    assert schedule.sigmas.shape == (8,) and schedule.timesteps.shape == (7,)
    assert schedule.sigmas[-1] == 0 and (schedule.sigmas.diff() < 0).all()


def test_distilled_weights_hear_unrounded_timesteps_from_pure_noise():
    schedule = make_schedule("few-step", 4, 5.0)
    assert schedule.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])
    assert schedule.sigmas.tolist() == pytest.approx([1, 0.9375, 2.5 / 3, 0.625, 0])


def test_shift_keeps_the_ends_and_one_changes_nothing():
    assert shift_sigmas([0.0, 0.3, 1.0], 1.0) == [0.0, 0.3, 1.0]
    shifted = shift_sigmas([0.0, 0.3, 1.0], 3.0)
    assert shifted[0] == 0 and shifted[2] == 1 and shifted[1] > 0.3


@pytest.mark.parametrize(
    "solver, steps, shift, says",
    [("heun", 4, 3.0, "'heun'"), ("unipc", 0, 3.0, "0"), ("unipc", 4, 0.0, "above 0"), ("unipc", 40, 1e9, "1e+09")],
)
def test_an_impossible_schedule_is_refused_with_its_value(solver, steps, shift, says):
    with pytest.raises(ConfigError) as error:
        make_schedule(solver, steps, shift)
    assert says in str(error.value)

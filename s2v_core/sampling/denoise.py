"""The loop over steps, from noise to latents.

Knows no model, guidance or clip: it is handed a function that gives the velocity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..types import SourceLatents, StepCallback
from .sigmas import Schedule
from .solvers import History, SolverStep
from .source import first_step, keep_source, opening_sample

Velocity = Callable[[Tensor, float], Tensor]
"""`velocity(latents, timestep)`: noise minus clean as the model sees it, guidance included; shaped as the latents."""


@torch.no_grad()
def denoise(
    velocity: Velocity,
    noise: Tensor,
    schedule: Schedule,
    step: SolverStep,
    on_step: StepCallback,
    source: SourceLatents | None = None,
) -> Tensor:
    """Walk `noise` down the schedule.

    Args:
        noise: any shape; the walk is in float32 on its device.
        step: one of `SOLVER_STEPS`, the one the schedule was made for.
        on_step: called after every step; whatever it raises ends the walk.
        source: footage that is kept outside its mask, on the noise's device. Below full strength the walk begins
            with the footage at that noise level, and leaves out the steps above it.

    Returns: float32 latents at sigma 0, shaped as the noise.
    """
    sigmas, timesteps = schedule.sigmas.tolist(), schedule.timesteps.tolist()
    sample, history, first = noise.float(), History(), 0
    if source is not None:
        first = first_step(sigmas, source.strength)
        sample = opening_sample(source, sample, sigmas[first])
    for i, timestep in enumerate(timesteps[first:], start=first):
        direction = velocity(sample, timestep).float()
        if source is not None:
            direction = keep_source(source, sample, direction, sigmas[i])
        sample, history = step(sigmas, i, sample, direction, history)
        on_step(i + 1, len(timesteps))
    return sample

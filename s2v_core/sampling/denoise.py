"""The loop over steps, from noise to latents.

Knows no model, guidance or clip: it is handed a function that gives the velocity.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..types import StepCallback
from .sigmas import Schedule
from .solvers import History, SolverStep

Velocity = Callable[[Tensor, float], Tensor]
"""`velocity(latents, timestep)`: noise minus clean as the model sees it, guidance included; shaped as the latents."""


@torch.no_grad()
def denoise(velocity: Velocity, noise: Tensor, schedule: Schedule, step: SolverStep, on_step: StepCallback) -> Tensor:
    """Walk `noise` down the schedule.

    Args:
        noise: any shape; the walk is in float32 on its device.
        step: one of `SOLVER_STEPS`, the one the schedule was made for.
        on_step: called after every step; whatever it raises ends the walk.

    Returns: float32 latents at sigma 0, shaped as the noise.
    """
    sigmas, timesteps = schedule.sigmas.tolist(), schedule.timesteps.tolist()
    sample, history = noise.float(), History()
    for i, timestep in enumerate(timesteps):
        sample, history = step(sigmas, i, sample, velocity(sample, timestep).float(), history)
        on_step(i + 1, len(timesteps))
    return sample

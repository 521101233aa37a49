"""How well a student does on windows it does not learn from: its loss at fixed noise levels, the same every time.

Knows batches and a student; nothing is generated here.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import torch

from .config import ObjectiveConfig
from .objective import draw, velocity_loss
from .student import Student
from .trainer import BatchSource

SIGMAS = (0.2, 0.5, 0.8, 0.95)


@torch.no_grad()
def validation_losses(
    student: Student, source: BatchSource, *, num_batches: int, objective: ObjectiveConfig, device: torch.device
) -> dict[str, float]:
    """Mean loss over the first batches of a source, by noise level and in all; nothing is dropped.

    Returns: "0.2", "0.5", ... and "mean".
    """
    drops = dict.fromkeys([f.name for f in fields(objective) if f.name.startswith("drop_")], 0.0)
    whole = replace(objective, motion_noise=False, **drops)
    totals = dict.fromkeys(SIGMAS, 0.0)
    for index in range(num_batches):
        batch = source.batch(index)
        drawn = draw(batch, whole, np.random.default_rng([0, index]))
        batch = batch.to(device)
        for sigma in SIGMAS:
            at_sigma = replace(drawn, sigmas=torch.full_like(drawn.sigmas, sigma))
            totals[sigma] += velocity_loss(student(batch, at_sigma), batch, at_sigma, whole).item() / num_batches
    losses = {str(sigma): total for sigma, total in totals.items()}
    return {**losses, "mean": sum(totals.values()) / len(totals)}

"""Keeping given footage while the rest is denoised: outside a mask every step sees the footage at its own noise level.

Knows no model, no solver and no files.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..types import SourceLatents


def first_step(sigmas: Sequence[float], strength: float) -> int:
    """The step at which a walk of this strength begins: the first whose level is at most `strength`; at 1, step 0.

    Args:
        sigmas: [S+1], falling, ends in 0.
        strength: 0 (exclusive) to 1, the share of noise that the footage is given inside the mask.
    """
    last = len(sigmas) - 2
    return 0 if strength == 1 else next((i for i, sigma in enumerate(sigmas[:last]) if sigma <= strength), last)


def opening_sample(source: SourceLatents, noise: Tensor, sigma: float) -> Tensor:
    """What the walk begins with: footage at level `sigma` outside the mask, and inside too below full strength.

    Args:
        noise: [1, 16, T, h, w], where it is to be denoised; of the source's shape.
    """
    noised = renoise(source.latents, noise, sigma)
    return noised if source.strength < 1 else source.mask * noise + (1 - source.mask) * noised


def renoise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Clean latents at noise level `sigma`."""
    return (1 - sigma) * latents + sigma * noise


def keep_source(source: SourceLatents, sample: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """The velocity that leads to the source outside its mask, and where the model says inside.

    Every solver here makes of constant clean estimates a straight line to them, so outside the mask the next sample is
    the source with the walk's own noise at the next level. (Putting the source into the sample after a step instead
    would be undone by a solver that looks back, such as UniPC's corrector.)
    """
    return source.mask * velocity + (1 - source.mask) * (sample - source.latents) / sigma

"""Steps whose velocity is foretold from the steps before them, in place of an evaluation of the model.

Knows velocities and noise levels; no model, no guidance and no solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch.nn.functional as F
from torch import Tensor

WARM_UP = 0.2    # share of the steps, from the first, that are always computed: they decide what is seen where
IN_A_ROW = 2     # steps that may be foretold one after the other
PATCH = 4        # latent cells: 32 pixels, about a mouth at 480p


class StepCache:
    """The last velocities of one clip, and what they foretell.

    The velocity is followed on the straight line through the last two that were computed. How much it changes on the
    way, over its own length, is looked at in every patch of every latent frame, and the patch that changes most
    decides: a mouth is a small part of a picture, and a syllable a small part of a clip. Guided velocities come in, so
    all of guidance's branches are foretold together, and what the sound adds counts as much as guidance makes of it.

    The first steps, the last one, and one after `IN_A_ROW` foretold ones are always computed.

    Args:
        threshold: largest change, 0.2 for a fifth, that is foretold.
        sigmas: [S+1] of the run, falling, ends in 0.

    Source: change at the rate last seen, without tables for each model: EasyCache, Zhou et al., arXiv 2507.02860; first
        steps kept and few skipped in a row: MagCache, Ma et al., arXiv 2506.09045; the straight line in place of the
        last value: TaylorSeer, Liu et al., arXiv 2503.06923. The patches are ours.
    """

    def __init__(self, threshold: float, sigmas: Sequence[float]) -> None:
        steps = len(sigmas) - 1
        self._threshold = threshold
        self._between = (sigmas[steps - 1], sigmas[min(math.ceil(WARM_UP * steps), steps)])   # both left out
        self._computed: tuple[tuple[float, Tensor], ...] = ()   # the last two (sigma, velocity), newest last
        self._told: Hashable = None
        self._in_a_row = 0

    def velocity(self, sigma: float, told: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The velocity at a noise level, foretold or computed.

        Args:
            told: what the model is told besides the latents; another one than before begins anew.
            compute: gives the velocity [B, C, T, h, w].
        """
        if told != self._told:
            self._told, self._computed = told, ()
        found = self._foretold(sigma)
        if found is not None:
            self._in_a_row += 1
            return found
        found = compute()
        self._in_a_row = 0
        self._computed = (*self._computed, (sigma, found))[-2:]
        return found

    def _foretold(self, sigma: float) -> Tensor | None:
        low, high = self._between
        if len(self._computed) < 2 or self._in_a_row == IN_A_ROW or not low < sigma <= high:
            return None
        (before, first), (last, second) = self._computed
        if not sigma < last < before:   # a sampler that goes back and forth
            return None
        change = (second - first) * ((last - sigma) / (before - last))
        return second + change if largest_change(change, second) < self._threshold else None


def largest_change(change: Tensor, velocity: Tensor) -> float:
    """The length of a change over the velocity's, in the patch of `PATCH` x `PATCH` cells where it is largest.

    Args:
        change, velocity: [B, C, T, h, w].
    """
    return float((_patch_power(change) / _patch_power(velocity).clamp(min=1e-12)).max().sqrt())


def _patch_power(x: Tensor) -> Tensor:
    """[B, C, T, h, w] -> [B, T, h/4, w/4] mean squares; patches at the lower and the right edge may be smaller."""
    return F.avg_pool2d(x.float().square().mean(1), PATCH, ceil_mode=True)

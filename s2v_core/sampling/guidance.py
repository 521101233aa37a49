"""Which evaluations a guided step needs, and how they become one velocity.

Knows what each evaluation is told; not how the model is made to hear it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

APG_MOMENTUM = -0.75   # of what a difference was in the steps before
APG_NORM = 55.0        # a longer difference is cut to this length

Combine = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
"""Velocities of `Guidance.branches` and its scales to the guided velocity, all of one shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Branch:
    """What one evaluation is told: the prompt or the negative prompt, the sound or zeros."""

    prompt: bool
    sound: bool


FULL, NEITHER = Branch(prompt=True, sound=True), Branch(prompt=False, sound=False)
SOUND_ALONE, PROMPT_ALONE = Branch(prompt=False, sound=True), Branch(prompt=True, sound=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """The evaluations of a step, and between each and the next how far the way to it is followed."""

    branches: tuple[Branch, ...]
    scales: tuple[float, ...]


def plan_guidance(text: float, audio: float) -> Guidance:
    """The fewest evaluations for two guidance scales, each 1 (off) or more.

    Equal scales are the one scale of the released model, in its two evaluations. With one scale at 1, prompt or sound
    stays in both evaluations.
    """
    if text == audio == 1:
        return Guidance(branches=(FULL,), scales=())
    if text == audio:
        return Guidance(branches=(FULL, NEITHER), scales=(text,))
    if text == 1:
        return Guidance(branches=(FULL, PROMPT_ALONE), scales=(audio,))
    if audio == 1:
        return Guidance(branches=(FULL, SOUND_ALONE), scales=(text,))
    return Guidance(branches=(FULL, SOUND_ALONE, NEITHER), scales=(text, audio))


UNGUIDED = Guidance(branches=(FULL,), scales=())


def guided_steps(sigmas: Sequence[float], interval: tuple[float, float] | None) -> tuple[bool, ...]:
    """Which steps are guided: those at noise levels from the interval's lower to its upper end. None: all.

    Levels mean the same whatever the number of steps, the shift and the solver are.
    Args:
        sigmas: [S+1], falling, ends in 0.

    Returns: [S].
    Source: Kynkäänniemi et al., arXiv 2404.07724: at the highest levels guidance costs variety, at the lowest ones it
        changes nothing; outside the interval the conditioned evaluation alone is made.
    """
    low, high = (0.0, math.inf) if interval is None else interval
    return tuple(low <= sigma <= high for sigma in sigmas[:-1])


def guide(velocities: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
    """Classifier-free guidance: from the last velocity to the one before it, `scale` times as far, and so on.

    Two velocities and one scale are the usual guidance; three and (text, audio) are
    `neither + text * (full - sound) + audio * (sound - neither)`.

    Source: Ho and Salimans, arXiv 2207.12598; the two scales: InfiniteTalk.
    """
    guided = velocities[-1]
    for (told, untold), scale in zip(pairwise(velocities), scales, strict=True):
        guided = guided + scale * (told - untold)
    return guided


class ProjectedGuidance:
    """Guidance that leaves out what only makes the first velocity longer, and so oversaturates: a `Combine`.

    Each difference is taken with its past, of opposite sign, cut to a length, and freed of its part along the first
    velocity. Remembers the steps of one clip.

    Source: Sadat et al., arXiv 2410.02416, on velocities and with the values of MultiTalk.
    """

    def __init__(self) -> None:
        self._averages: dict[int, Tensor] = {}

    def __call__(self, velocities: Sequence[Tensor], scales: Sequence[float]) -> Tensor:
        full = velocities[0].float()
        guided, direction = full, full / full.norm().clamp(min=1e-12)
        for i, ((told, untold), scale) in enumerate(zip(pairwise(velocities), scales, strict=True)):
            difference = told.float() - untold.float()
            if i in self._averages:
                difference = difference + APG_MOMENTUM * self._averages[i]
            self._averages[i] = difference
            difference = difference * (APG_NORM / difference.norm().clamp(min=APG_NORM))
            along = torch.sum(difference * direction) * direction
            guided = guided + (scale - 1) * (difference - along)
        return guided

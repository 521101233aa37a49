"""Which noise levels a run visits, and what the model is told of them.

Knows no solver's arithmetic and no model: a schedule is two rows of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError

NUM_TRAIN_TIMESTEPS = 1000
UNIPC_TOP = 0.9990000128746033   # float32(1 - 1/1000): the training grid's noisiest level, where UniPC starts
TOP_SIGMA = {"unipc": UNIPC_TOP, "euler": UNIPC_TOP, "dpm++": 1.0, "few-step": 1.0}   # before the shift


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """The noise levels of a run."""

    sigmas: Tensor      # [S+1] float32, falling from at most 1 to a final 0
    timesteps: Tensor   # [S] float32, what the model is told at each step: about 1000 * sigma


def make_schedule(solver: str, steps: int, shift: float) -> Schedule:
    """The noise levels that a solver visits.

    Args:
        solver: one of `types.SOLVERS`. "unipc" and "euler" start a hair below pure noise, the others at sigma 1.
        steps: model evaluations, 1 or more.
        shift: above 0; 1 changes nothing, more spends more of the steps at high noise. Wan-S2V ships with 3.

    Returns: timesteps cut down to whole numbers, which is how Wan-S2V was sampled; "few-step" alone keeps the
        fractions, because the distilled weights were trained on them: 4 steps with shift 5 are 1000, 937.5, 833.3, 625.
    Raises: ConfigError for an unknown solver, steps below 1, or a shift so extreme that two steps share a level.
    Source: Wan2.2 `fm_solvers_unipc.py`, `fm_solvers.py`; few-step: LightX2V `step_distill/scheduler.py` with its
        list 1000, 750, 500, 250 (Self-Forcing), which is an even grid from 1 that is shifted and never rounded.
    """
    if solver not in TOP_SIGMA:
        raise ConfigError(f"solver must be one of {', '.join(TOP_SIGMA)}; got {solver!r}")
    if steps < 1:
        raise ConfigError(f"steps must be 1 or more, got {steps}")
    levels = shift_sigmas(_even_levels(TOP_SIGMA[solver], steps), shift)
    sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64).float()
    if not bool((sigmas[1:] < sigmas[:-1]).all()):
        raise ConfigError(f"shift {shift:g} presses {steps} steps onto one noise level; use a shift between 1 and 20")
    timesteps = torch.tensor([level * NUM_TRAIN_TIMESTEPS for level in levels], dtype=torch.float64)
    return Schedule(sigmas=sigmas, timesteps=(timesteps if solver == "few-step" else timesteps.trunc()).float())


def shift_sigmas(levels: list[float], shift: float) -> list[float]:
    """Spend more of the schedule at high noise, which large frames need. 0 and 1 stay put.

    Float64 throughout: the last bit decides which whole timestep a level falls on.
    Raises: ConfigError unless shift is above 0.
    Source: Esser et al., arXiv 2403.03206, eq. 23.
    """
    if not shift > 0:
        raise ConfigError(f"shift must be above 0, got {shift}")
    return [shift * level / (1 + (shift - 1) * level) for level in levels]


def _even_levels(top: float, steps: int) -> list[float]:
    """`steps` levels from `top` down, evenly; the 0 that would follow is left off."""
    stride = -top / steps
    return [i * stride + top for i in range(steps)]

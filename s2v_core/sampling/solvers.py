"""Rules that carry a sample from one noise level to the next, each a function without hidden state.

Knows no model and no schedule but the sigmas it is handed. All solvers work on the denoised estimate
`sample - sigma * velocity`. With `x = (1-sigma) * clean + sigma * noise` the exponential integrators reduce to
`next = r * sample + (1-r) * estimate`, r = sigma_next / sigma, and differ only in how they estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class History:
    """What a solver remembers of the steps before this one. Empty at the start."""

    denoised: tuple[Tensor, ...] = ()   # the estimates of the last two steps at most, newest last
    sample: Tensor | None = None        # what the newest of them led on from; only UniPC looks back at it


SolverStep = Callable[[Sequence[float], int, Tensor, Tensor, History], tuple[Tensor, History]]
"""`step(sigmas [S+1], i, sample, velocity, history) -> (sample at sigmas[i+1], history)`; tensors float32."""


def euler_step(
    sigmas: Sequence[float], i: int, sample: Tensor, velocity: Tensor, history: History
) -> tuple[Tensor, History]:
    """Straight along the velocity. Also the step of distilled weights."""
    return sample + (sigmas[i + 1] - sigmas[i]) * velocity, history


def dpmpp_step(
    sigmas: Sequence[float], i: int, sample: Tensor, velocity: Tensor, history: History
) -> tuple[Tensor, History]:
    """DPM-Solver++(2M), midpoint; the first and the last step are of first order.

    Source: Lu et al., arXiv 2211.01095; Wan2.2 `fm_solvers.py`.
    """
    denoised = (*history.denoised, sample - sigmas[i] * velocity)[-2:]
    return _predict(sigmas, i, sample, denoised), History(denoised)


def unipc_step(
    sigmas: Sequence[float], i: int, sample: Tensor, velocity: Tensor, history: History
) -> tuple[Tensor, History]:
    """UniPC of order 2 with B(h) = expm1(-h): correct the sample with what was just learned, then predict on.

    The velocity was taken at the uncorrected sample; its estimate stands for the corrected one too.
    Source: Zhao et al., arXiv 2302.04867; Wan2.2 `fm_solvers_unipc.py` ("bh2", order 2, lower order at the end).
    """
    newest = sample - sigmas[i] * velocity
    if history.sample is not None:
        sample = _correct(sigmas, i, history, newest)
    denoised = (*history.denoised, newest)[-2:]
    return _predict(sigmas, i, sample, denoised), History(denoised, sample)


SOLVER_STEPS: dict[str, SolverStep] = {
    "unipc": unipc_step,
    "dpm++": dpmpp_step,
    "euler": euler_step,
    "few-step": euler_step,
}


def _predict(sigmas: Sequence[float], i: int, sample: Tensor, denoised: tuple[Tensor, ...]) -> Tensor:
    """From sigmas[i] to sigmas[i+1]; second order where there are two estimates and this is not the last step."""
    estimate = denoised[-1]
    if len(denoised) == 2 and i + 2 < len(sigmas):
        estimate = estimate + 0.5 / -_past_ratio(sigmas, i) * (denoised[-1] - denoised[-2])
    return _blend(sigmas, i, sample, estimate)


def _correct(sigmas: Sequence[float], i: int, history: History, newest: Tensor) -> Tensor:
    """The step that led to sigmas[i], taken again now that the estimate there is known."""
    *older, anchor = history.denoised
    if not older:
        return _blend(sigmas, i - 1, history.sample, anchor + 0.5 * (newest - anchor))
    ratio = _past_ratio(sigmas, i - 1)
    past, new = _corrector_weights(-_log_snr_step(sigmas, i - 1), ratio)
    return _blend(sigmas, i - 1, history.sample, anchor + past / ratio * (older[0] - anchor) + new * (newest - anchor))


def _corrector_weights(h: float, ratio: float) -> tuple[float, float]:
    """Weights of the past and of the new difference that make the corrector exact to second order.

    Args:
        h: minus the step in log signal-to-noise; finite, because this is never the first step.
        ratio: where the past estimate lies, in units of the step; -inf when it was made at sigma 1.
    """
    b = math.expm1(h)
    first = (b / h - 1) / b
    second = 2 * ((b / h - 1) / h - 0.5) / b
    past = (first - second) / (1 - ratio)
    return past, first - past


def _blend(sigmas: Sequence[float], i: int, sample: Tensor, estimate: Tensor) -> Tensor:
    r = sigmas[i + 1] / sigmas[i]
    return r * sample + (1 - r) * estimate


def _past_ratio(sigmas: Sequence[float], i: int) -> float:
    """How far back sigmas[i-1] lies from sigmas[i] in log signal-to-noise, in units of the step ahead: negative."""
    return -_log_snr_step(sigmas, i - 1) / _log_snr_step(sigmas, i)


def _log_snr_step(sigmas: Sequence[float], i: int) -> float:
    return _log_snr(sigmas[i + 1]) - _log_snr(sigmas[i])


def _log_snr(sigma: float) -> float:
    """log((1-sigma)/sigma): -inf for pure noise, where a second-order term has no weight."""
    return math.log(1 - sigma) - math.log(sigma) if sigma < 1 else -math.inf

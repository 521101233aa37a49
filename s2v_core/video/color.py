"""Keeping colours over many clips: a clip's frames are given the colours of the reference picture, as a whole.

Knows pixels and their statistics; not which clip they are of, nor what made them drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..types import COLOR_MATCHES, ClipPlan

METHODS = tuple(method for method in COLOR_MATCHES if method != "off")
SMALLEST = {"lab": 1.0, "mkl": 1e-4}   # added to variances, so that flat colours are not blown up: 1 LAB unit, 1/100

# sRGB, D65 white.
RGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = RGB_TO_XYZ.sum(1, keepdim=True)
BEND = 6 / 29   # of LAB's cube root: below its cube, a line


class ColourMatch:
    """Gives frames the mean and spread of a reference picture's colours.

    One map serves all frames of a call, so that nothing flickers.

    Args:
        reference: [1, 3, 1, H, W] in [-1, 1].
        method: "lab": lightness and both colour axes each by themselves (Reinhard et al. 2001, in CIELAB); "mkl": red,
            green and blue together, with the least change that does it (Pitie and Kokaram 2007).
    """

    def __init__(self, reference: Tensor, method: str) -> None:
        assert method in METHODS, method
        self._method = method
        self._mean, self._covariance = self._moments([_pixels(reference[:, :, 0])])

    def __call__(self, frames: Tensor) -> Tensor:
        """[1, 3, F, H, W] in [-1, 1] float32, changed in place: a clip of frames is large."""
        mean, covariance = self._moments(_pixels(frame) for frame in frames.unbind(dim=2))
        change = _separately if self._method == "lab" else _together
        matrix = change(covariance, self._covariance).float()
        for frame in frames.unbind(dim=2):
            moved = matrix @ (self._values(_pixels(frame)) - mean.float()) + self._mean.float()
            moved = from_lab(moved) if self._method == "lab" else moved
            frame.copy_((2 * moved - 1).clamp(-1, 1).view(frame.shape))
        return frames

    def _values(self, rgb: Tensor) -> Tensor:
        return to_lab(rgb) if self._method == "lab" else rgb

    def _moments(self, pictures: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean [3, 1] and covariance [3, 3] over all pixels, float64."""
        count, total, squares = 0, torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
        for rgb in pictures:
            values = self._values(rgb).double()
            count += values.shape[1]
            total += values.sum(1, keepdim=True)
            squares += values @ values.T
        mean = total / count
        covariance = squares / count - mean @ mean.T
        return mean, covariance + SMALLEST[self._method] * torch.eye(3, dtype=torch.float64)


def _pixels(frame: Tensor) -> Tensor:
    """[1, 3, H, W] in [-1, 1] -> [3, H*W] in 0..1, float32 on the CPU."""
    return (frame[0].flatten(1).float().cpu() + 1) / 2


def _separately(ours: Tensor, theirs: Tensor) -> Tensor:
    """The diagonal map from one spread to another."""
    return torch.diag((theirs.diagonal() / ours.diagonal()).sqrt())


def _together(ours: Tensor, theirs: Tensor) -> Tensor:
    """The symmetric map from one covariance to another: the linear solution of the Monge-Kantorovich problem."""
    root = _power(ours, 0.5)
    inverse = _power(ours, -0.5)
    return inverse @ _power(root @ theirs @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric matrix with no negative eigenvalue."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=1e-12) ** exponent) @ vectors.T


def to_lab(rgb: Tensor) -> Tensor:
    """[3, N] sRGB in 0..1 -> [3, N] CIELAB: lightness 0 to 100, two colour axes of about +-100."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    share = (RGB_TO_XYZ @ linear) / WHITE
    bent = torch.where(share > BEND**3, share.clamp(min=1e-12) ** (1 / 3), share / (3 * BEND**2) + 4 / 29)
    x, y, z = bent
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def from_lab(lab: Tensor) -> Tensor:
    """[3, N] CIELAB -> [3, N] sRGB; colours that a screen cannot show lie outside 0..1."""
    y = (lab[0] + 16) / 116
    bent = torch.stack([y + lab[1] / 500, y, y - lab[2] / 200])
    share = torch.where(bent > BEND, bent**3, 3 * BEND**2 * (bent - 4 / 29))
    linear = torch.linalg.inv(RGB_TO_XYZ) @ (share * WHITE)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-12) ** (1 / 2.4) - 0.055, 12.92 * linear)


Grade = Callable[[ClipPlan, Tensor], Tensor]
"""A clip's kept frames [1, 3, F, H, W] in [-1, 1] to what is shown and remembered; it may write into them."""

"""What the model drew, put back into the picture: matched in colour at the seam, feathered, and nowhere else.

Knows arrays; nothing of faces, files or models.
"""

from __future__ import annotations

import numpy as np

from .crop import Rect
from .masks import box_mean

RING = 0.25      # width of the ring around the mask where colours are compared, in sides of the mask
SPREAD = 0.35    # how far a difference on the ring reaches into the mask at each of three blurs, likewise


def paste(picture: np.ndarray, drawn: np.ndarray, alpha: np.ndarray, rect: Rect) -> np.ndarray:
    """[H, W, 3] uint8: the picture, with what was drawn where the mask says so.

    Where alpha is 0 every pixel is the picture's own, bit for bit.

    Args:
        picture: [H, W, 3] uint8.
        drawn: [rh, rw, 3] float32, 0 to 255, over the pixels of `rect`.
        alpha: [rh, rw] float32 in 0..1.
    """
    if not alpha.any():
        return picture
    left, top, right, bottom = rect
    own = picture[top:bottom, left:right].astype(np.float32)
    matched = drawn + seam_difference(own, drawn, alpha)
    mixed = own + alpha[..., None] * (matched - own)
    result = picture.copy()
    result[top:bottom, left:right][alpha > 0] = mixed.round().clip(0, 255).astype(np.uint8)[alpha > 0]
    return result


def seam_difference(own: np.ndarray, drawn: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """[rh, rw, 3] by how much the picture differs in colour from what was drawn, carried inwards from around the mask.

    Both show the same around the mask, so what differs there is the model's tint, not the mouth.
    """
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    near = box_mean(alpha > 0, max(1, round(RING * side))) > 0
    ring = (near & (alpha == 0)).astype(np.float64)
    if not ring.any():
        return np.zeros_like(own)
    radius = max(1, round(SPREAD * side))
    weight = _blurred(ring, radius)
    usual = ((own - drawn) * ring[..., None]).sum((0, 1)) / ring.sum()
    spread = [
        _blurred((own[..., c] - drawn[..., c] - usual[c]) * ring, radius) / np.maximum(weight, 1e-6) + usual[c]
        for c in range(3)
    ]
    return np.stack(spread, axis=-1).astype(np.float32)


def _blurred(values: np.ndarray, radius: int) -> np.ndarray:
    for _ in range(3):
        values = box_mean(values, radius)
    return values

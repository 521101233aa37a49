"""How the branches of a guided step become one velocity.

Knows nothing of what was left out of a branch; whoever runs the model decides that.
"""

from __future__ import annotations

from torch import Tensor


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: from the unconditional velocity through the conditional one, `scale` times as far.

    Args:
        cond, uncond: velocities of the same shape.
        scale: 1 gives `cond`; Wan-S2V ships with 4.5.

    Source: Ho and Salimans, arXiv 2207.12598.
    """
    return uncond + scale * (cond - uncond)

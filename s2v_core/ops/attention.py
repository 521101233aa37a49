"""Attention over heads, behind one switch: torch's SDPA, or a faster kernel where one is installed and agrees with it.

Knows tensors [B, N, heads, head_dim]; not what the tokens are.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError

log = logging.getLogger(__name__)

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""queries [B, N, heads, d], keys and values [B, M, heads, d] -> [B, N, heads, d]."""

# Largest relative error (Frobenius) against SDPA that a kernel may have on its first call; half precision gives 4e-3.
MAX_ERROR = {"flash": 1e-2, "sage": 6e-2}
PACKAGES = {"flash": "flash_attn", "sage": "sageattention"}


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own attention, which picks flash, cuDNN or plain kernels by itself."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v)


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="NHD")


class CheckedAttention:
    """An installed kernel, compared with SDPA once per device, dtype and head size, and dropped when it is wrong."""

    def __init__(self, name: str, kernel: AttentionFn) -> None:
        self.name = name
        self.kernel = kernel
        self.verdicts: dict[tuple, bool] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype not in (torch.float16, torch.bfloat16) or q.device.type != "cuda":
            return sdpa(q, k, v)
        key = (q.device, q.dtype, q.shape[-1], q.shape[1] == k.shape[1])
        if key not in self.verdicts:
            self.verdicts[key] = self._agrees(q, k, v)
        return self.kernel(q, k, v) if self.verdicts[key] else sdpa(q, k, v)

    def _agrees(self, q: Tensor, k: Tensor, v: Tensor) -> bool:
        few = slice(0, 1), slice(0, 1024)
        expected = sdpa(q[few], k[:1], v[:1]).float()
        try:
            error = ((self.kernel(q[few], k[:1], v[:1]).float() - expected).norm() / expected.norm()).item()
        except Exception as fault:  # a kernel built for another card raises anything
            log.warning("attention kernel %s does not run here (%s); using torch's SDPA", self.name, fault)
            return False
        if not error <= MAX_ERROR[self.name]:
            log.warning("attention kernel %s is off by %.2g here; using torch's SDPA", self.name, error)
            return False
        return True


def make_attention(name: str = "auto") -> AttentionFn:
    """The attention function called `name`: auto, sdpa, flash or sage.

    "auto" is SDPA: it is right everywhere and picks the fastest kernel that torch has. The others are checked
    against it on their first call.

    Raises: ConfigError for an unknown name or a package that is not installed.
    """
    if name in ("auto", "sdpa"):
        return sdpa
    if name not in PACKAGES:
        raise ConfigError(f"attention must be auto, sdpa, {' or '.join(PACKAGES)}; got {name!r}")
    if importlib.util.find_spec(PACKAGES[name]) is None:
        raise ConfigError(f"attention {name!r} needs the package {PACKAGES[name]}, which is not installed; use 'sdpa'")
    return CheckedAttention(name, {"flash": _flash, "sage": _sage}[name])

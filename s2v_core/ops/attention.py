"""Attention over heads, behind one switch: torch's SDPA, or a faster kernel where one is installed and agrees with it.

Knows tensors [B, N, heads, head_dim]; not what the tokens are.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import ConfigError
from . import cpu
from .layers import wants_new_tensors

log = logging.getLogger(__name__)

AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""queries [B, N, heads, d], keys and values [B, M, heads, d] -> [B, N, heads, d]."""

DEVICES = ("cuda",)   # that the kernels beside SDPA are for
DTYPES = (torch.float16, torch.bfloat16)
CHECKED_ROWS = 512   # of a result's first and last queries, in its first and last batch item


def sdpa(q: Tensor, k: Tensor, v: Tensor, last_counts: int = 1) -> Tensor:
    """torch's own attention, which picks flash, cuDNN or plain kernels by itself; on some CPUs plain matmuls.

    Args:
        last_counts: for so many equal keys does the last one stand.
    """
    if not wants_new_tensors(q) and cpu.attends(q, k):
        return cpu.attention(q, k, v, last_counts)
    extra = None
    if last_counts > 1:
        extra = torch.zeros(1, k.shape[1], device=q.device)
        extra[:, -1] = math.log(last_counts)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=extra)
    return out.transpose(1, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v)


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func

    out = flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out   # its first releases also gave the softmax's sums


def _flash2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v)


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from sageattention import sageattn

    return sageattn(q, k, v, tensor_layout="NHD")


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """A way to compute attention in half precision that torch's SDPA does not choose by itself."""

    name: str
    package: str      # that it comes with
    run: AttentionFn
    max_error: float = 1e-2   # against SDPA, relative (Frobenius); half precision gives 4e-3


KERNELS: dict[str, tuple[Kernel, ...]] = {   # what a name stands for, best first
    "cudnn": (Kernel(name="cuDNN's attention", package="torch", run=_cudnn),),
    "flash": (
        Kernel(name="FlashAttention 3", package="flash_attn_interface", run=_flash3),
        Kernel(name="FlashAttention 2", package="flash_attn", run=_flash2),
    ),
    "sage": (Kernel(name="SageAttention", package="sageattention", run=_sage, max_error=6e-2),),   # 8-bit products
    "xformers": (Kernel(name="xFormers' attention", package="xformers", run=_xformers),),
}


class CheckedAttention:
    """Installed kernels: the first that agrees with SDPA is used, and without one SDPA.

    Compared once per device, dtype, head size and class of lengths (powers of two), on the result that is then used.
    A kernel that is wrong or raises is dropped there, with one warning. torch.compile is given SDPA.
    """

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kernels = kernels
        self._chosen: dict[tuple, AttentionFn] = {}
        self._told: set[str] = set()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype not in DTYPES or q.device.type not in DEVICES or torch.compiler.is_compiling():
            return sdpa(q, k, v)
        key = (q.device, q.dtype, q.shape[3], q.shape[1].bit_length(), k.shape[1].bit_length())
        if key in self._chosen:
            return self._chosen[key](q, k, v)
        self._chosen[key], out = self._first_that_agrees(q, k, v)
        return out

    def _first_that_agrees(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[AttentionFn, Tensor]:
        for kernel in self.kernels:
            try:
                out = kernel.run(q, k, v)
                error = largest_error(out, q, k, v)
            except Exception as fault:   # a kernel built for another card raises anything
                self._tell(kernel, f"does not run here ({fault})")
                continue
            if error <= kernel.max_error:
                return kernel.run, out
            self._tell(kernel, f"is off by {error:.2g} here")
        return sdpa, sdpa(q, k, v)

    def _tell(self, kernel: Kernel, what: str) -> None:
        level = logging.DEBUG if kernel.name in self._told else logging.WARNING
        self._told.add(kernel.name)
        log.log(level, "%s %s; it is left out", kernel.name, what)


def largest_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Of some rows of a result, against SDPA: relative, Frobenius; infinite where numbers are missing."""
    if out.shape != q.shape:
        raise ValueError(f"it gives {tuple(out.shape)} for {tuple(q.shape)}")
    errors = []
    for item in (slice(0, 1), slice(-1, None)):
        for rows in (slice(0, CHECKED_ROWS), slice(-CHECKED_ROWS, None)):
            expected = sdpa(q[item, rows], k[item], v[item]).float()
            off = (out[item, rows].float() - expected).norm() / expected.norm().clamp(min=1e-12)
            errors.append(off.item())
    return max(errors) if all(error < float("inf") for error in errors) else float("inf")


def make_attention(name: str = "auto") -> AttentionFn:
    """The attention function called `name`: auto, sdpa, cudnn, flash, sage or xformers.

    "auto" is SDPA: it is right everywhere and picks the fastest kernel that torch has. The others are checked
    against it on their first calls.

    Raises: ConfigError for an unknown name or a package that is not installed.
    """
    if name in ("auto", "sdpa"):
        return sdpa
    if name not in KERNELS:
        raise ConfigError(f"attention must be auto, sdpa, {', '.join(KERNELS)}; got {name!r}")
    installed = [kernel for kernel in KERNELS[name] if importlib.util.find_spec(kernel.package) is not None]
    if not installed:
        packages = " or ".join(kernel.package for kernel in KERNELS[name])
        raise ConfigError(f"attention {name!r} needs the package {packages}, which is not installed; use 'sdpa'")
    return CheckedAttention(installed)

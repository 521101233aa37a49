"""Every recorded case of the reference implementation, recomputed with ours: one test a case, none left out.

Knows how to compare; what a kind of case computes is in `adapters/`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from .adapters import KINDS
from .case import Case, read_cases


def difference(name: str, ours: Tensor, theirs: Tensor, entry: dict) -> str | None:
    """What is wrong with our tensor, or None."""
    if list(ours.shape) != list(theirs.shape):
        return f"{name}: shape {list(ours.shape)}, recorded {list(theirs.shape)}"
    if entry.get("exact") and "atol" not in entry:
        wrong = int((ours.to(theirs.dtype) != theirs).sum())
        return f"{name}: {wrong} of {theirs.numel()} values differ, none may" if wrong else None
    error = (ours.double() - theirs.double()).abs().max().item() if theirs.numel() else 0.0
    if not error <= entry["atol"]:
        return f"{name}: largest difference {error:.3g}, allowed {entry['atol']:.3g}"
    return None


def check(case: Case, compute: Callable[[Case], dict[str, Tensor]]) -> None:
    """Recompute a case and compare every tensor that the manifest requires, and any other that came along."""
    with torch.no_grad():
        ours = compute(case)
    missing = [name for name in case.required_names() if name not in ours]
    assert not missing, f"{case.name}: not computed: {missing}"
    assert ours, f"{case.name}: nothing was computed"
    unknown = [name for name in ours if name not in case.tensors]
    assert not unknown, f"{case.name}: not in the case: {unknown}"
    records = case.entry["tensors"]
    faults = [difference(name, tensor, case.tensors[name], records[name]) for name, tensor in ours.items()]
    faults = [fault for fault in faults if fault]
    assert not faults, f"{case.name}: " + "; ".join(faults)


@pytest.mark.parametrize("case", read_cases(), ids=lambda case: f"{case.kind}-{case.name}")
def test_golden(case: Case) -> None:
    assert case.kind in KINDS, f"{case.name}: no adapter for cases of kind {case.kind!r}"
    check(case, KINDS[case.kind])

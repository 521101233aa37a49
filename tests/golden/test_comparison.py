"""The comparison itself: it must fail on a wrong weight, a spoiled result, and a result that is missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from .adapters import KINDS
from .case import Case, read_cases
from .test_golden import check

CASES = read_cases()


def first_of_each_kind(accept: Callable[[Case], bool]) -> list[Case]:
    kinds: dict[str, Case] = {}
    for case in filter(accept, CASES):
        kinds.setdefault(case.kind, case)
    return list(kinds.values())


def named(case: Case) -> str:
    return case.kind


def reads_weights(case: Case) -> bool:
    """Whether recomputing the case touches its weights at all: a table of positions does not."""
    fresh = Case(root=case.root, entry=case.entry, required=case.required)
    with torch.no_grad():
        KINDS[case.kind](fresh)
    return "weights" in vars(fresh)


WEIGHTED = [c for c in first_of_each_kind(lambda c: bool(c.entry["weights"]) and c.required != ()) if reads_weights(c)]


@pytest.mark.parametrize("case", WEIGHTED, ids=named)
def test_a_perturbed_weight_is_caught(case: Case) -> None:
    """One part in a hundred on every weight: far more than rounding, far less than another model."""
    fresh = Case(root=case.root, entry=case.entry, required=case.required)
    for weights in fresh.weights:
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                weights[name] = tensor * 1.01 + 1e-3
    with pytest.raises(AssertionError, match="largest difference"):
        check(fresh, KINDS[case.kind])


def test_most_kinds_are_put_to_that_test() -> None:
    assert len(WEIGHTED) >= len({c.kind for c in CASES if c.entry["weights"] and c.required}) - 2


@pytest.mark.parametrize("case", first_of_each_kind(lambda c: bool(c.required_names())), ids=named)
def test_a_spoiled_or_missing_result_is_caught(case: Case) -> None:
    good = {name: case.tensors[name] for name in case.required_names()}
    check(case, lambda _: good)
    for name, tensor in good.items():
        spoiled = tensor.clone()
        last = spoiled.flatten()[-1]
        spoiled.view(-1)[-1] = last + (1 if case.entry["tensors"][name].get("exact") else 0.01 + last.abs())
        with pytest.raises(AssertionError, match="differ"):
            check(case, lambda _, name=name, spoiled=spoiled: good | {name: spoiled})
        with pytest.raises(AssertionError, match="not computed"):
            check(case, lambda _, name=name: {k: v for k, v in good.items() if k != name})


def test_a_shape_and_a_nan_are_caught() -> None:
    case = next(c for c in CASES if c.required_names() and not c.entry["tensors"][c.required_names()[0]].get("exact"))
    good = {name: case.tensors[name] for name in case.required_names()}
    name = next(iter(good))
    with pytest.raises(AssertionError, match="shape"):
        check(case, lambda _: good | {name: good[name][None]})
    with pytest.raises(AssertionError, match="largest difference nan"):
        check(case, lambda _: good | {name: good[name] * float("nan")})


def test_an_unknown_kind_has_no_adapter() -> None:
    assert "no such kind" not in KINDS

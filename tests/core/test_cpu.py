"""Products on CPUs that multiply bf16 without AMX: taken where this torch has them and they are right, else left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from s2v_core.ops import cpu


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if this CPU were of the kind."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    cpu.helps.cache_clear()
    yield
    cpu.helps.cache_clear()


def test_a_cpu_of_the_kind_is_helped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "linear", _as_torch)   # whatever CPU this test runs on
    assert cpu.helps()


def test_a_torch_that_cannot_tell_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not cpu.helps()


def test_a_torch_without_the_kernel_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(cpu, "linear", gone)
    assert not cpu.helps()


def test_a_kernel_that_means_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "linear", lambda x, weight, bias, gelu=False: _as_torch(x, weight, bias))   # no GELU
    assert not cpu.helps()


def _as_torch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, gelu: bool = False) -> torch.Tensor:
    y = torch.nn.functional.linear(x, weight, bias)
    return torch.nn.functional.gelu(y, approximate="tanh") if gelu else y

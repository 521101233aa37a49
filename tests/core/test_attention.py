"""Kernels beside SDPA are used when they agree with it and left out when not; CPU products are what torch's are."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from s2v_core.errors import ConfigError
from s2v_core.ops import attention as switch
from s2v_core.ops import cpu
from s2v_core.ops.attention import KERNELS, AttentionFn, CheckedAttention, Kernel, make_attention, sdpa
from s2v_core.ops.layers import Linear, tanh_gelu
from s2v_core.ops.rope import apply_rope, apply_rope_, rope_angles, rope_table


@pytest.fixture(autouse=True)
def on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "DEVICES", ("cpu",))


def qkv(num_queries: int = 40, num_keys: int = 40, *, head_dim: int = 16) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 2, head_dim, generator=g).bfloat16() for n in (num_queries, num_keys, num_keys)]


class Counted:
    """A kernel that notes how often it ran."""

    def __init__(self, kernel: AttentionFn) -> None:
        self.kernel = kernel
        self.runs = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.runs += 1
        return self.kernel(q, k, v)


def nearly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return 1.001 * sdpa(q, k, v)


def wrong_at_the_end(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = sdpa(q, k, v).clone()
    out[-1, -1] = 0
    return out


def without_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v) * float("nan")


def of_another_layout(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v).transpose(1, 2)


def for_another_card(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


def checked(*runs: AttentionFn) -> CheckedAttention:
    return CheckedAttention([Kernel(name=f"kernel {i}", package="torch", run=run) for i, run in enumerate(runs)])


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_kernel_that_agrees_is_used_and_checked_on_its_own_result(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Counted(nearly)
    attention, given = checked(kernel), qkv()
    for runs in (1, 2, 3):
        assert torch.equal(attention(*given), nearly(*given))
        assert kernel.runs == runs
    assert not messages(caplog)


@pytest.mark.parametrize("bad", [wrong_at_the_end, without_numbers, of_another_layout, for_another_card])
def test_a_kernel_that_is_wrong_or_raises_is_dropped_with_one_warning(
    bad: AttentionFn, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Counted(bad)
    attention, given = checked(kernel), qkv()
    for _ in range(3):
        assert torch.equal(attention(*given), sdpa(*given))
    assert kernel.runs == 1
    attention(*qkv(200, 200))   # another class of lengths is tried, and not warned of again
    assert kernel.runs == 2
    assert len(messages(caplog)) == 1 and "kernel 0" in messages(caplog)[0], messages(caplog)


def test_the_next_kernel_takes_the_place_of_a_dropped_one(caplog: pytest.LogCaptureFixture) -> None:
    attention, given = checked(for_another_card, nearly), qkv()
    assert torch.equal(attention(*given), nearly(*given))
    assert len(messages(caplog)) == 1


def test_a_check_holds_for_one_class_of_shapes() -> None:
    kernel = Counted(nearly)
    attention = checked(kernel)
    attention(*qkv(40, 40))
    attention(*qkv(50, 60))     # the same class
    assert len(attention._chosen) == 1
    for other in (qkv(40, 5), qkv(70, 40), qkv(40, 40, head_dim=32), [x.half() for x in qkv()]):
        attention(*other)
    assert len(attention._chosen) == 5


def test_float32_and_other_devices_are_sdpas(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Counted(nearly)
    attention = checked(kernel)
    attention(*(x.float() for x in qkv()))
    monkeypatch.setattr(switch, "DEVICES", ("cuda",))
    attention(*qkv())
    assert kernel.runs == 0


def test_a_kernel_that_cannot_run_on_this_machine_leaves_sdpas_result(caplog: pytest.LogCaptureFixture) -> None:
    attention, given = make_attention("cudnn"), qkv()
    assert torch.equal(attention(*given), sdpa(*given))
    assert "cuDNN" in messages(caplog)[0]


def test_a_name_without_its_package_or_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: None)
    for name in KERNELS:
        with pytest.raises(ConfigError, match="not installed; use 'sdpa'"):
            make_attention(name)
    with pytest.raises(ConfigError, match="auto, sdpa, cudnn, flash, sage, xformers; got 'slow'"):
        make_attention("slow")


def test_flash_is_the_newest_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: None if name == "flash_attn_interface" else 1)
    assert [kernel.name for kernel in make_attention("flash").kernels] == ["FlashAttention 2"]
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: 1)
    assert make_attention("flash").kernels[0].name == "FlashAttention 3"


# ---- products on a CPU -----------------------------------------------------------------------------------------------


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize(("num_queries", "num_keys"), [(600, 700), (513, 256), (1, 300)])
def test_attention_by_matmuls_rounds_as_torchs_does(num_queries: int, num_keys: int) -> None:
    q, k, v = qkv(num_queries, num_keys, head_dim=64)
    q = 3 * q   # a sharp softmax, where rounded scores would show
    exact = F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torchs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert error(cpu.attention(q, k, v), exact) < 1.4 * error(torchs, exact) + 1e-4


@pytest.mark.parametrize("attend", [cpu.attention, sdpa], ids=["matmuls", "sdpa"])
def test_a_last_key_that_counts_for_many_is_as_if_it_stood_there_so_often(attend: Callable[..., Tensor]) -> None:
    q, k, v = qkv(20, 30, head_dim=64)
    often = [torch.cat([x, x[:, -1:].expand(-1, 99, -1, -1)], dim=1).double().transpose(1, 2) for x in (k, v)]
    exact = F.scaled_dot_product_attention(q.double().transpose(1, 2), *often).transpose(1, 2)
    assert error(attend(q, k, v, 100), exact) < 5e-3 < 0.1 < error(attend(q, k, v), exact)


def test_attention_by_matmuls_takes_one_query_for_several_batch_items() -> None:
    q, k, v = qkv(8, 300, head_dim=64)
    q = q[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(cpu.attention(q, k, v), cpu.attention(q.clone(), k, v), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_linear_layer_and_its_gelu_are_what_they_are_in_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = Linear(40, 72, dtype=dtype), torch.randn(2, 9, 40, dtype=dtype)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    room = 3e-3 if dtype == torch.bfloat16 else 1e-6
    assert error(layer(x), exact) < room
    assert error(layer.with_gelu(x), F.gelu(exact, approximate="tanh")) < 2 * room
    assert layer(x[:, :0]).shape == (2, 0, 72) and layer(x[0, 0]).shape == (72,)


def test_gradients_go_through_a_linear_layer_and_its_gelu() -> None:
    torch.manual_seed(0)
    layer, x = Linear(6, 4), torch.randn(3, 6, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer.double().with_gelu(x), x.detach().double().requires_grad_())
    hidden = torch.randn(5, requires_grad=True)
    assert tanh_gelu(hidden) is not hidden


def test_heads_are_turned_alike_in_place_and_anew_as_complex_numbers() -> None:
    g = torch.Generator().manual_seed(0)
    positions = torch.tensor([[0, 0, 0], [3, 1, 2], [-19, 5, 7]])
    heads, table = torch.randn(2, 3, 4, 16, generator=g), rope_table(positions, 16)
    angles = rope_angles(positions, 16)
    numbers = torch.view_as_complex(heads.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(numbers * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)
    for turned in (apply_rope(heads, table), apply_rope_(heads.clone(), table)):
        torch.testing.assert_close(turned.double(), expected, atol=2e-6, rtol=1e-6)

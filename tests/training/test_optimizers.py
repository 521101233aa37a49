"""AdamW in its kinds: fused, offloaded and in 8 bits; what they compute, what they keep, and what is missing."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from s2v_core.errors import ConfigError
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.parallel.state import from_pieces, numbers, optimizer_state
from s2v_core.training.checkpoint import load_checkpoint, save_checkpoint
from s2v_core.training.config import OptimizerConfig
from s2v_core.training.initialise import initialise
from s2v_core.training.optimizers import load_moments, make_optimizer, set_learning_rate
from s2v_core.training.student import Student

from .test_trainer import OPTIMIZER, losses, make_trainer
from .tiny import CONFIG as TINY
from .tiny import tiny_student

CONFIG = OptimizerConfig(learning_rate=1e-2)


class Line:
    """One large layer that learns to copy, by an optimiser of some kind."""

    def __init__(self, config):
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 64, bias=False)
        self.optimizer = make_optimizer(self.layer.parameters(), config)

    def losses(self, start, stop):
        found = []
        for step in range(start, stop):
            x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
            set_learning_rate(self.optimizer, 1e-2 / (step + 1))
            loss = (self.layer(x) - x).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            found.append(loss.item())
        return found


def state_of(line):
    return {"weights": line.layer.state_dict(), "optimizer": line.optimizer.state_dict()}


def test_adamw_is_fused():
    assert make_optimizer([nn.Parameter(torch.zeros(2))], CONFIG).param_groups[0]["fused"]


def test_moments_on_the_cpu_give_the_losses_of_a_run_without_bit_for_bit():
    offloaded = replace(OPTIMIZER, offload=True)
    expected = losses(make_trainer(), 6)
    assert losses(make_trainer(optimizer=offloaded), 6) == expected
    first, second = (make_trainer(optimizer=offloaded, student=tiny_student(seed)) for seed in (0, 9))
    losses(first, 3)
    second.load_state_dict(first.state_dict())
    assert losses(second, 3) == expected[3:]


def test_moments_on_the_cpu_leave_alone_what_got_no_gradient():
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = make_optimizer(weights, replace(CONFIG, offload=True))
    weights[0].sum().backward()
    optimizer.step()
    assert (weights[0] < 1).all() and (weights[1] == 1).all()
    optimizer.zero_grad()
    assert weights[0].grad is None


def test_moments_in_8_bits_learn_are_small_and_are_resumed_bit_for_bit(tmp_path):
    small = replace(CONFIG, moments="8bit")
    whole = Line(small)
    expected = whole.losses(0, 6)
    assert expected[-1] < 0.95 * expected[0] and expected == pytest.approx(Line(CONFIG).losses(0, 6), rel=0.05)
    moments = next(iter(whole.optimizer.state.values()))["exp_avg"]
    assert moments.codes.dtype == torch.uint8 and moments.codes.numel() == 64 * 64
    first, second = Line(small), Line(small)
    first.losses(0, 3)
    (saved,) = load_checkpoint(save_checkpoint(tmp_path, 3, state_of(first), keep=1))
    second.layer.load_state_dict(saved["weights"])
    second.optimizer.load_state_dict(saved["optimizer"])
    assert second.losses(3, 6) == expected[3:]


def moments_of(optimizer, parameter):
    return {name: optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")}


def parts(optimizer, wide, count):
    """Moments of a wide parameter as each of some processes keeps and saves its rows of them, and all their numbers."""
    generator, states, whole = torch.Generator().manual_seed(0), [], {"exp_avg": [], "exp_avg_sq": []}
    for rows in wide.detach().chunk(count):
        kept = {"step": torch.tensor(3.0)}
        for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            kept[name] = optimizer._new_buffer(rows, signed)
            drawn = torch.rand(rows.shape, generator=generator) - 0.5 * signed
            kept[name].copy_(drawn)
            whole[name].append(numbers(kept[name]))
        states.append({"state": {0: kept}, "param_groups": optimizer.state_dict()["param_groups"]})
    return states, {name: torch.cat(tensors) for name, tensors in whole.items()}


@pytest.mark.parametrize("count", [2, 4])   # of 8192 and 4096 numbers: in 8 bits; of 8 they would be too few
def test_moments_in_8_bits_go_on_with_another_number_of_processes_and_in_float32(count):
    wide = nn.Parameter(torch.zeros(256, 64))
    small, exact = (make_optimizer([wide], replace(CONFIG, moments=kind)) for kind in ("8bit", "fp32"))
    states, expected = parts(small, wide, count)
    load_moments(small, lambda parameters: optimizer_state(from_pieces(states), parameters))
    for name, tensor in moments_of(small, wide).items():
        assert tensor.codes.dtype == torch.uint8
        torch.testing.assert_close(numbers(tensor), expected[name], atol=0.008, rtol=0)   # rounded once more
    load_moments(exact, lambda parameters: optimizer_state(from_pieces(states), parameters))
    for name, tensor in moments_of(exact, wide).items():
        assert type(tensor) is torch.Tensor and torch.equal(tensor, expected[name])
    back = make_optimizer([wide], replace(CONFIG, moments="8bit"))
    load_moments(back, lambda parameters: optimizer_state(from_pieces([exact.state_dict()]), parameters))
    for name, tensor in moments_of(back, wide).items():
        assert tensor.codes.dtype == torch.uint8
        torch.testing.assert_close(numbers(tensor), expected[name], atol=0.008, rtol=0)
    assert isinstance(back.param_groups[0]["lr"], torch.Tensor), "torchao refuses a plain number"


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    for name in ("torchao", "torchao.optim", "bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="moments: 8bit needs torchao or bitsandbytes: pip install torchao"):
        make_optimizer([nn.Parameter(torch.zeros(2))], replace(CONFIG, moments="8bit"))


def test_moments_that_are_offloaded_and_in_8_bits_are_refused():
    with pytest.raises(ConfigError, match="not both"):
        OptimizerConfig(moments="8bit", offload=True)


def test_a_trainer_with_moments_in_8_bits_goes_on_bit_for_bit(tmp_path):
    def trainer():
        wide = WanS2VTransformer(replace(TINY, dim=96, ffn_dim=128))
        initialise(wide, seed=0)
        wide.requires_grad_(False)
        wide.blocks[0].ffn[0].weight.requires_grad_(True)   # torchao compiles for every shape: one is enough
        student = Student(wide, negative=torch.ones(1, 3, 12))
        return make_trainer(student=student, optimizer=replace(OPTIMIZER, moments="8bit"))

    expected = losses(trainer(), 4)
    first, second = trainer(), trainer()
    losses(first, 2)
    (saved,) = load_checkpoint(save_checkpoint(tmp_path, 2, {"trainer": first.state_dict()}, keep=1))
    second.load_state_dict(saved["trainer"])
    assert losses(second, 2) == expected[2:]

"""S2V Faster Sampling: which steps of a host's run evaluate the model, and under what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from s2v_core.sampling.sigmas import make_schedule

from .fake_host import load_pack, part

SIGMAS = make_schedule("euler", 20, 3.0).sigmas


@pytest.fixture
def faster(monkeypatch, tmp_path):
    return part(load_pack(monkeypatch, tmp_path), "nodes.faster")


class Model:
    """What the pack asks of a ModelPatcher."""

    def __init__(self):
        self.model_options, self.wrappers = {}, {}

    def clone(self):
        return Model()

    def add_wrapper_with_key(self, kind, name, wrapper):
        self.wrappers[kind] = wrapper


class Guided:
    """A guider in the middle of a run: told "heard" alone it makes one evaluation, guiding it makes two."""

    def __init__(self):
        self.conds = {"positive": "heard", "negative": "unheard"}
        self.class_obj = self
        self.asked = []

    def inner_model(self, cond, x, sigma):
        self.asked.append((cond, round(float(sigma[0]), 4)))
        return x - sigma * (1.0 if cond == "heard" else 0.5)   # of a constant velocity

    def __call__(self, x, timestep, options, seed):
        heard, unheard = (self.inner_model(cond, x, timestep) for cond in ("heard", "unheard"))
        return unheard + 2 * (heard - unheard)


def run(model) -> tuple[Guided, list[torch.Tensor]]:
    """One evaluation a level, as the euler sampler asks for them."""
    guider, x, estimates = Guided(), torch.ones(1, 16, 2, 8, 8), []
    options = {"transformer_options": {"sample_sigmas": SIGMAS}}
    for sigma in SIGMAS[:-1]:
        estimates.append(model.wrappers["predict"](guider, x, sigma * torch.ones(1), options, 7))
    return guider, estimates


def shortened(faster, *widgets):
    return faster.FasterSampling.execute(Model(), *widgets).args[0]


def test_as_it_comes_it_changes_nothing(faster):
    model = Model()
    assert faster.FasterSampling.execute(model, 0.0, 1.0, 0.0).args[0] is model and model.wrappers == {}


def test_outside_the_interval_the_positive_side_alone_is_asked(faster):
    guider, estimates = run(shortened(faster, 0.4, 0.8, 0.0))
    unheard = {sigma for cond, sigma in guider.asked if cond == "unheard"}
    levels = [round(sigma, 4) for sigma in SIGMAS[:-1].tolist()]
    assert unheard == {sigma for sigma in levels if 0.4 <= sigma <= 0.8} and 0 < len(unheard) < 20
    assert [sigma for cond, sigma in guider.asked if cond == "heard"] == levels
    velocities = [(1 - float(clean[0, 0, 0, 0, 0])) / sigma for clean, sigma in zip(estimates, levels, strict=True)]
    assert velocities == pytest.approx([1.5 if 0.4 <= sigma <= 0.8 else 1.0 for sigma in levels], abs=1e-3)


def test_foretold_steps_ask_neither_side_and_every_run_begins_anew(faster):
    model = shortened(faster, 0.0, 1.0, 0.2)
    guider, estimates = run(model)
    assert len(guider.asked) == 2 * 10, "a constant velocity: every step that may be foretold is"
    for clean, sigma in zip(estimates, SIGMAS[:-1], strict=True):
        assert torch.allclose(1 - clean, 1.5 * sigma * torch.ones(1))
    outer = model.wrappers["outer"]
    outer(lambda: None)
    assert len(run(model)[0].asked) == 2 * 10


def test_a_run_that_has_ended_leaves_nothing_behind(faster):
    shortcuts = faster.Shortcuts(SimpleNamespace(guidance_interval=None, step_cache=0.2))
    shortcuts(lambda: torch.ones(1, 16, 2, 8, 8), None, torch.ones(1, 16, 2, 8, 8), 1.0, SIGMAS.tolist())
    assert shortcuts._cache is not None
    shortcuts.forget()
    assert shortcuts._cache is None


def test_two_settings_are_two_models_for_a_take(faster):
    models = [shortened(faster, 0.0, 0.8, cache) for cache in (0.0, 0.2)]
    assert models[0].model_options != models[1].model_options

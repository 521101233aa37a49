"""What a run logs reaches its trackers: TensorBoard's own reader finds the numbers of the log."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s2v_core.errors import ConfigError
from s2v_core.training.run import train
from s2v_core.training.trackers import Trackers, numbers

from .test_runs import Silent, config_of


def test_tensorboard_holds_the_numbers_of_the_log(settings, tmp_path):
    config = config_of(settings, steps=3, validate_every=2, validation_batches=1, trackers=["tensorboard"])
    train(config, device=torch.device("cpu"), progress=Silent())
    entries = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "out/tiny")).Reload()
    found = {(e.step, e.value) for e in events.Scalars("loss")}
    logged = {(e["step"], torch.tensor(e["loss"]).item()) for e in entries if "loss" in e}
    assert {step for step, _ in found} == {1, 2, 3} and found == logged
    (mean,) = events.Scalars("validation/mean")
    assert mean.step == 2 and mean.value == pytest.approx(entries[2]["validation"]["mean"])


def test_a_line_is_told_in_numbers_alone():
    line = {"step": 4, "loss": 0.5, "count": 2, "file": "x.mp4", "done": True, "validation": {"mean": 1.5}}
    assert numbers(line) == {"loss": 0.5, "count": 2, "validation/mean": 1.5}


@pytest.mark.parametrize(
    "name, message",
    [("tensorbord", "there is no 'tensorbord'; there are .*tensorboard"), ("wandb", "pip install wandb")],
)
def test_a_tracker_that_cannot_be_had_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ConfigError, match=message):
        Trackers([name], run_name="x", folder=tmp_path, settings={})

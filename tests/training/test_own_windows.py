"""Runs that encode what they learn from themselves, as they need it: each video once, and nothing else changes."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event

import pytest
import torch
import yaml

from s2v_core.config import ModelConfig
from s2v_core.errors import ConfigError, Interrupted, OutputError
from s2v_core.train import main
from s2v_core.training.config import PrecomputeConfig, TrainConfig, from_settings
from s2v_core.training.dataset import AHEAD, Ahead, WindowBatches
from s2v_core.training.encoders import ModelEncoders
from s2v_core.training.footage import FootageItem, find_footage
from s2v_core.training.live import LiveWindows
from s2v_core.training.precompute import find_windows, precompute
from s2v_core.training.run import train
from s2v_core.training.windows import load_window, read_entry

from .test_runs import CPU, Silent, losses
from .test_windows import make_folder
from .tiny import CONFIG, TEXT

BUNDLED = Path(__file__).parents[2] / "s2v_core/bundled/model.json"
DRAWN = {"source": "synthetic", "num_videos": 2, "video_frames": 90, "clip_frames": 8}


@pytest.fixture(scope="module")
def encoders():
    return ModelEncoders(None, device=CPU, with_text=True)


def live(items, encoders, config):
    return LiveWindows(items, encoders, config, reader=encoders.files.config.transformer)


# ---- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"windows_per_video": 2, "first_share": 0.5},
        {"prompts": "text", "num_videos": 3, "faces": (0.0, 1.0, 1.0)},
        {"source": "folder"},
    ],
    ids=["drawn", "several faces", "folder"],
)
def test_windows_are_known_before_they_are_there_and_are_those_that_precompute_writes(tmp_path, encoders, changes):
    if "source" in changes:
        changes = {"source": str(make_folder(tmp_path / "videos", size=(64, 64)))}
    before = PrecomputeConfig(**{**DRAWN, **changes, "windows": tmp_path / "before"})
    precompute(find_footage(before), encoders, before)
    config = replace(before, windows=tmp_path / "live")
    windows = live(find_footage(config), encoders, config)
    written = [read_entry(path) for path in find_windows([before.windows])]
    assert [(e.path.name, e.kind, e.form, e.model) for e in windows.entries] == [
        (e.path.name, e.kind, e.form, e.model) for e in written
    ]
    assert not config.windows.exists(), "nothing is encoded until it is asked for"
    for known, entry in zip(windows.entries, written, strict=True):
        window, expected = windows.load(known.path), load_window(entry.path)
        assert window.prompt == expected.prompt and window.tensors().keys() == expected.tensors().keys()
        assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in window.tensors().items())


def test_a_window_that_is_asked_for_is_encoded_with_its_video_and_no_other(tmp_path, encoders, monkeypatch):
    config = PrecomputeConfig(**DRAWN, prompts="text", windows_per_video=2, windows=tmp_path)
    windows = live(find_footage(config), encoders, config)
    windows.load(windows.entries[2].path)
    assert find_windows([tmp_path]) == [windows.entries[2].path, windows.entries[3].path]

    def encode(*_):
        raise AssertionError("it was encoded before")

    monkeypatch.setattr(ModelEncoders, "encode_frames", encode)
    windows.load(windows.entries[3].path)
    live(find_footage(config), encoders, config).load(windows.entries[2].path)


@dataclass(frozen=True)
class Broken:
    """A video that opens well, and whose frames cannot be decoded."""

    whole: FootageItem
    name: str = "broken"

    def fingerprint(self):
        return "broken"

    def open(self):
        return replace(self.whole.open(), frames=self.frames)

    def frames(self, start, stop):
        raise ValueError("bitstream")


def test_a_video_that_turns_out_to_be_broken_is_counted_and_others_stand_in_for_it(tmp_path, encoders, caplog):
    config = PrecomputeConfig(**DRAWN, prompts="text", windows=tmp_path, first_share=1.0)
    good, other = find_footage(config)
    windows = live([good, Broken(other)], encoders, config)
    source = WindowBatches(windows, batch_size=1, first_clip=1.0, seed=0)
    prompts = {source.batch(index).prompts for index in range(4)}
    assert prompts == {(good.open().prompt,)} and source.num_skipped == 1
    assert caplog.text.count("broken: ValueError: bitstream") == 1


def test_videos_of_which_none_can_be_opened_are_refused(tmp_path, encoders, caplog):
    (tmp_path / "metadata.csv").write_text("video\nmissing.mp4\n")
    config = PrecomputeConfig(source=str(tmp_path), windows=tmp_path / "w")
    with pytest.raises(ConfigError, match="not one of 1 videos could be used"):
        live(find_footage(config), encoders, config)
    assert "missing.mp4" in caplog.text


# ---- in the background ---------------------------------------------------------------------------------------------


class Numbers:
    """A source that says what it was asked for, and waits with each answer until it may give it."""

    def __init__(self):
        self.asked, self.may_go_on = [], Event()

    def batch(self, index):
        self.asked.append(index)
        self.may_go_on.wait(30)
        if index == 9:
            raise OutputError("the disk is full")
        return index


def test_batches_are_made_ahead_in_order_and_only_as_many_as_are_soon_wanted():
    source = Numbers()
    source.may_go_on.set()
    ahead = Ahead(source, stride=2, stop=100)
    assert [ahead.batch(index) for index in (1, 3, 5)] == [1, 3, 5]
    ahead.close()
    assert source.asked == list(range(1, 1 + 2 * len(source.asked), 2)) and 3 <= len(source.asked) <= 3 + AHEAD


def test_no_batch_is_made_that_the_run_will_not_reach():
    source = Numbers()
    source.may_go_on.set()
    ahead = Ahead(source, stride=1, stop=3)
    assert [ahead.batch(index) for index in range(3)] == [0, 1, 2]
    ahead.close()
    assert source.asked == [0, 1, 2]


def test_the_fault_of_a_batch_is_raised_where_that_batch_is_wanted():
    source = Numbers()
    source.may_go_on.set()
    ahead = Ahead(source, stride=1, stop=20)
    assert ahead.batch(8) == 8
    with pytest.raises(OutputError, match="the disk is full"):
        ahead.batch(9)
    assert ahead.batch(10) == 10
    ahead.close()


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def drawn_run(tmp_path):
    """A run of 6 steps over 9 drawn videos, one a step, with a small transformer behind the bundled encoders."""
    read = replace(CONFIG, audio_dim=96, num_audio_layers=4)
    (tmp_path / "model.json").write_text(json.dumps(asdict(ModelConfig(name="t", transformer=read, text_encoder=TEXT))))

    def config(name, windows=(), **run):
        settings = {
            "name": name,
            "model": {"config": str(tmp_path / "model.json"), "text_encoder": "trained"},
            "precompute": {**DRAWN, "num_videos": 9, "video_frames": 24, "first_share": 1.0, "prompts": "text",
                           "windows": str(tmp_path / f"windows-{name}")},
            "data": {"windows": list(windows), "first_clip": 1.0},
            "run": {"output": str(tmp_path / name), "steps": 6, "save_every": 2},
        }  # fmt: skip
        return from_settings(TrainConfig, settings, "test")

    return config


class StopsAt(Silent):
    def __init__(self, step):
        self.step = step

    def stepped(self, report):
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_encodes_as_it_goes_has_the_losses_of_one_that_had_all_before_also_when_it_is_resumed(
    drawn_run, tmp_path, encoders
):
    before = drawn_run("before", [str(tmp_path / "windows-before")])
    precompute(find_footage(before.precompute), encoders, before.precompute)
    train(before, device=CPU, progress=Silent())
    expected = losses(tmp_path / "before")
    assert len(expected) == 6

    config = drawn_run("live")
    with pytest.raises(Interrupted, match="step 1 is saved"):
        train(config, device=CPU, progress=StopsAt(1))
    written = find_windows([config.precompute.windows])
    assert 1 <= len(written) <= 1 + AHEAD, "as many as were soon wanted"
    for path in written:
        path.unlink()
    train(config, device=CPU, progress=Silent())
    assert losses(tmp_path / "live") == expected
    assert len(find_windows([config.precompute.windows])) == 5, "those of the steps that were left, and no other"


@pytest.fixture
def run(tmp_path):
    """A run over a folder of videos; its settings can be changed part by part."""
    folder = make_folder(tmp_path / "videos", size=(64, 64))

    def write(**changes):
        own = {"source": str(folder), "clip_frames": 8, "windows_per_video": 2, "windows": str(tmp_path / "windows")}
        settings = {
            "name": "own",
            "model": {"config": str(BUNDLED)},
            "precompute": own,
            "data": {"first_clip": 1.0, "batch_size": 2},
            "run": {"output": str(tmp_path / "out"), "steps": 2, "validation_batches": 1},
        }
        for part, values in changes.items():
            settings[part] = {**settings.get(part, {}), **values}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


def test_a_run_encodes_real_videos_itself_passes_over_broken_ones_and_exports_without_them(run, tmp_path, caplog):
    assert main(["--config", run(), "--quiet", "--device", "cpu"]) == 0
    assert len(losses(tmp_path / "out")) == 2 and len(list((tmp_path / "windows").glob("*.safetensors"))) == 2
    assert "left out" in caplog.text and "broken.mp4" in caplog.text and "missing.mp4" in caplog.text
    exported = tmp_path / "out/export/transformer.safetensors"
    exported.unlink()
    (tmp_path / "videos/metadata.jsonl").unlink()
    assert main(["--config", run(), "--export", "--device", "cpu"]) == 0 and exported.exists()


def test_a_run_encodes_what_it_only_measures_too(run, tmp_path):
    held_out = {**DRAWN, "held_out": True, "first_share": 1.0, "windows": str(tmp_path / "validation")}
    path = run(precompute_validation=held_out, run={"validate_every": 2, "validate_clips": 1, "validate_steps": 1})
    assert main(["--config", path, "--quiet", "--device", "cpu"]) == 0
    entries = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    (measured,) = [entry for entry in entries if "validation" in entry]
    assert measured["validation"]["mean"] > 0 and "mouth_r" in measured["samples"]
    assert len(list((tmp_path / "validation").glob("*.safetensors"))) == 2


def test_what_is_measured_does_not_lie_among_what_is_learnt(run, tmp_path, caplog):
    path = run(precompute_validation={**DRAWN, "windows": str(tmp_path / "windows")}, run={"validate_every": 1})
    assert main(["--config", path, "--quiet", "--device", "cpu"]) == 2
    assert "precompute_validation: windows needs a folder of its own" in caplog.text

"""Runs that encode what they learn from themselves: videos in a folder or drawn ones, each only once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from s2v_core.train import main

from .test_runs import losses
from .test_windows import make_folder

BUNDLED = Path(__file__).parents[2] / "s2v_core/bundled/model.json"
DRAWN = {"source": "synthetic", "num_videos": 2, "video_frames": 90, "clip_frames": 8}


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


def test_a_run_encodes_real_videos_itself_passes_over_broken_ones_and_encodes_nothing_twice(run, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(["--config", run(), "--quiet", "--device", "cpu"]) == 0
    assert len(losses(tmp_path / "out")) == 2 and len(list((tmp_path / "windows").glob("*.safetensors"))) == 2
    assert "2 windows written, 0 were there; 2 videos skipped: MediaError" in caplog.text
    assert main(["--config", run(run={"steps": 3}), "--quiet", "--device", "cpu"]) == 0
    assert "0 windows written, 2 were there" in caplog.text and len(losses(tmp_path / "out")) == 3
    exported = tmp_path / "out/export/transformer.safetensors"
    exported.unlink()
    assert main(["--config", run(run={"steps": 3}), "--export", "--device", "cpu"]) == 0 and exported.exists()


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

"""The bundled model's recipe, shortened: its own data and settings, few and short clips, some dozen steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from s2v_core.train import main

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.fixture
def recipe(tmp_path):
    """The shipped recipe with its sizes changed and nothing else."""
    settings = yaml.safe_load((ROOT / "configs/bundled/transformer.yaml").read_text())
    short = {"num_videos": 6, "video_frames": 100, "clip_frames": 8, "encode_batch": 4}
    settings["precompute"] |= {**short, "windows": str(tmp_path / "windows")}
    settings["model"]["config"] = str(ROOT / settings["model"]["config"])
    settings["data"] |= {"windows": [], "validation": []}
    settings["optimizer"] |= {"warmup_steps": 10}
    settings["run"] |= {"output": str(tmp_path / "run"), "steps": STEPS, "validate_every": 0}
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_shortened_run_of_the_shipped_recipe_learns_and_exports(recipe, tmp_path):
    assert main(["--config", str(recipe), "--quiet", "--device", "cpu"]) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log]
    assert len(losses) == STEPS and np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])
    exported = {path.name: path.stat().st_size for path in (tmp_path / "run/export").iterdir()}
    assert exported.keys() == {"transformer.safetensors", "text_encoder.safetensors"}
    assert sum(exported.values()) < 8e6

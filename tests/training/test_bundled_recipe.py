"""The bundled model's recipe, shortened: a run of one minute learns to move mouths with the sound of strangers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from s2v_core.cli import main as cli
from s2v_core.train import main
from s2v_core.training.config import read_train_config
from s2v_core.training.run import make_trainer
from s2v_core.training.validate import Validation

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
STEPS, CLIPS = 150, 8
SHORT = {"video_frames": 49, "clip_frames": 24, "width": 64, "height": 64, "first_share": 1.0, "encode_batch": 8}


@pytest.fixture
def recipe(tmp_path):
    """The shipped recipe with smaller numbers; mouths weigh more and rates are higher, as fits few steps."""
    settings = yaml.safe_load((ROOT / "configs/bundled/transformer.yaml").read_text())
    settings["precompute"] |= {**SHORT, "num_videos": 60, "windows_per_video": 2, "windows": str(tmp_path / "windows")}
    settings["precompute_validation"] |= {**SHORT, "num_videos": CLIPS, "windows": str(tmp_path / "validation")}
    settings["model"] |= {"config": str(ROOT / settings["model"]["config"]), "compile_blocks": False}
    settings["data"] |= {"windows": [str(tmp_path / "windows")], "validation": [], "batch_size": 8, "first_clip": 1.0}
    settings["objective"] |= {"mouth_weight": 10.0}
    settings["optimizer"] |= {"learning_rate": 2e-3, "warmup_steps": 20, "ema": 0.97}
    settings["run"] |= {
        "output": str(tmp_path / "run"), "steps": STEPS, "validate_every": STEPS, "validation_batches": 1,
        "validate_clips": CLIPS, "validate_steps": 6,
    }  # fmt: skip
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_shortened_run_of_the_shipped_recipe_learns_to_talk(recipe, tmp_path):
    torch.set_num_threads(1)
    assert cli(["precompute", "--config", str(recipe), "--quiet", "--device", "cpu"]) == 0
    config = read_train_config(recipe)
    untrained = Validation(config, device=CPU).measure(make_trainer(config, device=CPU))["samples"]
    assert main(["--config", str(recipe), "--quiet", "--device", "cpu"]) == 0
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == STEPS and np.mean(losses[-10:]) < 0.65 * np.mean(losses[:10])
    (trained,) = [entry["samples"] for entry in log if "samples" in entry]
    assert trained["mouth_r"] > max(0.3, untrained["mouth_r"] + 0.25), (untrained, trained)   # deaf in training: 0.1
    assert trained["other_r"] < trained["mouth_r"] - 0.15 and abs(trained["lag"]) <= 1, trained
    assert len(list((tmp_path / "run/samples").glob(f"step-{STEPS:08d}-*.mp4"))) == CLIPS
    exported = {path.name: path.stat().st_size for path in (tmp_path / "run/export").iterdir()}
    assert exported.keys() == {"transformer.safetensors", "text_encoder.safetensors"}

"""A small run's settings, for tests of whole runs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from s2v_core.config import ModelConfig
from s2v_core.training.windows import save_window

from .test_windows import some_window
from .tiny import CONFIG, TEXT


@pytest.fixture
def settings(tmp_path):
    """A run of 8 steps over 8 small windows, as YAML would hold it."""
    model = ModelConfig(name="tiny", transformer=CONFIG, text_encoder=TEXT)
    (tmp_path / "model.json").write_text(json.dumps(asdict(model)))
    for seed in range(8):
        window = replace(some_window(seed, motion=seed < 5), prompt_embeds=None)
        save_window(tmp_path / "windows" / f"{seed}.safetensors", window, fingerprint="f", model="m")
    return {
        "name": "tiny",
        "model": {"config": str(tmp_path / "model.json"), "text_encoder": "trained"},
        "data": {"windows": [str(tmp_path / "windows")], "validation": [str(tmp_path / "windows")], "batch_size": 2},
        "optimizer": {"learning_rate": "1e-3", "warmup_steps": 3, "decay_fraction": 0.5, "ema": 0.9},
        "run": {"output": str(tmp_path / "out"), "steps": 8, "seed": 3, "save_every": 3, "keep": 2},
    }

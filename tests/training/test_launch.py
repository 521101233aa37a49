"""Processes that accelerate launches train together, on a CPU too."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from s2v_core.training.checkpoint import checkpoints
from s2v_core.training.run import train

from .test_runs import CPU, Silent, config_of, losses

ROOT = Path(__file__).parents[2]


def test_accelerate_launches_two_processes_that_share_each_step(settings, tmp_path):
    """Its `--cpu` starts one process, whatever --num_processes says; `--multi_gpu` starts them on any device."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, "run": {**settings["run"], "steps": 3}}))
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    words = f"-m {launch} --dynamo_backend no -m s2v_core.train --config {path} --quiet --device cpu"
    done = subprocess.run([sys.executable, *words.split()], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    parts = sorted(file.name for file in checkpoints(tmp_path / "out/checkpoints")[-1].iterdir())
    assert parts == ["00000-of-00002", "00001-of-00002"]

    alone = config_of(settings, steps=3, output=str(tmp_path / "alone"))
    train(replace(alone, data=replace(alone.data, accumulate=2)), device=CPU, progress=Silent())
    expected = losses(tmp_path / "alone")
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-5) and len(expected) == 3

"""What machines and people do to a run: one sentence each, and what was written stays."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from s2v_core.errors import ConfigError, Interrupted, OutputError
from s2v_core.train import main
from s2v_core.training.faults import in_words

from .test_runs import losses

ROOT = Path(__file__).parents[2]


def more_than_there_is():
    return torch.empty(1 << 60, dtype=torch.uint8)


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    "work, kind, message",
    [
        (more_than_there_is, OutputError, "out of memory: .*batch_size"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")), OutputError, "out of memory"),
        (raising(KeyboardInterrupt()), Interrupted, "stopped; what is written stays"),
        (lambda: open("/nowhere/x"), OutputError, "No such file or directory: /nowhere/x"),
        (raising(RuntimeError("a bug")), RuntimeError, "a bug"),
        (raising(ConfigError("as it is")), ConfigError, "as it is"),
    ],
)
def test_what_the_machine_raises_is_put_into_words(work, kind, message):
    with pytest.raises(kind, match=message), in_words():
        work()


@pytest.fixture
def path(settings, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, "run": {**settings["run"], "save_every": 1}}))
    return path


def test_memory_that_runs_out_in_a_step_is_said_with_what_helps(path, monkeypatch, caplog):
    def step(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("s2v_core.training.trainer.Trainer.train_step", step)
    assert main(["--config", str(path), "--quiet"]) == 1
    assert "checkpoint_blocks: true" in caplog.text and "Traceback" not in caplog.text


def test_what_nobody_has_foreseen_is_one_line_and_debug_shows_the_rest(path, monkeypatch, caplog):
    def step(self):
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr("s2v_core.training.trainer.Trainer.train_step", step)
    assert main(["--config", str(path), "--quiet"]) == 1
    assert "ZeroDivisionError: division by zero; run again with --debug" in caplog.text
    with pytest.raises(ZeroDivisionError):
        main(["--config", str(path), "--quiet", "--debug"])


def test_a_disk_that_takes_no_more_leaves_what_it_has_and_the_run_goes_on_there(path, tmp_path):
    assert main(["--config", str(with_steps(path, 2)), "--quiet"]) == 0
    kept = sorted((tmp_path / "out/checkpoints").iterdir())
    sizes = [file.stat().st_size for file in kept]
    limit = min(sizes) // 2   # no file may grow beyond it: a disk that is full, as far as a program can see

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [sys.executable, "-m", "s2v_core.train", "--config", str(with_steps(path, 4)), "--quiet", "--device", "cpu"]
    done = subprocess.run(words, cwd=ROOT, preexec_fn=full, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "step-00000003.checkpoint cannot be written" in done.stderr and "earlier ones are kept" in done.stderr
    assert sorted((tmp_path / "out/checkpoints").iterdir()) == kept
    assert main(["--config", str(path), "--quiet"]) == 0
    assert list(losses(tmp_path / "out")) == [1, 2, 3, 4]


def with_steps(path, steps):
    settings = yaml.safe_load(path.read_text())
    settings["run"]["steps"] = steps
    path.write_text(yaml.safe_dump(settings))
    return path

"""Work that stops midway: what is said, what is kept, and that the same command ends with the same video."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from s2v_core.cli import main
from s2v_core.media import video_io
from s2v_core.video import take

from .media import picture, pictures_of, tone
from .paths import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture and a sound that take two short clips."""
    folder = tmp_path_factory.mktemp("going on")
    picture(folder / "face.png", 80, 64)
    tone(folder / "speech.wav", seconds=0.7)
    return folder


def words(folder, output) -> list[str]:
    argv = ["generate", "--image", folder / "face.png", "--audio", folder / "speech.wav", "-o", output]
    argv += ["--prompt", "a person", "--steps", "1", "--size", "64x64", "--fps", "120", "--device", "cpu"]
    return [str(word) for word in argv]


@pytest.fixture(scope="module")
def expected(folder):
    """The uninterrupted run's frames."""
    assert main(words(folder, folder / "whole.mp4")) == 0
    frames = pictures_of(folder / "whole.mp4")
    assert len(frames) == 84 and not (folder / "whole.mp4.take").exists()
    return frames


def run(folder, output, capsys):
    capsys.readouterr()
    return main(words(folder, output)), capsys.readouterr().err


def ends_the_same(folder, output, capsys, expected, *, clips_made):
    code, err = run(folder, output, capsys)
    assert code == 0 and err.count(" done") == clips_made
    assert np.array_equal(pictures_of(output), expected)


def refuse(monkeypatch, module, name, *, call):
    """Let a function's `call`-th call meet a full disk."""
    real, calls = getattr(module, name), []

    def full(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, full)
    return calls


def test_a_disk_that_fills_up_costs_one_clip(folder, expected, capsys, monkeypatch):
    output = folder / "full.mp4"
    with monkeypatch.context() as patch:
        calls = refuse(patch, take, "save_file", call=3)   # latents and memory of clip 1, then the latents of clip 2
        code, err = run(folder, output, capsys)
    assert len(calls) == 3 and code == 1 and "the disk is full" in err and "Traceback" not in err
    assert f"{output}.take" in err and not output.exists()
    ends_the_same(folder, output, capsys, expected, clips_made=1)


def test_a_disk_that_is_full_at_the_end_costs_no_clip(folder, expected, capsys, monkeypatch):
    output = folder / "end.mp4"
    output.write_bytes(b"yesterday's")
    with monkeypatch.context() as patch:
        real = video_io.join_segments
        patch.setattr("s2v_core.pipeline.join_segments", lambda *a, **k: _on_a_full_disk(patch, real, *a, **k))
        code, err = run(folder, output, capsys)
    assert code == 1 and "the disk is full" in err and output.read_bytes() == b"yesterday's"
    ends_the_same(folder, output, capsys, expected, clips_made=0)


def _on_a_full_disk(patch, join, *arguments, **keywords):
    refuse(patch, video_io.os, "replace", call=1)
    return join(*arguments, **keywords)


def test_a_quota_on_file_size_is_one_sentence(folder, expected, capsys):
    output = folder / "quota.mp4"
    done = subprocess.run(
        [sys.executable, "-m", "s2v_core", *words(folder, output)],
        capture_output=True, text=True, cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("wan-s2v: ") and not output.exists()
    ends_the_same(folder, output, capsys, expected, clips_made=2)


def test_ctrl_c_costs_the_clip_in_flight(folder, expected, capsys):
    output = folder / "stopped.mp4"
    process = subprocess.Popen(
        [sys.executable, "-m", "s2v_core", *words(folder, output)], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),   # a background job's parent ignores it
    )  # fmt: skip
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("clip 1 of 2 done"):
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and "Traceback" not in "".join(said)
    assert said[-1] == f"wan-s2v: stopped; finished clips are kept in {output}.take, " \
        "and the same command continues there\n"
    assert not output.exists()
    ends_the_same(folder, output, capsys, expected, clips_made=1)


def test_another_job_does_not_go_on_from_this_take(folder, expected, capsys):
    kept = folder / "mine"
    assert main([*words(folder, folder / "a.mp4"), "--take", str(kept)]) == 0
    capsys.readouterr()
    code = main([*words(folder, folder / "b.mp4"), "--take", str(kept), "--seed", "9"])
    assert code == 2 and "seed" in capsys.readouterr().err and not (folder / "b.mp4").exists()
    assert np.array_equal(pictures_of(folder / "a.mp4"), expected)

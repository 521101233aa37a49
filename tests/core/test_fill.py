"""Filling a take: a clip goes to disk while the next one is begun, and nothing else changes."""

from __future__ import annotations

import os
import threading
from dataclasses import astuple

import pytest
import torch

from s2v_core.errors import Interrupted, OutputError
from s2v_core.types import ClipSettings
from s2v_core.video import fill
from s2v_core.video.take import Take
from s2v_core.video.timeline import plan_clips

from .tiny_codec import REACH, TinyCodec, TinyDenoiser, tiny_conditioning

SETTINGS = ClipSettings(frames=8, motion_frames=9)
PLANS = plan_clips(26, SETTINGS, seed=5, start_from_image=False)   # four clips
PATIENCE = 60   # seconds until a test that waits for another thread gives up


@pytest.fixture(autouse=True)
def raw_segments(monkeypatch):
    """Frames as they are, and no waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(fill, "write_segment", write_segment)


def write_segment(path, pictures, *, fps, tags):
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(b"".join(picture.tobytes() for picture in pictures))
    os.replace(partial, path)


class Log:
    """A watch that writes down what it is told; told `stop_at`, it stops the run."""

    def __init__(self, stop_at=None):
        self.events, self.clip, self.stop_at = [], None, stop_at

    def clip_started(self, plan):
        self.clip = plan.index
        self.events.append(("started", plan.index))

    def step(self, done, total):
        self.events.append(("step", self.clip, done))
        if self.stop_at == (self.clip, done):
            raise Interrupted("stopped")

    def clip_finished(self, clip):
        self.events.append(("finished", clip.plan.index))


def run(folder, *, watch=None, denoiser=None, **settings):
    codec = TinyCodec()
    with Take.open(folder, {"job": 1}, [{"plan": astuple(plan)} for plan in PLANS]) as take:
        fill.fill_take(
            take, PLANS, tiny_conditioning(codec), denoiser or TinyDenoiser(), codec, SETTINGS,
            continuity="exact", decoder_reach=REACH, watch=watch or Log(), **settings,
        )  # fmt: skip


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "take.lock"
    }


class Waiting(TinyDenoiser):
    """Lets the clip before go to disk only once the next one is begun."""

    def __init__(self):
        super().__init__()
        self.begun = threading.Event()

    def __call__(self, inputs, noise, on_step):
        if inputs.index:
            self.begun.set()
        return super().__call__(inputs, noise, on_step)


def test_the_next_clip_is_begun_while_one_goes_to_disk(tmp_path, monkeypatch):
    denoiser = Waiting()

    def write_once_begun(path, pictures, *, fps, tags):
        assert denoiser.begun.wait(PATIENCE) or path.name == "0003.mp4"
        write_segment(path, pictures, fps=fps, tags=tags)

    monkeypatch.setattr(fill, "write_segment", write_once_begun)
    run(tmp_path, denoiser=denoiser)
    assert Take.count_finished(tmp_path, {"job": 1}, [{"plan": astuple(plan)} for plan in PLANS]) == 4


def test_the_files_are_those_of_clips_stored_one_by_one(tmp_path):
    run(tmp_path / "beside")
    run(tmp_path / "one by one", one_by_one=True)
    assert files(tmp_path / "beside") == files(tmp_path / "one by one")


def test_a_host_that_computes_in_inference_mode_gets_the_same_files(tmp_path):
    """The mode is a thread's own, and what was made in it is stored by another."""
    run(tmp_path / "plain")
    with torch.inference_mode():
        run(tmp_path / "host")
    assert files(tmp_path / "host") == files(tmp_path / "plain")


def test_a_clip_is_finished_before_the_next_ones_first_step_is_told(tmp_path):
    watch = Log()
    run(tmp_path, watch=watch)
    expected = []
    for i in range(4):
        expected += [("started", i), *([("finished", i - 1)] if i else []), *(("step", i, n) for n in (1, 2, 3))]
    assert watch.events == [*expected, ("finished", 3)]


@pytest.mark.parametrize("short_of", ["memory", "nothing, but asked for"])
def test_clips_are_stored_one_by_one_where_memory_is_short_or_pictures_ask_for_it(tmp_path, monkeypatch, short_of):
    if short_of == "memory":
        monkeypatch.setattr(fill, "free_memory", lambda device: 0)
    watch = Log()
    run(tmp_path, watch=watch, one_by_one=short_of != "memory")
    order = [event for event in watch.events if event[0] != "step"]
    assert order == [event for i in range(4) for event in (("started", i), ("finished", i))]


def test_a_run_that_is_stopped_keeps_the_clip_on_its_way_to_disk(tmp_path, monkeypatch):
    """Stopped in the next clip's first step: it has told nobody of the clip before, which is kept all the same."""
    denoiser = Waiting()

    def write_once_begun(path, pictures, *, fps, tags):
        assert denoiser.begun.wait(PATIENCE)
        write_segment(path, pictures, fps=fps, tags=tags)

    class Stopping(Log):
        def clip_finished(self, clip):
            raise Interrupted("stopped")

    monkeypatch.setattr(fill, "write_segment", write_once_begun)
    with pytest.raises(Interrupted):
        run(tmp_path, watch=Stopping(), denoiser=denoiser)
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["0000.mp4"]
    monkeypatch.setattr(fill, "write_segment", write_segment)
    run(tmp_path)
    run(tmp_path / "whole")
    assert files(tmp_path)["clips/0003.mp4"] == files(tmp_path / "whole")["clips/0003.mp4"]


@pytest.mark.parametrize("failing", ["0001.mp4", "0003.mp4"])
def test_a_disk_that_refuses_ends_the_run_and_finished_clips_stay(tmp_path, monkeypatch, failing):
    def write_or_refuse(path, pictures, *, fps, tags):
        if path.name == failing:
            raise OSError(28, "No space left on device")
        write_segment(path, pictures, fps=fps, tags=tags)

    monkeypatch.setattr(fill, "write_segment", write_or_refuse)
    watch = Log()
    with pytest.raises(OutputError, match="the disk is full"):
        run(tmp_path, watch=watch)
    num_kept = int(failing[:4])
    assert len(list((tmp_path / "clips").iterdir())) == num_kept
    assert ("finished", num_kept - 1) in watch.events and ("finished", num_kept) not in watch.events


def test_when_a_stopped_run_cannot_store_its_last_clip_either_a_warning_says_so(tmp_path, monkeypatch, caplog):
    denoiser = Waiting()

    def refuse_once_begun(path, pictures, *, fps, tags):
        assert denoiser.begun.wait(PATIENCE)
        raise OSError(28, "No space left on device")

    class Breaking(Waiting):
        def __call__(self, inputs, noise, on_step):
            latents = super().__call__(inputs, noise, on_step) if not inputs.index else None
            if latents is None:
                denoiser.begun.set()
                raise RuntimeError("out of memory")
            return latents

    monkeypatch.setattr(fill, "write_segment", refuse_once_begun)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, denoiser=Breaking())
    assert "the disk is full" in caplog.text

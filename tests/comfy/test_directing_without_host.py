"""Poses, written words and frame rates in the nodes, with the host faked as thinly as possible."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from ..core.checkpoints_tiny import CONFIG
from .fake_host import load_pack, part
from .test_without_host import SIDE, T, both_transformers, directions


@pytest.fixture
def pack(monkeypatch, tmp_path):
    return load_pack(monkeypatch, tmp_path)


# ---- poses -----------------------------------------------------------------------------------------------------------


def test_below_its_timestep_a_pose_is_left_out_and_both_clips_are_prepared_once(pack, monkeypatch):
    _, hosted = both_transformers(pack)
    made = []
    prepare = hosted.prepare_clip
    monkeypatch.setattr(hosted, "prepare_clip", lambda **given: made.append(1) or prepare(**given))
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()

    def step(timestep, **extra):
        return hosted(x, torch.tensor([timestep]), context, {"uuids": ["a"]}, **{**given, **extra})

    early, late = step(700.0, pose_until=500.0), step(300.0, pose_until=500.0)
    step(200.0, pose_until=500.0)
    assert len(made) == 1
    hosted.constants.forget()
    assert torch.equal(early, step(700.0)) and not torch.allclose(late, step(300.0), atol=1e-4)
    hosted.constants.forget()
    assert torch.equal(late, step(300.0, control_video=None))


@pytest.mark.parametrize("steps, until", [(None, None), (1, 850.0), (2, 550.0), (3, None), (9, None)])
def test_the_model_is_told_how_long_a_clip_follows_its_pose(pack, steps, until):
    denoiser = object.__new__(part(pack, "nodes.sampling").HostDenoiser)
    denoiser.levels = SimpleNamespace(sigmas=torch.tensor([1.0, 0.7, 0.4, 0.0]))
    posed = SimpleNamespace(pose_steps=steps, pose_latents=torch.zeros(1))
    free = SimpleNamespace(pose_steps=steps, pose_latents=None)
    expected = {} if until is None else {"pose_until": pytest.approx(until)}
    assert (denoiser._pose_limit(posed), denoiser._pose_limit(free)) == (expected, {})


def test_the_hosts_own_model_follows_a_pose_in_every_step_or_not_at_all(pack):
    with pytest.raises(Exception, match="load the model with S2V Load Model, or set pose_steps to 0"):
        part(pack, "nodes.model").check_pose_steps(SimpleNamespace(model=object()))


def test_footage_without_its_package_names_the_line_that_brings_it(pack, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.holistic", None)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    (tmp_path / "dancer.mp4").write_bytes(b"footage")
    video = part(pack, "nodes.host").video_file(tmp_path / "dancer.mp4")
    with pytest.raises(Exception, match="pip install 'mediapipe"):
        part(pack, "nodes.footage").drawn_video(video, 16.0, node_id=None)


@pytest.mark.parametrize("rate, fps, shown", [
    (50, 16, [0, 3, 6, 9, 12, 15, 18, 21]), (8, 16, [0, 0, 1, 1, 2, 2, 3, 3]), (16, 16, [0, 1, 2, 3, 4, 5, 6, 7]),
])  # fmt: skip
def test_poses_are_drawn_of_the_frames_that_a_player_shows(pack, rate, fps, shown):
    frames = (SimpleNamespace(seconds=round(i / rate, 3), number=i) for i in range(100))
    found = part(pack, "nodes.footage").frames_at(frames, fps, len(shown))
    assert [frame.number for frame in found] == shown


# ---- written words ---------------------------------------------------------------------------------------------------


def test_written_words_are_spoken_once_and_kept_in_the_output_folder(pack, tmp_path, monkeypatch):
    say = part(pack, "nodes.say").Say.execute
    (audio,) = say("Good morning.", "en-us").args
    (wav,) = (tmp_path / "output" / "wan_s2v").glob("speech.say-*.wav")
    seconds = audio["waveform"].shape[2] / audio["sample_rate"]
    assert 0.5 < seconds < 3 and audio["waveform"].abs().max() > 0.05
    written = wav.stat().st_mtime_ns
    (again,) = say("Good morning.", " en-us ").args
    assert torch.equal(again["waveform"], audio["waveform"]) and wav.stat().st_mtime_ns == written


def test_nothing_to_say_is_refused(pack):
    with pytest.raises(Exception, match="there is nothing to say"):
        part(pack, "nodes.say").Say.execute(" ...", "en-us")

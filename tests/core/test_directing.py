"""Storyboards and re-use through the whole pipeline, on the bundled model: short clips of 80 frames at 120 a second."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch

from s2v_core.cli import main
from s2v_core.components import Components
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.errors import ConfigError, MediaError
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import read_frames
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.pipeline import WanS2VPipeline
from s2v_core.request import Request
from s2v_core.video.storyboard import parse_storyboard

from ..cli.media import picture, tone
from ..cli.paths import ROOT

FPS = 120.0
SECONDS = 2.0   # 240 frames: clips begin at frames 0, 77, 157 and 237
BOARD = "she talks\n0:01.3 [seed 50, guidance 2] she laughs\nclip 4 [image other.png] she talks\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("directing")
    picture(folder / "face.png", 64, 64)
    picture(folder / "other.png", 96, 80)
    tone(folder / "speech.wav", seconds=SECONDS)
    (folder / "board.txt").write_text(BOARD)
    return folder


@pytest.fixture(scope="module")
def pipe():
    return WanS2VPipeline.from_pretrained(device_map="cpu")


def request(folder, output, **values):
    size = VideoSize(width=64, height=64)
    given = {"image": folder / "face.png", "audio": folder / "speech.wav", "output": output, "size": size, "fps": FPS,
             "steps": 1, **values}  # fmt: skip
    return Request(**given)


@pytest.fixture
def seen(monkeypatch):
    """What the denoiser was given for each clip that was rendered, and how often the transformer ran for it."""
    inputs, passes = [], []
    plain, branches = TransformerDenoiser.__call__, WanS2VTransformer.branches

    def counted(self, latents, timestep, clips):
        passes.extend(clips)
        return branches(self, latents, timestep, clips)

    monkeypatch.setattr(WanS2VTransformer, "branches", counted)

    def listening(self, given, noise, on_step):
        before = len(passes)
        latents = plain(self, given, noise, on_step)
        inputs.append((given, noise, len(passes) - before))
        return latents

    monkeypatch.setattr(TransformerDenoiser, "__call__", listening)
    return inputs


def test_each_prompt_is_encoded_once_and_reaches_its_clips_with_seed_guidance_and_picture(
    pipe, folder, tmp_path, seen, monkeypatch
):
    asked = []
    encode = Components.encode_prompts
    monkeypatch.setattr(Components, "encode_prompts", lambda self, texts: asked.append(texts) or encode(self, texts))
    board = tmp_path / "board.txt"
    board.write_text("she talks\n0:01.3 [seed 50, guidance 1] she laughs\n"
                     f"clip 4 [guidance 3, image {folder / 'other.png'}] she talks\n")  # fmt: skip
    pipe.run(request(folder, tmp_path / "out.mp4", prompt="unused", negative_prompt="blur", storyboard=board))
    assert asked == [["she talks", "she laughs", "blur"]]
    talks, laughs, blur = encode(pipe.components, asked[0])
    for (given, noise, passes), prompt, seed, evaluations in zip(
        seen, (talks, talks, laughs, talks), (0, 1, 50, 51), (2, 2, 1, 2), strict=True
    ):
        assert torch.equal(given.prompt_embeds, prompt) and torch.equal(given.negative_prompt_embeds, blur)
        assert torch.equal(noise, torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed)))
        assert passes == evaluations
    first, *_, last = (given.reference_latent for given, _, _ in seen)
    assert all(torch.equal(given.reference_latent, first) for given, _, _ in seen[:3]) and not torch.equal(first, last)


def test_one_scene_is_the_plain_video(pipe, folder, tmp_path):
    board = tmp_path / "one.txt"
    board.write_text("she talks")
    pipe.run(request(folder, tmp_path / "plain.mp4", prompt="she talks", num_frames=100))
    pipe.run(request(folder, tmp_path / "board.mp4", storyboard=board, num_frames=100))
    plain, directed = (list(read_frames(tmp_path / f"{name}.mp4")) for name in ("plain", "board"))
    assert np.array_equal(plain, directed)


def test_the_plan_says_at_which_clip_each_change_takes_effect(folder, tmp_path, capsys):
    board = tmp_path / "board.txt"
    board.write_text("she talks\n0:01.2 she laughs\n0:09 she leaves\n")
    words = ["generate", "--image", folder / "face.png", "--audio", folder / "speech.wav", "-o", tmp_path / "out.mp4",
             "--fps", "120", "--storyboard", board, "--dry-run"]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "scene   from clip 1 (0:00.00): she talks\n" in said
    assert "scene   from clip 3 (0:01.31, asked for at 0:01.20): she laughs\n" in said
    assert "note    the scene of 0:09.00 (she leaves) lies past the end and is not seen" in said


def test_a_bad_storyboard_is_one_sentence_before_anything_starts(folder, tmp_path, capsys):
    board = tmp_path / "board.txt"
    board.write_text("she talks\n0:99 she laughs\n")
    words = ["generate", "--image", folder / "face.png", "--audio", folder / "speech.wav", "-o", tmp_path / "out.mp4",
             "--storyboard", board]  # fmt: skip
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"line 2 of {board}: '0:99' is no time" in error
    assert not (tmp_path / "out.mp4.take").exists()


def test_a_scenes_picture_that_is_not_there_is_named_before_anything_starts(pipe, folder, tmp_path):
    board = tmp_path / "board.txt"
    board.write_text("she talks\n0:01 [image gone.png]\n")
    with pytest.raises(MediaError, match="gone.png"):
        pipe.plan(request(folder, tmp_path / "out.mp4", storyboard=board))


def test_a_changed_scene_renders_only_its_own_clips_and_those_after_it(pipe, folder, tmp_path, seen):
    board, take = folder / "board.txt", tmp_path / "take"
    pipe.run(request(folder, tmp_path / "a.mp4", storyboard=board, take=take))
    assert len(seen) == 4
    changed = folder / "changed.txt"
    changed.write_text(BOARD.replace("she laughs", "she frowns"))
    seen.clear()
    plan = pipe.plan(request(folder, tmp_path / "b.mp4", storyboard=changed, take=take))
    assert plan.finished_clips == 2 and f"2 already finished in {take}" in str(plan)
    pipe.run(request(folder, tmp_path / "b.mp4", storyboard=changed, take=take))
    assert [given.index for given, _, _ in seen] == [2, 3]
    pipe.run(request(folder, tmp_path / "fresh.mp4", storyboard=changed))
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "fresh.mp4").read_bytes()


def test_a_longer_video_from_the_command_line_renders_only_what_is_missing(folder, tmp_path, seen, caplog):
    def run(output, *more):
        words = ["generate", "--image", folder / "face.png", "--audio", folder / "speech.wav", "-o", tmp_path / output,
                 "--fps", "120", "--size", "64x64", "--steps", "1", "--quiet", *more]  # fmt: skip
        assert main([str(word) for word in words]) == 0
        indices = [given.index for given, _, _ in seen]
        seen.clear()
        return indices

    caplog.set_level(logging.INFO)
    take = ("--take", tmp_path / "take")
    assert run("short.mp4", "--frames", "170", *take) == [0, 1, 2]
    assert run("long.mp4", *take) == [2, 3], "the third was cut short"
    assert run("long.mp4", *take) == []
    assert "decoding" not in caplog.text, "the memory before the third was kept"
    assert run("fresh.mp4") == [0, 1, 2, 3]
    assert (tmp_path / "long.mp4").read_bytes() == (tmp_path / "fresh.mp4").read_bytes()


def test_longer_sound_keeps_the_clips_that_heard_the_same(pipe, folder, tmp_path, seen):
    tone(tmp_path / "short.wav", seconds=1.5)   # 180 frames: 77, 157 and a part
    short = request(folder, tmp_path / "a.mp4", audio=tmp_path / "short.wav", take=tmp_path / "take")
    pipe.run(short)
    seen.clear()
    pipe.run(request(folder, tmp_path / "b.mp4", take=tmp_path / "take"))
    assert [given.index for given, _, _ in seen] == [2, 3]


@pytest.mark.parametrize("change, name", [({"audio": "other.wav"}, "audio"), ({"steps": 2}, "sampler.steps")])
def test_another_job_is_refused_a_take_and_its_plan_says_so_before(pipe, folder, tmp_path, change, name):
    tone(folder / "other.wav", seconds=SECONDS, rate=8000)
    given = {"take": tmp_path / "take", "num_frames": 77}
    pipe.run(request(folder, tmp_path / "a.mp4", **given))
    change = {key: folder / value if isinstance(value, str) else value for key, value in change.items()}
    other = request(folder, tmp_path / "a.mp4", **given, **change)
    for attempt in (pipe.plan, pipe.run):
        with pytest.raises(ConfigError, match=rf"\({name} differs\)"):
            attempt(other)


def test_the_readmes_storyboard_is_read():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (board,) = re.findall(r"^```text\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert len(parse_storyboard(board)) == 4

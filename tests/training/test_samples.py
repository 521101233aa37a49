"""Clips that a run generates as it goes: what `generate` makes of its weights, scored by mouths, disturbing nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.checkpoints.official import read_model_config
from s2v_core.errors import ConfigError
from s2v_core.media.video_io import probe_video, read_frames
from s2v_core.pipeline import WanS2VPipeline
from s2v_core.request import Request
from s2v_core.training.config import PrecomputeConfig, TrainConfig, from_settings
from s2v_core.training.encoders import ModelEncoders
from s2v_core.training.footage import find_footage
from s2v_core.training.precompute import precompute
from s2v_core.training.run import make_trainer, train
from s2v_core.training.samples import Samples
from s2v_core.training.synthetic import SyntheticClip
from s2v_core.training.validate import Validation

from .test_runs import CPU, Silent, losses
from .test_windows import make_folder

BUNDLED = Path(__file__).parents[2] / "s2v_core/bundled"
FRAMES = 8


@pytest.fixture
def bundled(tmp_path):
    """A short run of the bundled model over clips of 8 frames."""
    drawn = {"source": "synthetic", "num_videos": 2, "video_frames": 90, "clip_frames": FRAMES, "prompts": "text"}
    return {
        "name": "bundled",
        "model": {"config": str(BUNDLED / "model.json"), "text_encoder": "trained"},
        "precompute": {**drawn, "windows": str(tmp_path / "windows"), "first_share": 1.0},
        "precompute_validation": {**drawn, "held_out": True},
        "data": {"windows": [str(tmp_path / "windows")], "first_clip": 1.0, "batch_size": 2},
        "optimizer": {"learning_rate": "1e-3", "ema": 0.9},
        "run": {"output": str(tmp_path / "out"), "steps": 3, "save_every": 3, "export_dtype": "fp32"},
    }


@pytest.fixture
def config_of(bundled):
    settings = from_settings(TrainConfig, bundled, "test").precompute
    precompute(find_footage(settings), ModelEncoders(None, device=CPU, with_text=False), settings)
    return lambda **run: from_settings(TrainConfig, {**bundled, "run": {**bundled["run"], **run}}, "test")


def test_a_run_that_generates_as_it_goes_has_the_losses_of_one_that_does_not(config_of, tmp_path):
    plain = config_of(output=str(tmp_path / "plain"))
    train(plain, device=CPU, progress=Silent())
    train(config_of(validate_every=2, validate_clips=2, validate_steps=1), device=CPU, progress=Silent())
    assert losses(tmp_path / "out") == losses(tmp_path / "plain") and len(losses(tmp_path / "plain")) == 3
    entries = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    (scores,) = [entry["samples"] for entry in entries if "samples" in entry]
    assert scores.keys() == {"mouth_r", "worst_mouth_r", "other_r", "lag"}
    assert -1 <= scores["worst_mouth_r"] <= scores["mouth_r"]
    written = sorted((tmp_path / "out/samples").iterdir())
    assert [path.name for path in written] == ["step-00000002-0.mp4", "step-00000002-1.mp4"]
    assert {len(list(read_frames(path))) for path in written} == {FRAMES - 3}
    assert all(probe_video(path).audio_codec for path in written)


def test_a_sample_is_what_generate_makes_of_the_exported_weights(bundled, config_of, tmp_path):
    folder = make_folder(tmp_path / "videos", size=(64, 64))
    footage = {"source": str(folder), "clip_frames": FRAMES, "prompts": "text"}
    bundled["precompute_validation"] = footage
    config = config_of(validate_every=1, validate_clips=1, validate_steps=2)
    train(config, device=CPU, progress=Silent())
    model = tmp_path / "model"
    shutil.copytree(BUNDLED, model)
    for path in (tmp_path / "out/export").iterdir():
        shutil.copy(path, model / path.name)
    picture = next(read_frames(folder / "a.mp4"))
    Image.fromarray(picture).save(tmp_path / "face.png")
    request = Request(image=tmp_path / "face.png", audio=folder / "a.wav", prompt="noise", steps=2, seed=0,
                      num_frames=FRAMES - 3, clip_frames=FRAMES, output=tmp_path / "video.mp4")  # fmt: skip
    WanS2VPipeline.from_pretrained(model, device_map="cpu", torch_dtype=torch.float32).run(request)
    sampled, generated = (list(read_frames(path)) for path in (tmp_path / "out/samples/step-00000003-0.mp4",
                                                               tmp_path / "video.mp4"))  # fmt: skip
    assert len(sampled) == len(generated) == FRAMES - 3
    assert all(np.array_equal(a, b) for a, b in zip(sampled, generated, strict=True))


def test_scores_tell_faces_that_talk_and_leave_random_numbers_as_they_were():
    footage = PrecomputeConfig(source="synthetic", num_videos=2, video_frames=80, prompts="text", held_out=True)
    samples = Samples(footage, read_model_config(BUNDLED / "model.json"), num_clips=2, steps=1, encodes_prompts=True,
                      device=CPU)  # fmt: skip
    truth = [SyntheticClip(seed, num_frames=80, width=64, height=64, held_out=True).frames(0, 77) for seed in (0, 1)]

    def scores(pictures):
        drawn = iter(pictures)

        def generate(student, scene):
            torch.rand(3)   # a model may draw numbers
            return next(drawn)

        samples.generate, before = generate, torch.get_rng_state()
        found = samples.make(None, None)
        assert torch.equal(torch.get_rng_state(), before)
        return found

    good, swapped, late = scores(truth), scores(truth[::-1]), scores([np.roll(t, 2, 0) for t in truth])
    assert good["worst_mouth_r"] > 0.8 and good["lag"] == 0
    assert swapped["mouth_r"] < 0.4 and late["lag"] == 2 and good["other_r"] == swapped["mouth_r"]
    assert scores([np.repeat(t[:1], 77, 0) for t in truth])["mouth_r"] == 0
    noise = np.random.default_rng(0).integers(0, 255, truth[0].shape, np.uint8)
    assert -1 <= scores([noise, noise])["mouth_r"] <= 1


def test_a_sample_that_cannot_be_written_does_not_end_the_run(config_of, tmp_path, caplog):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/samples").write_text("in the way")
    config = config_of(validate_every=1, validate_clips=1, validate_steps=1)
    assert Validation(config, device=CPU).measure(make_trainer(config, device=CPU))["samples"]
    assert "step-00000000" in caplog.text and "is not written" in caplog.text


def test_a_run_with_nothing_to_validate_is_refused_before_its_first_step(config_of, bundled):
    with pytest.raises(ConfigError, match="validate_every needs windows to measure .* or clips"):
        train(config_of(validate_every=1), device=CPU, progress=Silent())
    bundled["precompute_validation"]["num_videos"] = 0
    with pytest.raises(ConfigError, match="not one of 0 videos"):
        train(config_of(validate_every=1, validate_clips=1), device=CPU, progress=Silent())


def test_samples_are_of_videos_that_can_be_opened(tmp_path, caplog):
    folder = make_folder(tmp_path / "videos", size=(64, 64))
    rows = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(reversed(rows)))
    footage = PrecomputeConfig(source=str(folder), clip_frames=FRAMES)
    samples = Samples(footage, read_model_config(BUNDLED / "model.json"), num_clips=3, steps=1, encodes_prompts=False,
                      device=CPU)  # fmt: skip
    assert len(samples.scenes) == 1 < len(find_footage(footage)) and "missing.mp4" in caplog.text
    embeds = samples.scenes[0].conditioning.prompt_embeds
    assert embeds.shape[0] == 1 and embeds.shape[1] > 1

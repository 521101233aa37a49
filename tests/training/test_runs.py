"""Whole runs: settings, logs, checkpoints, resuming after a kill, exporting, and what people are told."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from s2v_core.checkpoints.loading import load_model
from s2v_core.cli import main as command
from s2v_core.config import WAN_S2V_14B, ModelConfig
from s2v_core.errors import CheckpointError, ConfigError, Interrupted, OutputError
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.text_encoder import build_text_encoder
from s2v_core.train import main
from s2v_core.training.checkpoint import checkpoints, load_checkpoint, load_newest, save_checkpoint
from s2v_core.training.command import TrainProgress, dry_run, lacks_weights, with_validation
from s2v_core.training.config import ModelSource, RunConfig, TrainConfig, from_settings, read_train_config
from s2v_core.training.precompute import PrecomputeReport
from s2v_core.training.run import export, make_trainer, train
from s2v_core.training.setup import SHARED, build_prompts, build_student, build_transformer
from s2v_core.training.trainer import StepReport
from s2v_core.training.validate import Validation
from s2v_core.training.windows import load_empty_prompt, save_empty_prompt, save_window

from .test_windows import some_window
from .tiny import CONFIG, TEXT, tiny_transformer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Silent:
    def started(self, step, steps):
        pass

    def stepped(self, report):
        pass

    def close(self):
        pass


def config_of(settings, **run):
    return from_settings(TrainConfig, {**settings, "run": {**settings["run"], **run}}, "test")


def losses(output):
    entries = [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimiser": {}}, "sets optimiser, which is not a setting; did you mean optimizer?"),
        ({"run": {"setps": 3}}, "run sets setps, which is not a setting; did you mean steps?"),
        ({"run": {"steps": "many"}}, "steps must be a whole number, got 'many'"),
        ({"run": {"steps": True}}, "steps must be a whole number, got True"),
        ({"run": {"steps": 0}}, "steps must be 1 or more, got 0"),
        ({"objective": {"drop_sound": 2}}, "drop_sound is a probability, 0 to 1; got 2"),
        ({"objective": {"sigma_sampling": "normal"}}, "one of logit-normal, uniform; got 'normal'"),
        ({"optimizer": {"betas": 3}}, "betas is a list, got 3"),
        ({"optimizer": {"betas": [0.9]}}, "betas are two numbers"),
        ({"optimizer": {"betas": [0.9, 1]}}, "of at least 0 and below 1, got"),
        ({"optimizer": {"learning_rate": "inf"}}, "learning_rate must be a number above 0, got inf"),
        ({"optimizer": {"eps": -1}}, "eps must be a number above 0, got -1"),
        ({"model": "14B"}, "model holds settings of its own, got '14B'"),
        ({"precompute": {"clip_frames": 81}}, "clip_frames is a multiple of 4"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_meant(tmp_path, changes, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "x", **changes}))
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        read_train_config(path)


def test_settings_without_a_name_files_that_are_missing_and_text_that_is_no_yaml_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_train_config(path)
    told = {b"run: {}": "lacks name", b"a: [": "is not YAML", b"- 1": "describes no training run", b"\xff": "not text"}
    for text, message in told.items():
        path.write_bytes(text)
        with pytest.raises(ConfigError, match=message):
            read_train_config(path)


def test_every_shipped_recipe_can_be_read():
    shipped = [*(ROOT / "configs").rglob("transformer*.yaml"), *(ROOT / "configs").glob("*.yaml")]
    assert {"stage1-audio", "finetune", "lora"} <= {path.stem for path in shipped}
    for path in shipped:
        assert read_train_config(path).name


# ---- runs ----------------------------------------------------------------------------------------------------------


def test_a_run_logs_every_step_keeps_the_newest_checkpoints_and_exports(settings, tmp_path):
    result = train(config_of(settings, validate_every=4, validation_batches=2), device=CPU, progress=Silent())
    assert result.steps == 8 and list(losses(tmp_path / "out")) == list(range(1, 9))
    assert [path.name for path in checkpoints(tmp_path / "out/checkpoints")] == [
        "step-00000006.checkpoint", "step-00000008.checkpoint"
    ]  # fmt: skip
    entries = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    measured = [entry["validation"] for entry in entries if "validation" in entry]
    assert len(measured) == 2 and set(measured[0]) == {"0.2", "0.5", "0.8", "0.95", "mean"}
    assert measured[0] != measured[1]


def test_exported_files_load_as_models_and_hold_the_averaged_weights(settings, tmp_path):
    config = config_of(settings)
    train(config, device=CPU, progress=Silent())
    out = tmp_path / "out/export"
    model = load_model(out / "transformer.safetensors", "transformer", lambda: WanS2VTransformer(CONFIG))
    text = load_model(out / "text_encoder.safetensors", "text_encoder", lambda: build_text_encoder(TEXT))
    average = make_trainer(config, device=CPU).average.weights
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(weights.float(), average[f"transformer.{name}"], atol=0, rtol=4e-3)
    for name, weights in text.named_parameters():
        assert torch.equal(weights, average[f"prompts.encoder.{name}"])
    assert model.patch_embedding.weight.dtype == torch.bfloat16 and model.patch_embedding.bias.dtype == torch.float32


def test_a_longer_run_goes_on_from_a_shorter_one_and_says_what_changed(settings, tmp_path, caplog):
    train(config_of(settings, steps=4), device=CPU, progress=Silent())
    train(config_of(settings, steps=6), device=CPU, progress=Silent())
    assert list(losses(tmp_path / "out")) == list(range(1, 7))
    assert "run: steps was 4 when the run was saved, now it is 6" in caplog.text


def test_the_same_settings_give_the_same_losses_bit_for_bit(settings, tmp_path):
    for name in ("one", "two"):
        train(config_of(settings, output=str(tmp_path / name)), device=CPU, progress=Silent())
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def start(folder, settings, output):
    path = folder / f"{Path(output).name}.yaml"
    path.write_text(yaml.safe_dump({**settings, "run": {**settings["run"], "output": str(output), "steps": 40}}))
    return subprocess.Popen(
        [sys.executable, "-m", "s2v_core.train", "--config", str(path), "--quiet", "--device", "cpu"],
        cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_step(process, output, step):
    log = Path(output) / "log.jsonl"
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.005)
    assert process.poll() == 0, "the run neither reached the step nor finished"


def test_a_run_killed_five_times_at_random_steps_ends_with_the_losses_of_one_that_was_not(settings, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(tmp_path, settings, whole).wait(900) == 0
    dice, kills = random.Random(7), 0
    for step in sorted(dice.sample(range(4, 38), 5)):
        process = start(tmp_path, settings, killed)
        wait_for_step(process, killed, step)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert start(tmp_path, settings, killed).wait(900) == 0
    assert losses(killed) == losses(whole) and len(losses(whole)) == 40
    assert kills == 5, "it was not killed as often as promised"


def test_sigterm_saves_the_step_at_hand_and_says_how_to_go_on(settings, tmp_path):
    process = start(tmp_path, settings, tmp_path / "out")
    wait_for_step(process, tmp_path / "out", 2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    last = list(losses(tmp_path / "out"))[-1]
    assert process.returncode == 130 and last < 40
    assert f"step {last} is saved, and the same command goes on there" in said.decode()
    assert load_newest(tmp_path / "out/checkpoints")[0]["trainer"]["step"] == last


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"x": torch.ones(3)}, keep=2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left.*earlier ones are kept"):
        save_checkpoint(tmp_path, 2, {"x": torch.ones(3)}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.checkpoint"]
    assert torch.equal(load_newest(tmp_path)[0]["x"], torch.ones(3))


def test_a_broken_checkpoint_is_named(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.ones(300)}, keep=2)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="step-00000001.checkpoint cannot be read"):
        load_checkpoint(path)


def test_windows_without_numbers_end_the_run_with_a_word(settings, tmp_path):
    window = replace(some_window(0), prompt_embeds=None)
    window.latents[:] = float("nan")
    for path in (tmp_path / "windows").iterdir():
        if path.stem < "5":
            save_window(path, window, fingerprint="f", model="m")
    with pytest.raises(OutputError, match="is nan"):
        train(config_of(settings), device=CPU, progress=Silent())


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("data", {"windows": ["nowhere"]}, "nowhere holds no windows; write them with precompute first"),
        ("model", {"text_encoder": "frozen"}, "has no prompt embeds of width 12; precompute again"),
        ("model", {"config": None, "weights": "w"}, "is for another model: its audio_features are of 3 x 6"),
        ("model", {"config": None}, "tiny would train the 14B model from random numbers: set model: weights"),
    ],
)
def test_what_a_run_lacks_is_said_in_one_sentence(settings, tmp_path, caplog, part, changes, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, part: {**settings[part], **changes}}))
    assert main(["--config", str(path), "--quiet"]) == 2
    assert message in caplog.text and "Traceback" not in caplog.text


def test_a_text_encoder_is_only_learnt_with_the_byte_tokenizer():
    with pytest.raises(ConfigError, match="needs a model with the byte tokenizer"):
        build_prompts(WAN_S2V_14B, None, seed=0)


def test_a_folder_without_the_empty_prompts_embeds_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="lacks the embeds of the empty prompt"):
        load_empty_prompt(tmp_path)


def test_processes_that_are_not_connected_are_refused_rather_than_let_write_over_each_other(settings, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were launched, and they are not connected"):
        train(config_of(settings), device=CPU, progress=Silent())


# ---- where weights come from ---------------------------------------------------------------------------------------


def test_training_starts_from_s2v_weights(tmp_path):
    model = tiny_transformer(seed=4)
    save_file(model.state_dict(), tmp_path / "s2v.safetensors")
    found = build_transformer(ModelConfig(name="t", transformer=CONFIG), tmp_path / "s2v.safetensors", seed=0)
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), model.parameters(), strict=True))
    assert all(p.requires_grad for p in found.parameters())


def test_training_starts_from_text_to_video_weights_with_silent_new_modules(tmp_path):
    model = tiny_transformer(seed=4)
    weights = {name: p for name, p in model.state_dict().items() if name.startswith(SHARED)}
    path = tmp_path / "t2v.safetensors"
    save_file(weights, path)
    settings = ModelConfig(name="t", transformer=CONFIG)
    found = build_transformer(settings, path, seed=0).state_dict()
    assert all(torch.equal(found[name], p) for name, p in weights.items())
    assert not found["audio_injector.injector.0.o.weight"].any() and not found["cond_encoder.weight"].any()
    del weights["blocks.1.ffn.2.weight"]
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="lacks blocks.1.ffn.2.weight"):
        build_transformer(settings, path, seed=0)


class Made(TorchDispatchMode):
    """Counts the bytes of tensors that are newly made on the CPU."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type == "cpu" and not func.is_view and out._base is None:
            if not any(isinstance(x, torch.Tensor) and x.data_ptr() == out.data_ptr() for x in args):
                self.bytes += out.nbytes
        return out


@pytest.mark.parametrize("kind", ["s2v", "t2v"])
@pytest.mark.parametrize("trained", ["all", "audio", "lora"])
def test_starting_copies_no_weight_that_does_not_learn_and_draws_none_that_a_file_has(
    settings, tmp_path, trained, kind
):
    weights = {name: p.detach().bfloat16() for name, p in tiny_transformer(seed=4).named_parameters()}
    given = {name: p for name, p in weights.items() if kind == "s2v" or name.startswith(SHARED)}
    save_file(given, tmp_path / "w.safetensors")
    save_empty_prompt(tmp_path / "windows", torch.ones(2, 12), model="m")
    settings["model"] |= {"weights": str(tmp_path / "w.safetensors"), "trained": trained, "frozen_dtype": "bf16",
                          "lora_rank": 1, "text_encoder": "frozen"}  # fmt: skip
    with Made() as made:
        student = build_student(config_of(settings), device=CPU)
    kept = {name.replace(".base_layer", ""): p for name, p in student.named_parameters()}
    assert {(p.requires_grad, p.dtype) for p in kept.values()} <= {(True, torch.float32), (False, torch.bfloat16)}
    for name, tensor in given.items():
        parameter = kept[f"transformer.{name}"]
        assert torch.equal(parameter, tensor.to(parameter.dtype)), name
    fresh = sum(weights[name].numel() * 4 for name in weights.keys() - given.keys())
    learnt = sum(p.nbytes for p in student.trained().values())
    assert made.bytes < 2 * (fresh + learnt) + 10_000


class Moved(TorchDispatchMode):
    """The most bytes that were on the meta device at once."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.is_meta:
            self.now += out.nbytes - (args[0].nbytes if args[0].is_meta else 0)
            self.most = max(self.most, self.now)
        return out


def test_weights_come_to_the_device_block_by_block_so_that_it_never_holds_all_of_them_as_the_file_does(
    settings, tmp_path
):
    save_file(tiny_transformer(seed=4).state_dict(), tmp_path / "w.safetensors")   # float32
    save_empty_prompt(tmp_path / "windows", torch.ones(2, 12), model="m")
    settings["model"] |= {"weights": str(tmp_path / "w.safetensors"), "trained": "lora", "frozen_dtype": "bf16",
                          "lora_rank": 1, "text_encoder": "frozen"}  # fmt: skip
    with Moved() as moved:
        student = build_student(config_of(settings), device=torch.device("meta"))
    kept = sum(p.nbytes for p in student.parameters())
    blocks = [sum(p.nbytes for p in block.parameters()) for block in student.transformer.blocks]
    assert moved.now == kept
    assert moved.most < 2 * kept - blocks[0] * 0.9, "twice as much, but for blocks that were stored already"


def test_what_is_fresh_beside_text_to_video_weights_is_the_same_every_time(tmp_path):
    weights = {name: p for name, p in tiny_transformer().state_dict().items() if name.startswith(SHARED)}
    save_file(weights, tmp_path / "t2v.safetensors")
    first, second = (
        build_transformer(ModelConfig(name="t", transformer=CONFIG), tmp_path / "t2v.safetensors", seed=1).state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(tensor, second[name]) and tensor.isfinite().all() for name, tensor in first.items())


def test_training_does_not_change_the_file_that_it_starts_from(settings, tmp_path):
    save_file(tiny_transformer(seed=4).state_dict(), tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()
    settings["model"]["weights"] = str(tmp_path / "w.safetensors")
    train(config_of(settings, steps=2), device=CPU, progress=Silent())
    assert (tmp_path / "w.safetensors").read_bytes() == before


def test_training_does_not_start_from_something_else(tmp_path):
    save_file({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="training starts from S2V or Wan text-to-video weights"):
        build_transformer(ModelConfig(name="t", transformer=CONFIG), tmp_path / "x.safetensors", seed=0)


# ---- what is said --------------------------------------------------------------------------------------------------


def report(step, loss=2.0):
    return StepReport(
        step=step, loss=loss, grad_norm=1.0, learning_rate=1e-3, num_samples=4, num_tokens=1000, seconds=0.5
    )


def test_the_progress_line_tells_loss_speed_and_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    now = [0.0]
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = TrainProgress(stream, device=CPU, clock=lambda: now[0])
    progress.started(100, 200)
    for step in range(101, 151):
        now[0] += 0.5
        progress.stepped(report(step))
    progress.close()
    line = stream.getvalue().split("\r\x1b[K")[-1]
    for part in ("step 150/200", "0:25 left", "loss 2.0000", "8.00 clips/s", "2000 tokens/s", "GB free"):
        assert part in line
    assert line.count("#") == 15


def test_without_a_terminal_a_line_comes_now_and_then():
    now = [0.0]
    stream = io.StringIO()
    progress = TrainProgress(stream, device=CPU, clock=lambda: now[0])
    progress.started(0, 100)
    for step in range(1, 101):
        now[0] += 1.0
        progress.stepped(report(step))
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4 and "step 30/100" in lines[0] and "1:10 left" in lines[0] and "step 100/100" in lines[-1]


def test_export_writes_the_newest_checkpoint_without_training(settings, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, "run": {**settings["run"], "steps": 3}}))
    assert main(["--config", str(path), "--quiet"]) == 0
    before = losses(tmp_path / "out")
    for file in (tmp_path / "out/export").iterdir():
        file.unlink()
    assert main(["--config", str(path), "--export"]) == 0
    assert (tmp_path / "out/export/transformer.safetensors").exists() and losses(tmp_path / "out") == before


def test_export_needs_neither_windows_nor_as_many_processes_as_the_run(settings, tmp_path):
    path, exported = tmp_path / "run.yaml", tmp_path / "out/export/transformer.safetensors"
    short = {**settings, "run": {**settings["run"], "steps": 3}}
    path.write_text(yaml.safe_dump(short))
    assert main(["--config", str(path), "--quiet"]) == 0
    expected = exported.read_bytes()
    exported.unlink()
    elsewhere = {**short, "parallel": {"data": 4, "ulysses": 2}, "data": {"windows": [str(tmp_path / "not there")]}}
    path.write_text(yaml.safe_dump(elsewhere))
    assert main(["--config", str(path), "--export"]) == 0
    assert exported.read_bytes() == expected
    assert main(["--config", str(path)]) == 2, "a run that makes steps needs both"
    frozen = config_of({**elsewhere, "model": {**settings["model"], "text_encoder": "frozen"}})
    assert build_student(frozen, device=CPU, learns=False).trained()


def test_a_step_is_saved_before_it_is_measured_and_measured_once(settings, tmp_path, monkeypatch):
    config, whole = config_of(settings, validate_every=2, save_every=2, steps=4), Validation.measure

    def no_room(*_):
        raise torch.OutOfMemoryError("no room beside the training")

    monkeypatch.setattr(Validation, "measure", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        train(config, device=CPU, progress=Silent())
    assert [path.stem for path in checkpoints(tmp_path / "out/checkpoints")] == ["step-00000002"]
    monkeypatch.setattr(Validation, "measure", whole)
    for _ in range(2):   # the second time there is nothing left to do
        train(config, device=CPU, progress=Silent())
        entries = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
        assert [(entry["step"], "validation" in entry) for entry in entries] == [
            (1, False), (2, False), (2, True), (3, False), (4, False), (4, True),
        ]  # fmt: skip


def test_a_stop_inside_a_run_is_an_interruption(settings, tmp_path):
    class Impatient(Silent):
        def stepped(self, report):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="step 1 is saved"):
        train(config_of(settings), device=CPU, progress=Impatient())
    assert export(make_trainer(config_of(settings), device=CPU), config_of(settings))


# ---- stages --------------------------------------------------------------------------------------------------------


def written(tmp_path, settings, name, **parts):
    path = tmp_path / f"{name}.yaml"
    merged = {part: {**settings.get(part, {}), **changes} for part, changes in parts.items()}
    merged["run"] = {**settings["run"], "steps": 2, "output": str(tmp_path / name), **parts.get("run", {})}
    path.write_text(yaml.safe_dump({**settings, "name": name, **merged}))
    return str(path)


def test_a_stage_starts_from_what_the_one_before_it_exports(settings, tmp_path):
    first = written(tmp_path, settings, "first", run={"export_dtype": "fp32"})
    stands_still = {"learning_rate": "1e-30", "weight_decay": 0.0, "ema": 0.0}
    second = written(tmp_path, settings, "second", optimizer=stands_still, run={"export_dtype": "fp32"})
    assert main(["--config", first, "--stage", second, "--quiet"]) == 0
    for file in ("transformer.safetensors", "text_encoder.safetensors"):
        before, after = (load_file(tmp_path / name / "export" / file) for name in ("first", "second"))
        assert all(torch.equal(weights, after[name]) for name, weights in before.items())
    assert list(losses(tmp_path / "second")) == [1, 2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run": {"output": "same"}}, "every stage needs an output of its own"),
        ({"model": {"weights": "w.safetensors"}}, "second starts from the weights of first: leave out its"),
    ],
)
def test_stages_that_cannot_follow_each_other_are_refused(settings, tmp_path, caplog, changes, message):
    first = written(tmp_path, settings, "first", run={"output": "same"})
    assert main(["--config", first, "--stage", written(tmp_path, settings, "second", **changes), "--quiet"]) == 2
    assert message in caplog.text


@pytest.mark.parametrize("motion, share", [(False, 1.0), (True, 0.0)])
def test_validation_measures_the_kind_of_windows_that_there_is(settings, tmp_path, motion, share):
    window = replace(some_window(0, motion=motion), prompt_embeds=None)
    save_window(tmp_path / "few/0.safetensors", window, fingerprint="f", model="m")
    settings["data"]["validation"] = [str(tmp_path / "few")]
    config = config_of(settings, validate_every=1, validation_batches=2)
    assert config.data.first_clip == 0.3
    losses = Validation(config, device=CPU).measure(make_trainer(config, device=CPU))["validation"]
    settings["data"]["first_clip"] = share
    same = config_of(settings, validate_every=1, validation_batches=2)
    assert losses == Validation(same, device=CPU).measure(make_trainer(same, device=CPU))["validation"]


def precompute_of(tmp_path, **changes):
    """A file of settings, and the words that have its windows written."""
    drawn = {"source": "synthetic", "num_videos": 100, "video_frames": 16, "clip_frames": 8, "first_share": 1.0,
             "prompts": "text", "windows": str(tmp_path / "w"), **changes}  # fmt: skip
    path = tmp_path / "drawn.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "precompute": drawn}))
    return ["precompute", "--config", str(path)]


def test_every_process_of_a_precompute_has_a_gpu_of_its_own_and_says_which_share_it_wrote(
    tmp_path, monkeypatch, capsys
):
    used = []

    def written(settings, device):
        used.append(device)
        return PrecomputeReport(written=1, kept=0, skipped={})

    monkeypatch.setattr("s2v_core.training.command._write", written)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    words = precompute_of(tmp_path)
    assert command([*words, "--device", "cuda"]) == 0
    for rank in ("0", "1"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command([*words, "--device", "cuda"]) == 0
    assert [str(device) for device in used] == ["cuda", "cuda:0", "cuda:1"]
    told = [line.split("w: ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    report = "1 windows written, 0 were there"
    assert told == [report, f"process 1 of 2: {report}", f"process 2 of 2: {report}"]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_quiet_precompute_says_only_what_it_did(tmp_path, monkeypatch, caplog, capsys, quiet):
    def written(settings, device):
        logging.getLogger("s2v_core.training.precompute").info("50 of 100 videos")
        return PrecomputeReport(written=100, kept=0, skipped={})

    monkeypatch.setattr("s2v_core.training.command._write", written)
    caplog.set_level("INFO")
    try:
        assert command([*precompute_of(tmp_path), "--device", "cpu", *(["--quiet"] if quiet else [])]) == 0
    finally:
        logging.getLogger("s2v_core").setLevel(logging.NOTSET)
    assert ("50 of 100 videos" in caplog.text) != quiet and "100 windows written" in capsys.readouterr().out


def test_a_process_whose_own_share_of_the_validation_fails_says_why(settings, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    settings["precompute_validation"] = {"source": "synthetic", "num_videos": 2, "video_frames": 16, "clip_frames": 8,
                                         "prompts": "text", "windows": str(tmp_path / "file/w")}  # fmt: skip
    settings["data"]["validation"] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(OutputError):
        with_validation(config_of(settings, validate_every=1), CPU)
    assert "process 2 of 2 stopped: the window" in caplog.text


def test_a_run_without_windows_makes_its_own_first(settings, tmp_path):
    own = {"source": "synthetic", "num_videos": 2, "video_frames": 90, "clip_frames": 8, "first_share": 1.0,
           "prompts": "text", "windows": str(tmp_path / "own")}  # fmt: skip
    data = {"windows": [], "validation": [], "first_clip": 1.0, "batch_size": 2}
    model = {"config": str(ROOT / "s2v_core/bundled/model.json")}
    path = written(tmp_path, settings, "alone", precompute=own, data=data, model=model)
    assert main(["--config", path, "--quiet", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "own").glob("*.safetensors"))) == 2 and len(losses(tmp_path / "alone")) == 2


def test_a_lora_run_exports_a_lora_alone(settings, tmp_path):
    save_empty_prompt(tmp_path / "windows", torch.ones(2, 12), model="m")
    for seed in range(8):
        save_window(tmp_path / "windows" / f"{seed}.safetensors", some_window(seed, motion=seed < 5), fingerprint="f",
                    model="m")  # fmt: skip
    model = {"trained": "lora", "lora_rank": 2, "frozen_dtype": "bf16", "text_encoder": "frozen"}
    assert main(["--config", written(tmp_path, settings, "lora", model=model), "--quiet"]) == 0
    assert [path.name for path in (tmp_path / "lora/export").iterdir()] == ["lora.safetensors"]


def test_a_dry_run_says_what_every_shipped_stage_costs_and_needs_no_data(capsys, caplog):
    caplog.set_level("INFO")
    stages = sorted((ROOT / "configs").glob("stage*.yaml"))
    first, *others = map(str, stages)
    assert len(others) == 3
    words = [word for path in others for word in ("--stage", path)]
    assert main(["--config", first, *words, "--dry-run"]) == 0
    assert caplog.text.count(": fits") == 4 and caplog.text.count("44,544 a sample") >= 1
    assert "starts from Wan2.2-T2V-A14B/" in caplog.text and "random numbers" not in caplog.text
    assert "starts from runs/stage1-audio/export/transformer.safetensors" in caplog.text
    assert main(["--config", first, "--dry-run", "--gpus", "1", "--gpu-memory", "24"]) == 0
    assert "does NOT fit" in caplog.text


def test_a_dry_run_of_a_stage_alone_says_that_it_lacks_weights(caplog):
    caplog.set_level("INFO")
    assert main(["--config", str(ROOT / "configs/stage2-speech.yaml"), "--dry-run"]) == 0
    assert "starts from random numbers: set model: weights (such as Wan2.2-S2V-14B/" in caplog.text


def test_the_14b_goes_on_from_a_checkpoint_of_all_its_weights_without_others(tmp_path):
    config = TrainConfig(name="x", run=RunConfig(output=tmp_path))
    assert lacks_weights(config)
    save_checkpoint(tmp_path / "checkpoints", 1, {"x": torch.ones(1)}, keep=1)
    assert not lacks_weights(config) and lacks_weights(replace(config, model=ModelSource(trained="lora")))


def test_a_run_says_which_weights_it_starts_from(settings, tmp_path, caplog):
    caplog.set_level("INFO")
    make_trainer(config_of(settings), device=CPU)
    save_file(tiny_transformer().state_dict(), tmp_path / "w.safetensors")
    settings["model"]["weights"] = str(tmp_path / "w.safetensors")
    make_trainer(config_of(settings), device=CPU)
    assert "tiny starts from random numbers" in caplog.text and f"starts from {tmp_path}/w.safetensors" in caplog.text


@pytest.mark.parametrize("name", ["stage1-audio", "stage2-speech", "stage3-film", "stage4-quality", "finetune", "lora"])
def test_the_layout_that_a_shipped_run_names_is_the_one_that_a_dry_run_finds(name):
    config = read_train_config(ROOT / f"configs/{name}.yaml")
    gpus = config.parallel.size
    found, named = (dry_run(config, num_gpus=number, gpu_bytes=80e9) for number in (gpus, None))
    assert found == named and found.layout == config.parallel and found.fits
    assert gpus == (1 if name == "lora" else 8)
    assert (found.num_trained == found.num_parameters) == (name not in ("stage1-audio", "lora"))


def test_the_largest_stage_is_the_papers_and_more_gpus_take_larger_layouts():
    config = read_train_config(ROOT / "configs/stage4-quality.yaml")
    found = dry_run(config, num_gpus=16, gpu_bytes=80e9)
    assert found.layout.size == 16 and found.tokens_per_sample == 44_544


def test_every_shipped_stage_can_be_watched():
    """Generated clips of videos that no stage learns from, and a tracker that comes with the package."""
    stages = [read_train_config(path) for path in sorted((ROOT / "configs").glob("stage*.yaml"))]
    learnt = {config.precompute.source for config in stages}
    for config in stages:
        run, held_out = config.run, config.precompute_validation
        assert run.validate_every and run.validate_clips and run.trackers == ("tensorboard",)
        assert held_out.source not in learnt and held_out.max_tokens == config.precompute.max_tokens

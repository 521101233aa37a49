"""Bad input to the real command: one sentence, the right exit code, no traceback, and nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from s2v_core.cli import main

from .media import float_wav, picture, pictures_of, silent_video, tone
from .paths import ROOT, SAMPLES

OLD = b"somebody's video of yesterday"


@pytest.fixture
def folder(tmp_path):
    """A good picture and sound, and a video that is already there."""
    picture(tmp_path / "face.png", 80, 64)
    tone(tmp_path / "speech.wav", seconds=0.5)
    (tmp_path / "talk.mp4").write_bytes(OLD)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def generate(capsys, folder: Path, *, image="face.png", audio="speech.wav", output="talk.mp4", words=()):
    """Exit code, stdout, stderr of one real run."""
    argv = ["generate", "--image", folder / image, "--audio", folder / audio, "-o", folder / output]
    argv += ["--prompt", "a person", "--steps", "1", "--size", "64x64", "--device", "cpu", *words]
    code = main([str(word) for word in argv])
    return code, *capsys.readouterr()


def one_sentence(err: str) -> str:
    """The command's answer, when it is all that was said."""
    lines = [line for line in err.splitlines() if line.startswith("wan-s2v: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


AUDIO = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "silent": (lambda path: float_wav(path, np.zeros(16_000)), "silent"),
    "nan": (lambda path: float_wav(path, np.where(np.arange(16_000) == 900, np.nan, 0.1)), "not numbers"),
    "infinite": (lambda path: float_wav(path, np.where(np.arange(16_000) == 900, np.inf, 0.1)), "not numbers"),
    "one sample": (lambda path: float_wav(path, np.full(1, 0.5)), "1 sample"),
    "text": (lambda path: path.write_text("la la la"), "cannot be read as sound"),
    "missing": (lambda path: None, "there is no sound file"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
}

PICTURES = {
    "1x1": (lambda path: picture(path, 1, 1), "1x1"),
    "8000x20": (lambda path: picture(path, 8000, 20), "8000x20"),
    "text": (lambda path: path.write_text("a portrait of a woman"), "not a picture"),
    "empty": (lambda path: path.write_bytes(b""), "not a picture"),
    "half a file": (lambda path: path.write_bytes((SAMPLES / "face.png").read_bytes()[:50_000]), "cut short"),
    "missing": (lambda path: None, "there is no picture"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.parametrize("name", AUDIO)
def test_bad_sound(capsys, folder, name):
    make, says = AUDIO[name]
    make(folder / "bad.wav")
    before = contents(folder)
    code, out, err = generate(capsys, folder, audio="bad.wav")
    assert code == 2 and out == ""
    assert says in one_sentence(err) and str(folder / "bad.wav") in err
    assert contents(folder) == before


def test_a_video_without_sound_is_no_sound(capsys, folder):
    silent_video(folder / "bad.mp4")
    before = contents(folder)
    code, _, err = generate(capsys, folder, audio="bad.mp4")
    assert code == 2 and "has no sound track" in one_sentence(err)
    assert contents(folder) == before


@pytest.mark.parametrize("name", PICTURES)
def test_bad_picture(capsys, folder, name):
    make, says = PICTURES[name]
    make(folder / "bad.png")
    before = contents(folder)
    code, out, err = generate(capsys, folder, image="bad.png")
    assert code == 2 and out == ""
    assert says in one_sentence(err) and str(folder / "bad.png") in err
    assert contents(folder) == before


@pytest.mark.parametrize("name, says", [("speech.wav", "has no picture track"), ("none.mp4", "there is no file")])
def test_bad_pose_video(capsys, folder, name, says):
    before = contents(folder)
    code, _, err = generate(capsys, folder, words=["--pose-video", folder / name])
    assert code == 2 and says in one_sentence(err)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "words, says",
    [
        (["--size", "833x481"], "833x481; try 832x480"),
        (["--steps", "0"], "steps must be 1 or more, got 0"),
        (["--fps", "0"], "fps must be 1 to 120, got 0"),
        (["--device", "cuda:99"], "device 'cuda:99'"),
        (["--device", "abacus"], "got 'abacus'"),
    ],
)
def test_impossible_settings(capsys, folder, words, says):
    before = contents(folder)
    code, out, err = generate(capsys, folder, words=words)
    assert code == 2 and out == "" and says in one_sentence(err)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "rate, channels", [(8_000, 1), (11_025, 2), (44_100, 2), (48_000, 6), (96_000, 1), (192_000, 2)]
)
def test_sound_of_any_rate_and_channels_gives_the_exact_length(capsys, folder, rate, channels):
    tone(folder / "any.wav", seconds=2.53, rate=rate, channels=channels)
    code, out, _ = generate(capsys, folder, audio="any.wav", words=["--dry-run"])
    assert code == 0 and re.search(r"\b41 frames at 16 fps", out), out   # ceil(2.53 * 16)


# Weights


def index_of(folder: Path, shards: dict[str, dict[str, np.ndarray]], missing: str) -> Path:
    """A sharded transformer of which one shard is not there."""
    names = {key: shard for shard, tensors in shards.items() for key in tensors}
    for shard, tensors in shards.items():
        if shard != missing:
            save_file(tensors, folder / shard)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


@pytest.fixture
def broken_model(folder):
    model = folder / "model"
    model.mkdir()
    first, second = (f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2))
    shards = {first: {"head.head.bias": np.zeros(64)}, second: {"head.modulation": np.zeros((1, 2, 64))}}
    index_of(model, shards, missing=second)
    return model


def test_a_shard_that_is_missing_is_named(capsys, folder, broken_model):
    before = contents(folder)
    code, _, err = generate(capsys, folder, words=["--model", broken_model])
    assert code == 2 and "diffusion_pytorch_model-00002-of-00002.safetensors" in one_sentence(err)
    assert contents(folder) == before


def test_inspect_names_the_missing_shard_and_still_looks_at_the_other_files(capsys, folder, broken_model):
    good = folder / "some.safetensors"
    save_file({"weight": np.zeros((2, 2), dtype=np.float32)}, good)
    index = broken_model / "diffusion_pytorch_model.safetensors.index.json"
    code = main(["inspect", str(index), str(folder / "none.safetensors"), str(good)])
    out, err = capsys.readouterr()
    assert code == 2 and "Traceback" not in err
    assert "00002-of-00002" in err and "none.safetensors" in err and len(err.splitlines()) == 2
    assert out.startswith(f"{good}: ")


@pytest.mark.parametrize("name, says", [("none", "none"), ("face.png", "face.png")])
def test_a_model_that_is_none_is_named(capsys, folder, name, says):
    code, _, err = generate(capsys, folder, words=["--model", folder / name])
    assert code == 2 and says in one_sentence(err)


def test_a_lora_that_is_none_is_named(capsys, folder):
    code, _, err = generate(capsys, folder, words=["--lora", f"{folder / 'face.png'}:0.5"])
    assert code == 2 and "face.png" in one_sentence(err)


def test_inspect_knows_the_bundled_weights(capsys):
    bundled = sorted((ROOT / "s2v_core" / "bundled").glob("*.safetensors"))
    assert main(["inspect", *map(str, bundled)]) == 0
    assert len(bundled) == 4 and capsys.readouterr().out.count("fits        bundled") == 4


# Batches


def test_a_bad_job_of_a_real_batch_does_not_stop_the_good_one(capsys, folder):
    jobs = [{"image": "bad.png", "output": "bad.mp4"}, {"image": "face.png", "output": "good.mp4"}]
    (folder / "bad.png").write_text("a portrait")
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    argv = ["generate", "--batch", folder / "jobs.jsonl", "--audio", folder / "speech.wav", "--steps", "1"]
    argv = [str(word) for word in (*argv, "--size", "64x64", "--device", "cpu")]
    assert main([*argv, "--dry-run"]) == 1
    out, _ = capsys.readouterr()
    assert "8 frames at 16 fps" in out and "1 ready, 1 failed" in out and not (folder / "good.mp4").exists()
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert "1 done, 1 failed" in out and "line 1 of" in one_sentence(err) and "not a picture" in err
    assert len(pictures_of(folder / "good.mp4")) == 8 and not (folder / "bad.mp4").exists()


# Places to write to


@pytest.mark.parametrize("output", ["speech.wav/talk.mp4", "/proc/none/talk.mp4", "there.mp4"])
def test_an_output_that_cannot_be_written_is_said_before_the_work(capsys, folder, output):
    (folder / "there.mp4").mkdir()
    before = contents(folder)
    code, _, err = generate(capsys, folder, output=output)
    assert code == 1 and str(folder / output) in one_sentence(err)
    assert "clip 1 of 1 done" not in err
    assert contents(folder) == before


def test_a_take_folder_that_cannot_be_written_is_said_before_the_work(capsys, folder):
    before = contents(folder)
    code, _, err = generate(capsys, folder, words=["--take", "/proc/none"])
    assert code == 1 and "/proc/none" in one_sentence(err) and "clip 1 of 1 done" not in err
    assert contents(folder) == before


# The command as a process


def test_the_process_answers_in_one_sentence_and_leaves_with_the_code(folder):
    (folder / "bad.png").write_text("a portrait")
    command = [sys.executable, "-m", "s2v_core", "generate", "--image", folder / "bad.png"]
    command += ["--audio", folder / "speech.wav", "-o", folder / "talk.mp4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert "not a picture" in one_sentence(done.stderr)
    assert (folder / "talk.mp4").read_bytes() == OLD


def test_debug_adds_the_traceback(capsys, folder):
    (folder / "bad.png").write_text("a portrait")
    code, _, err = generate(capsys, folder, image="bad.png", words=["--debug"])
    assert code == 2 and "Traceback" in err and "not a picture" in err

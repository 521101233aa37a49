"""YAML settings and JSON-lines batches: what they may say, where paths start, and what one bad job does to the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2v_core.cli import main
from s2v_core.errors import CheckpointError, Interrupted, MediaError
from s2v_core.geometry import VideoSize
from s2v_core.options import COMMAND, OPTIONS

from .stand_in import Pipeline


@pytest.fixture
def pipeline():
    return Pipeline()


def run(pipeline, capsys, *words):
    """Exit code, stdout, stderr."""
    code = main(["generate", *(str(word) for word in words)], load=pipeline.load)
    return code, *capsys.readouterr()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def batch_of(folder: Path, *jobs: dict) -> Path:
    return write(folder / "jobs.jsonl", "\n".join(json.dumps(job) for job in jobs))


def job(output: str, **more) -> dict:
    return {"image": "face.png", "audio": "speech.wav", "output": output, **more}


# YAML


def test_a_yaml_file_sets_options_and_the_command_line_overrides_them(pipeline, capsys, tmp_path):
    settings = write(tmp_path / "settings.yaml", """
image: face.png
audio: sound/speech.wav
output: talk.mp4
negative_prompt: blurred
size: 320x192
steps: 12
guidance: 3
start-from-image: yes
offload: none
lora: [soft.safetensors:0.5, sharp.safetensors]
quiet: true
""")  # fmt: skip
    words = ["--config", settings, "--steps", "5", "--no-start-from-image", "-o", "mine.mp4"]
    code, out, err = run(pipeline, capsys, *words)
    request, (options, _) = pipeline.made[0], pipeline.loads[0]
    assert code == 0 and err == ""
    assert (request.steps, request.guidance_scale, request.start_from_image) == (5, 3.0, False)
    assert (request.size, request.negative_prompt) == (VideoSize(width=320, height=192), "blurred")
    assert (request.image, request.audio) == (tmp_path / "face.png", tmp_path / "sound/speech.wav")
    assert request.output == Path("mine.mp4"), "the command line's own paths start where it is run"
    assert options.offload == "none"
    assert options.loras == ((tmp_path / "soft.safetensors", 0.5), (tmp_path / "sharp.safetensors", 1.0))


def test_off_in_a_yaml_file_needs_no_quotes(pipeline, capsys, tmp_path):
    settings = write(tmp_path / "settings.yaml", """
image: face.png
audio: speech.wav
output: talk.mp4
match-colour: off
matmul: off
step-cache: off
""")
    assert run(pipeline, capsys, "--config", settings)[0] == 0
    request, (options, _) = pipeline.made[0], pipeline.loads[0]
    assert (request.match_colour, request.step_cache, options.matmul) == ("off", 0.0, "off")


def test_every_option_may_stand_in_the_yaml_file(pipeline, capsys, tmp_path):
    values = {
        "image": "a.png", "audio": "a.wav", "output": "a.mp4", "prompt": "p", "negative-prompt": "n",
        "pose-video": "p.mp4", "start-from-image": True, "size": "480p", "fps": 25, "frames": 9, "seed": 1, "steps": 2,
        "guidance": 1, "shift": 3, "solver": "euler", "continuity": "carry", "model": "m", "lora": "l.gguf:1",
        "dtype": "bf16", "matmul": "fp8", "vae-dtype": "bf16",
        "device": "cpu", "attention": "sdpa", "offload": "none", "take": "t", "dry-run": True, "skip-existing": True,
        "quiet": True, "debug": False, "storyboard": "s.txt", "speaker": ["region=0:0:1:1,name=anna"],
        "who-speaks": "who.csv", "audio-guidance": 2, "sync-strength": 1, "apg": True,
        "driving-audio": "vocals.wav", "audio-start": "0:01.5", "audio-end": 9, "audio-offset": -40, "loudness": -23,
        "noise-gate": -45, "pose-strength": 0.8, "pose-start": 1, "pose-end": "0:08", "pose-skip": 2, "pose-steps": 1,
        "output-fps": 30, "first-window": "image", "match-colour": "lab", "voice": "de", "preset": "lightning-4",
        "guidance-interval": [0.2, 0.8], "step-cache": True, "isolate-voice": True, "speech-speed": 150,
    }  # fmt: skip
    batch = batch_of(tmp_path, {"size": None})
    settings = write(tmp_path / "settings.yaml", json.dumps({**values, "batch": batch.name}))   # JSON is YAML too
    others = {"batch", "say", "pose-footage", "diarize"}   # in place of audio, of pose-video and of who-speaks
    assert {*values, *others} == set(OPTIONS)
    code, out, err = run(pipeline, capsys, "--config", settings)
    assert (code, err) == (0, "") and "1 ready, 0 failed" in out


@pytest.mark.parametrize(
    "text, says",
    [
        ("step: 4", "unknown option 'step'; did you mean steps?"),
        ("negativ_prompt: x", "did you mean negative-prompt?"),
        ("banana: 1", "unknown option 'banana'\n"),
        ("steps: many", "steps must be a whole number, got 'many'"),
        ("steps: true", "steps must be a whole number, got True"),
        ("prompt: 5", "prompt must be text, got 5"),
        ("quiet: 1", "quiet must be true or false, got 1"),
        ("image: ''", "image must name a file or folder, got ''"),
        ("size: 833x481", "833x481; try 832x480"),
        ("preset: [lightning-4]", "preset must be one of lightning-4, lightning-8; got ['lightning-4']"),
        ("dry-run: true\ndry_run: true", "option 'dry-run' is given twice"),
        ("- steps", "must hold options, such as 'steps: 20', one per line; got list"),
        ("steps: [1\nfps: 3", "line 2 is not YAML"),
    ],
)
def test_a_bad_yaml_file_is_one_sentence_that_names_it(pipeline, capsys, tmp_path, text, says):
    settings = write(tmp_path / "settings.yaml", text)
    code, out, err = run(pipeline, capsys, "--config", settings)
    assert code == 2 and out == "" and pipeline.loads == []
    assert err.startswith(f"wan-s2v: {settings}") and says in err and err.count("\n") == 1


def test_a_yaml_file_of_bytes_is_refused(pipeline, capsys, tmp_path):
    (tmp_path / "settings.yaml").write_bytes(b"steps: \xff\xfe")
    assert run(pipeline, capsys, "--config", tmp_path / "settings.yaml")[0] == 2
    assert run(pipeline, capsys, "--config", tmp_path)[0] == 2


# Batches


def test_a_batch_loads_the_models_once_and_makes_every_job(pipeline, capsys, tmp_path):
    batch = batch_of(tmp_path, job("a.mp4", seed=3), job("b.mp4", prompt="hello", steps=None), job("c.mp4", fps=25))
    batch.write_text("\n" + batch.read_text() + "\n\n")
    code, out, _ = run(pipeline, capsys, "--batch", batch, "--steps", "9", "--prompt", "default", "--model", "weights")
    assert code == 0 and len(pipeline.loads) == 1 and out.splitlines()[-1] == "3 done, 0 failed"
    assert [request.output for request in pipeline.made] == [tmp_path / name for name in ("a.mp4", "b.mp4", "c.mp4")]
    assert [request.image for request in pipeline.made] == [tmp_path / "face.png"] * 3
    assert [request.seed for request in pipeline.made] == [3, 0, 0]
    assert [request.prompt for request in pipeline.made] == ["default", "hello", "default"]
    assert [request.steps for request in pipeline.made] == [9, None, 9], "null takes a default back"
    assert [request.fps for request in pipeline.made] == [16, 16, 25]


def test_defaults_of_the_command_line_keep_their_own_folder(pipeline, capsys, tmp_path):
    batch = batch_of(tmp_path, {"output": "a.mp4"})
    run(pipeline, capsys, "--batch", batch, "--image", "here.png", "--audio", tmp_path / "b.wav")
    assert (pipeline.made[0].image, pipeline.made[0].audio) == (Path("here.png"), tmp_path / "b.wav")


def test_a_job_that_fails_does_not_stop_the_rest(capsys, tmp_path):
    pipeline = Pipeline(
        plan_errors={"a.mp4": MediaError("face.png is not a picture")}, run_errors={"c.mp4": RuntimeError("boom")}
    )
    batch = batch_of(tmp_path, *(job(f"{name}.mp4") for name in "abcd"))
    code, out, err = run(pipeline, capsys, "--batch", batch, "--quiet")
    assert code == 1 and out.splitlines()[-1] == "2 done, 2 failed"
    assert [request.output.name for request in pipeline.made] == ["b.mp4", "d.mp4"]
    assert f"wan-s2v: line 1 of {batch}: face.png is not a picture\n" in err
    assert f"wan-s2v: line 3 of {batch}: RuntimeError: boom" in err and "Traceback" not in err


def test_ctrl_c_stops_the_whole_batch(capsys, tmp_path):
    for stop in (KeyboardInterrupt(), Interrupted("asked to")):
        pipeline = Pipeline(run_errors={"a.mp4": stop})
        code, _, err = run(pipeline, capsys, "--batch", batch_of(tmp_path, job("a.mp4"), job("b.mp4")))
        assert code == 130 and pipeline.made == [] and "stopped" in err and "--skip-existing" not in err


def test_a_batch_that_was_stopped_goes_on_without_making_again_what_is_done(capsys, tmp_path):
    batch = batch_of(tmp_path, *(job(f"{name}.mp4") for name in "abc"))
    code, _, err = run(Pipeline(run_errors={"b.mp4": KeyboardInterrupt()}), capsys, "--batch", batch)
    assert code == 130 and "with --skip-existing, videos that are done are not made again" in err
    (tmp_path / "a.mp4").touch()   # which the stand-in does not write
    for words, made in (([], "abc"), (["--skip-existing"], "bc")):
        pipeline = Pipeline()
        code, out, _ = run(pipeline, capsys, "--batch", batch, *words)
        assert code == 0 and [request.output.stem for request in pipeline.made] == list(made)
    assert out.startswith(f"line 1 of {batch}: {tmp_path / 'a.mp4'} is there already") and "2 done, 0 failed" in out


def test_nothing_is_loaded_for_videos_that_are_all_there(pipeline, capsys, tmp_path):
    (tmp_path / "a.mp4").touch()
    batch = batch_of(tmp_path, job("a.mp4"))
    code, out, _ = run(pipeline, capsys, "--batch", batch, "--skip-existing")
    assert code == 0 and "is there already" in out and pipeline.loads == []


def test_a_dry_run_checks_every_job_and_makes_none(capsys, tmp_path):
    pipeline = Pipeline(plan_errors={"b.mp4": MediaError("speech.wav is silent")})
    batch = batch_of(tmp_path, job("a.mp4"), job("b.mp4"), job("c.mp4"))
    code, out, err = run(pipeline, capsys, "--batch", batch, "--dry-run")
    assert code == 1 and pipeline.made == [] and pipeline.loads[0][1] is False
    assert out.count("84 frames in 2 clips") == 2 and "2 ready, 1 failed" in out
    assert f"line 2 of {batch}: speech.wav is silent" in err


def test_weights_that_do_not_load_are_said_once(capsys, tmp_path):
    def load(options, *, load_weights):
        raise CheckpointError("weights is not a model folder")

    assert main(["generate", "--batch", str(batch_of(tmp_path, job("a.mp4"), job("b.mp4")))], load=load) == 2
    assert capsys.readouterr().err == "wan-s2v: weights is not a model folder\n"


@pytest.mark.parametrize(
    "line, says",
    [
        ("{'image': 1}", "line 2 of {batch} is not JSON"),
        ('["image"]', "line 2 of {batch} must be a JSON object"),
        ('{"imagee": "x"}', "line 2 of {batch}: unknown option 'imagee'; did you mean image?"),
        ('{"output": "b.mp4"}', "line 2 of {batch}: --image and --audio must be given"),
        (json.dumps(job("b.mp4", steps=0)), "line 2 of {batch}: steps must be 1 or more, got 0"),
        (json.dumps(job("b.mp4", steps=2.5)), "line 2 of {batch}: steps must be a whole number, got 2.5"),
        (json.dumps(job("b.mp4", fps=float("nan"))), "line 2 of {batch}: fps must be a number, got nan"),
        (json.dumps(job("b.mp4", size="833x481")), "line 2 of {batch}: a video's width and height"),
        (json.dumps(job("b.mp4", model="other")), "line 2 of {batch}: 'model' is for all jobs together"),
        (json.dumps(job("b.mp4", debug=True)), "line 2 of {batch}: 'debug' is for all jobs together"),
        (json.dumps(job("speech.wav")), "would overwrite the audio"),
        (json.dumps(job("a.mp4")), "line 1 of {batch} and line 2 of {batch} have the same output"),
        (json.dumps(job("x/../a.mp4")), "line 1 of {batch} and line 2 of {batch} have the same output"),
        (json.dumps(job("b.mp4", take="t")), "line 1 of {batch} and line 2 of {batch} have the same take"),
    ],
)
def test_a_bad_line_stops_the_batch_before_it_starts(pipeline, capsys, tmp_path, line, says):
    batch = write(tmp_path / "jobs.jsonl", json.dumps(job("a.mp4", take="t")) + "\n" + line)
    code, out, err = run(pipeline, capsys, "--batch", batch)
    assert code == 2 and out == "" and pipeline.loads == []
    assert says.format(batch=batch) in err.replace("{'image'", "") and err.count("\n") == 1


def test_a_batch_without_jobs_is_refused(pipeline, capsys, tmp_path):
    code, _, err = run(pipeline, capsys, "--batch", write(tmp_path / "jobs.jsonl", "\n \n"))
    assert code == 2 and "holds no jobs" in err


def test_a_line_ends_where_json_lines_end_and_not_at_what_text_may_hold(pipeline, capsys, tmp_path):
    prompt = "she sings\u2028and\u0085laughs"
    lines = "\r\n".join(json.dumps(job(name, prompt=prompt), ensure_ascii=False) for name in ("a.mp4", "b.mp4"))
    code, _, err = run(pipeline, capsys, "--batch", write(tmp_path / "jobs.jsonl", lines))
    assert code == 0 and [request.prompt for request in pipeline.made] == [prompt] * 2, err


def test_a_line_may_say_whatever_is_of_one_job(pipeline, capsys, tmp_path):
    allowed = {name for name, option in OPTIONS.items() if option.scope == "job"}
    assert {"image", "audio", "prompt", "output", "seed", "take", "size"} <= allowed
    assert not allowed & {name for name, option in OPTIONS.items() if option.scope == COMMAND}

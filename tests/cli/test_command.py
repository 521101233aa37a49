"""What the command understands, what it answers, and its exit codes; with a stand-in for the pipeline."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from s2v_core.cli import COMMANDS, main
from s2v_core.errors import CheckpointError, Interrupted, MediaError, OutputError, ShapeError
from s2v_core.geometry import VideoSize
from s2v_core.ops.attention import KERNELS, make_attention
from s2v_core.options import ATTENTIONS, DTYPES, OFFLOADS, OPTIONS
from s2v_core.options import COLOR_MATCHES as OPTION_MATCHES
from s2v_core.placement import DTYPES as PLACEMENT_DTYPES
from s2v_core.placement import OFFLOADS as PLACEMENT_OFFLOADS
from s2v_core.sampling.presets import LIP_SAFE
from s2v_core.types import COLOR_MATCHES, CONTINUITIES, FIRST_WINDOWS, SOLVERS

from .paths import ROOT
from .stand_in import Pipeline

CHOICES = (*SOLVERS, *CONTINUITIES, *COLOR_MATCHES, *FIRST_WINDOWS, *DTYPES, *OFFLOADS, *ATTENTIONS)
JOB = ["generate", "--image", "face.png", "--audio", "speech.wav", "-o", "talk.mp4"]


@pytest.fixture
def pipeline():
    return Pipeline()


def run(pipeline, capsys, *words):
    """Exit code, stdout, stderr."""
    code = main([str(word) for word in words], load=pipeline.load)
    return code, *capsys.readouterr()


def test_the_options_reach_the_request_and_the_models(pipeline, capsys):
    code, out, err = run(
        pipeline, capsys, *JOB, "--prompt", "a woman talks", "--negative-prompt", "blur", "--size", "320x192",
        "--fps", "24", "--frames", "50", "--seed", "7", "--steps", "3", "--guidance", "2.5", "--shift", "5",
        "--solver", "euler", "--continuity", "carry", "--pose-video", "pose.mp4", "--start-from-image",
        "--take", "kept", "--model", "weights", "--lora", "a.safetensors:0.5", "--lora", "b.safetensors",
        "--dtype", "fp32", "--device", "cpu", "--attention", "sdpa", "--offload", "blocks",
        "--matmul", "int8", "--vae-dtype", "bf16",
        "--preset", "lightning-4", "--guidance-interval", "0.2:0.8", "--step-cache", "on",
    )  # fmt: skip
    request, (options, load_weights) = pipeline.made[0], pipeline.loads[0]
    assert code == 0 and load_weights
    assert (request.image, request.audio, request.output) == (Path("face.png"), Path("speech.wav"), Path("talk.mp4"))
    assert (request.prompt, request.negative_prompt) == ("a woman talks", "blur")
    assert (request.size, request.fps, request.num_frames) == (VideoSize(width=320, height=192), 24.0, 50)
    assert (request.seed, request.steps, request.guidance_scale, request.shift) == (7, 3, 2.5, 5.0)
    assert (request.solver, request.continuity) == ("euler", "carry")
    assert (request.pose_video, request.start_from_image, request.take) == (Path("pose.mp4"), True, Path("kept"))
    assert (request.preset, request.guidance_interval, request.step_cache) == ("lightning-4", (0.2, 0.8), LIP_SAFE)
    assert (options.folder, options.dtype, options.device) == (Path("weights"), "fp32", "cpu")
    assert (options.attention, options.offload) == ("sdpa", "blocks")
    assert (options.matmul, options.vae_dtype) == ("int8", "bf16")
    assert options.loras == ((Path("a.safetensors"), 0.5), (Path("b.safetensors"), 1.0))
    assert "84 frames in 2 clips" in err and out.startswith("talk.mp4: 84 frames, 3.50 s")


def test_a_name_that_the_console_cannot_write_is_told_in_numbers_and_fails_nothing(pipeline, monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert main([*JOB[:-1], "视频.mp4"], load=pipeline.load) == 0
    assert sys.stdout.buffer.getvalue().startswith(rb"\u89c6\u9891.mp4: 84 frames")


def test_options_left_out_are_the_requests_and_the_models_own_defaults(pipeline, capsys):
    run(pipeline, capsys, *JOB)
    request, (options, _) = pipeline.made[0], pipeline.loads[0]
    assert (request.size, request.steps, request.guidance_scale, request.num_frames) == (None, None, None, None)
    assert (options.folder, options.loras, options.dtype, options.device) == (None, (), "auto", "auto")


@pytest.mark.parametrize(
    "said, meant",
    [("23.976", 24000 / 1001), ("23.98", 24000 / 1001), ("29.97", 30000 / 1001), ("59.94", 60000 / 1001),
     ("119.88", 120000 / 1001), ("24", 24.0), ("29.9", 29.9), ("16", 16.0)],
)  # fmt: skip
def test_a_rounded_name_of_a_rate_is_the_exact_rate(pipeline, capsys, said, meant):
    run(pipeline, capsys, *JOB, "--fps", said, "--output-fps", "120")
    run(pipeline, capsys, *JOB, "--output-fps", said if float(said) > 16 else "17")
    assert pipeline.made[0].fps == meant
    assert pipeline.made[1].output_fps == (meant if meant > 16 else 17)


def test_an_area_name_leaves_the_shape_to_the_picture(pipeline, capsys):
    run(pipeline, capsys, *JOB, "--size", "720p")
    assert (pipeline.planned[0].size, pipeline.planned[0].max_area) == (None, 1280 * 720)


def test_a_dry_run_plans_without_weights_and_makes_nothing(pipeline, capsys):
    code, out, _ = run(pipeline, capsys, *JOB, "--dry-run")
    assert code == 0 and pipeline.made == [] and pipeline.loads[0][1] is False
    assert "84 frames in 2 clips" in out


def test_quiet_leaves_only_the_result(pipeline, capsys):
    _, out, err = run(pipeline, capsys, *JOB, "--quiet")
    assert err == "" and out.count("\n") == 1


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "COMMAND"),
        (["genrate"], "generate"),
        (["generate"], "--image and --audio and --output must be given"),
        (["generate", "--image", "a.png", "-o", "b.mp4"], "--audio must be given"),
        ([*JOB, "--stepz", "4"], "unknown option --stepz; did you mean --steps?"),
        ([*JOB, "--imag=x.png"], "did you mean --image?"),
        ([*JOB, "more"], "unknown option more"),
        ([*JOB, "--steps"], "--steps: expected one argument"),
        ([*JOB, "--steps", "many"], "steps must be a whole number, got 'many'"),
        ([*JOB, "--steps", "0"], "steps must be 1 or more, got 0"),
        ([*JOB, "--steps", "2.5"], "steps must be a whole number, got '2.5'"),
        ([*JOB, "--fps", "0"], "fps must be 1 to 120, got 0"),
        ([*JOB, "--fps", "nan"], "fps must be a number, got 'nan'"),
        ([*JOB, "--frames", "0"], "num_frames must be 1 or more, got 0"),
        ([*JOB, "--seed", "-1"], "seed must be 0 or more"),
        ([*JOB, "--shift", "0"], "shift must be above 0, got 0"),
        ([*JOB, "--guidance", "-2"], "guidance must be 1 or more"),
        ([*JOB, "--size", "833x481"], "833x481; try 832x480"),
        ([*JOB, "--size", "0x0"], "at least 64, got 0x0"),
        ([*JOB, "--size", "wide"], "size must be WIDTHxHEIGHT in pixels or one of 480p, 720p; got 'wide'"),
        ([*JOB, "--guidance-interval", "0.5"], "guidance-interval must be LOW:HIGH, such as 0.2:0.8; got '0.5'"),
        ([*JOB, "--guidance-interval", "0.8:0.2"], "from a lower to a higher noise level"),
        ([*JOB, "--step-cache", "much"], "step-cache must be a number, got 'much'"),
        ([*JOB, "--preset", "fast"], "preset must be one of lightning-4, lightning-8; got 'fast'"),
        ([*JOB, "--solver", "heun"], "solver must be one of unipc, dpm++, euler, few-step; got 'heun'"),
        ([*JOB, "--continuity", "none"], "continuity must be one of exact, carry; got 'none'"),
        ([*JOB, "--say", "hello"], "give either audio or words to say, not both"),
        ([*JOB, "--audio-start", "soon"], "audio-start: 'soon' is no time, such as 0:12.5"),
        ([*JOB, "--audio-start", "3", "--audio-end", "2"], "end must come after its start, got 3 s to 2 s"),
        ([*JOB, "--audio-offset", "99999"], "offset must be within 10 seconds (10000 milliseconds), got 99999"),
        ([*JOB, "--loudness", "23"], "loudness must be above -70 LUFS and at most 0 (speech: -23), got 23"),
        ([*JOB, "--noise-gate", "45"], "a noise gate must be at -90 dB or more and below 0 (try -45), got 45"),
        ([*JOB, "--pose-video", "a.mp4", "--pose-footage", "b.mp4"], "give either a pose video or footage"),
        ([*JOB, "--pose-strength", "3"], "pose strength must be 0 (no pose) to 2, got 3"),
        ([*JOB, "--pose-steps", "0"], "a pose is followed for 1 denoising step or more, got 0"),
        ([*JOB, "--pose-start", "4", "--pose-end", "1"], "pose_end must come after pose_start (4 s), got 1"),
        ([*JOB, "--match-colour", "hsv"], "match-colour must be one of off, lab, mkl; got 'hsv'"),
        ([*JOB, "--first-window", "image"], "first_window image is for videos that start from the image"),
        ([*JOB, "--output-fps", "12"], "output_fps must be above fps (16) and at most 120, got 12"),
        ([*JOB, "--pose-footage", "talk.mp4"], "output talk.mp4 would overwrite the pose-footage"),
        ([*JOB, "--dtype", "int8"], "dtype must be one of auto, bf16, fp16, fp32; got 'int8'"),
        ([*JOB, "--offload", "disk"], "offload must be one of auto, none, model, blocks; got 'disk'"),
        ([*JOB, "--attention", "slow"], "attention must be one of auto, sdpa, cudnn, flash, sage, xformers; got"),
        ([*JOB, "--lora", "a.safetensors:strong"], "must be a number, got 'strong'"),
        ([*JOB, "-o", "speech.wav"], "output speech.wav would overwrite the audio that it is made from"),
        ([*JOB, "-o", "talk.avi"], "output must be named .mp4, got talk.avi"),
        ([*JOB, "--config", "none.yaml"], "cannot read none.yaml: No such file or directory"),
        ([*JOB, "--batch", "none.jsonl"], "cannot read none.jsonl: No such file or directory"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_sentence_and_exit_code_2(pipeline, capsys, words, says):
    code, out, err = run(pipeline, capsys, *words)
    assert code == 2 and out == "" and pipeline.loads == []
    assert says in err and err.startswith("wan-s2v: ") and err.count("\n") == 1


@pytest.mark.parametrize("error", [MediaError("m.wav holds no sound"), ShapeError("s"), CheckpointError("c")])
def test_what_the_plan_refuses_is_exit_code_2(capsys, error):
    code, _, err = run(Pipeline(plan_errors={"talk.mp4": error}), capsys, *JOB)
    assert (code, err) == (2, f"wan-s2v: {error}\n")


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    "error, says",
    [
        (OutputError("the disk of talk.mp4 is full"), "wan-s2v: the disk of talk.mp4 is full\n"),
        (MemoryError(), "out of memory: try a smaller --size"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory: try a smaller --size"),
        (OSError(28, "No space left on device", "x.mp4"), "No space left on device: x.mp4; run again with --debug"),
        (ValueError("odd\nmore"), "ValueError: odd; run again with --debug for the details"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_work_that_fails_is_exit_code_1_without_a_traceback(capsys, error, says):
    code, _, err = run(Pipeline(run_errors={"talk.mp4": error}), capsys, *JOB, "--quiet")
    assert code == 1 and says in err and err.count("\n") == 1


def test_a_failure_says_where_finished_clips_are_only_when_there_are_any(tmp_path, capsys):
    pipeline = Pipeline(run_errors={"talk.mp4": MemoryError()})
    assert "; nothing was finished yet" in run(pipeline, capsys, *JOB, "--take", tmp_path / "none")[2]
    (tmp_path / "Kept").mkdir()
    _, _, err = run(pipeline, capsys, *JOB, "--take", tmp_path / "Kept")
    assert f"finished clips are kept in {tmp_path / 'Kept'}, and the same command continues there" in err


def test_debug_shows_the_traceback(capsys):
    _, _, err = run(Pipeline(run_errors={"talk.mp4": ValueError("odd")}), capsys, *JOB, "--debug")
    assert "Traceback" in err and "ValueError: odd" in err


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("asked to")], ids=["Ctrl-C", "asked"])
def test_a_stop_is_exit_code_130_and_tells_where_to_go_on(tmp_path, capsys, stop):
    code, _, err = run(Pipeline(run_errors={"talk.mp4": stop}), capsys, *JOB, "--take", tmp_path)
    assert code == 130 and f"finished clips are kept in {tmp_path}, and the same command continues" in err
    assert "Traceback" not in err


def test_a_stop_while_loading_is_exit_code_130(capsys):
    def load(options, *, load_weights):
        raise KeyboardInterrupt

    assert main(JOB, load=load) == 130
    assert capsys.readouterr().err == "wan-s2v: stopped\n"


def test_help_names_every_option_and_every_choice(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["generate", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    missing = [name for name in OPTIONS if f"--{name} " not in said]
    unnamed = [name for name in CHOICES if name not in said]
    assert leaving.value.code == 0 and not missing and not unnamed


def test_the_choices_are_the_ones_that_the_rooms_know():
    assert set(DTYPES) == {"auto", *PLACEMENT_DTYPES}
    assert set(OFFLOADS) == set(PLACEMENT_OFFLOADS)
    assert OPTION_MATCHES == COLOR_MATCHES
    assert set(ATTENTIONS) == {"auto", "sdpa", *KERNELS}
    assert make_attention("auto") is make_attention("sdpa")


def test_help_comes_without_loading_torch():
    code = "import sys; from s2v_core.cli import main\ntry: main(['generate', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(3 if 'torch' in sys.modules else 0)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT).returncode == 0


def test_each_command_has_help_and_the_module_runs_as_a_program(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"usage: wan-s2v {name}" in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "s2v_core", "generate"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "--image" in done.stderr and done.stdout == ""

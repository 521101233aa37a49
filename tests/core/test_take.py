"""A take on disk: what is committed survives anything, and a continued run is the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from s2v_core.errors import ConfigError, OutputError
from s2v_core.types import ClipSettings, Direction
from s2v_core.video import take as take_module
from s2v_core.video.generate import generate_clips
from s2v_core.video.take import Take
from s2v_core.video.timeline import plan_clips

from .tiny_codec import REACH, TinyCodec, TinyDenoiser, tiny_conditioning

SETTINGS = ClipSettings(frames=8, motion_frames=9)
NUM_FRAMES = 26   # four clips, the last one cut short
JOB = {"negative_prompt": "blur", "sampler": {"steps": 3, "shift": 3.0}}
PLANS = plan_clips(NUM_FRAMES, SETTINGS, seed=5, start_from_image=False)
CLIPS = [{"plan": astuple(plan), "prompt": 0.1} for plan in PLANS]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These folders need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Killed(BaseException):
    """The process ends here: nothing that tidies up after errors may catch it."""


def write_segment(path, frames):
    """Raw frames, whole or not at all, as the encoder's segments are."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(frames.numpy().tobytes())
    os.replace(partial, path)


def run(folder, *, continuity="exact", stop_after=None, denoiser=None, write=write_segment, frames=NUM_FRAMES,
        prompts=()):  # fmt: skip
    """Fill the take; returns how many clips this run made. `prompts`: a number for each clip, in place of 0.1."""
    codec = TinyCodec()
    plans = plan_clips(frames, SETTINGS, seed=5, start_from_image=False)
    made, words = 0, prompts or [0.1] * len(plans)
    made_from = [{"plan": astuple(plan), "prompt": one} for plan, one in zip(plans, words, strict=True)]
    conditioning = tiny_conditioning(codec)
    reference = conditioning.reference_latent
    told = [Direction(prompt_embeds=torch.full((1, 2, 4), one), reference_latent=reference) for one in words]
    with Take.open(folder, JOB, made_from) as take:
        clips = generate_clips(
            plans, replace(conditioning, directions=tuple(told)), denoiser or TinyDenoiser(), codec, SETTINGS,
            on_step=lambda done, total: None, continuity=continuity, past=take.past(), decoder_reach=REACH,
        )  # fmt: skip
        for clip in clips:
            take.add(clip, write)
            made += 1
            if made == stop_after:
                break
    return made


def contents(folder):
    return [path.read_bytes() for path in sorted((folder / "clips").iterdir())]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module", params=["exact", "carry"])
def whole(request, tmp_path_factory):
    """An uninterrupted run: its continuity and its segments."""
    folder = tmp_path_factory.mktemp(request.param)
    assert run(folder, continuity=request.param) == 4
    return request.param, contents(folder)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_run_stopped_after_any_clip_ends_with_the_same_segments(whole, tmp_path, stop_after):
    continuity, segments = whole
    assert run(tmp_path, continuity=continuity, stop_after=stop_after) == stop_after
    denoiser = TinyDenoiser()
    assert run(tmp_path, continuity=continuity, denoiser=denoiser) == 4 - stop_after == len(denoiser.seen)
    assert contents(tmp_path) == segments


def test_a_run_killed_at_any_moment_of_any_commit_loses_at_most_one_clip(whole, tmp_path, monkeypatch):
    """Every rename, sync, removal and tensor write is a moment; each is died at, before and after it happens."""
    continuity, segments = whole
    countdown = 0

    def mortal(function):
        def call(*args, **kwargs):
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise Killed
            result = function(*args, **kwargs)
            countdown -= 1
            if countdown == 0:
                raise Killed
            return result

        return call

    for module, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (take_module, "save_file")):
        monkeypatch.setattr(module, name, mortal(getattr(module, name)))
    moment, killed = 1, True
    while killed:
        folder, countdown, killed = tmp_path / f"{moment:03d}", moment, False
        try:
            run(folder, continuity=continuity)
        except Killed:
            killed = True
        countdown = 0
        committed = Take.count_finished(folder, JOB, CLIPS)
        whole_files = len([path for path in (folder / "clips").iterdir() if not path.name.startswith(".")])
        assert whole_files - committed in (0, 1)
        assert run(folder, continuity=continuity) == 4 - committed
        assert contents(folder) == segments
        assert not [name for name in names(folder) if "/." in name]
        moment += 1
    assert moment > 60


@pytest.mark.parametrize("lost", ["clips/0001.mp4", "latents/0001.safetensors", "motion/0002.safetensors"])
@pytest.mark.parametrize("how", ["gone", "spoiled", "cut"])
def test_a_damaged_file_costs_the_clips_from_there_on_and_changes_nothing(whole, tmp_path, lost, how, caplog):
    continuity, segments = whole
    run(tmp_path, continuity=continuity, stop_after=3)
    path = tmp_path / lost
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if how == "cut" else b"?" + data[1:])
    is_memory = lost.startswith("motion")
    assert run(tmp_path, continuity=continuity) == (1 if is_memory else 3)   # a memory is rebuilt from the latents
    assert contents(tmp_path) == segments
    assert is_memory or lost in caplog.text


def test_a_finished_take_makes_nothing_and_keeps_the_memory_that_a_longer_one_would_go_on_from(tmp_path):
    run(tmp_path)
    before = names(tmp_path)
    denoiser = TinyDenoiser()
    assert run(tmp_path, denoiser=denoiser) == 0 and not denoiser.seen
    assert names(tmp_path) == before == [
        *(f"clips/{r:04d}.mp4" for r in range(4)),
        *(f"latents/{r:04d}.safetensors" for r in range(4)),
        "motion/0002.safetensors",   # the last clip is cut short
        "take.json",
        "take.lock",
    ]


def test_only_the_newest_memory_is_kept_and_comes_back_bit_for_bit(tmp_path):
    codec = TinyCodec()
    plans = plan_clips(NUM_FRAMES, SETTINGS, seed=5, start_from_image=False)
    made = generate_clips(plans, tiny_conditioning(codec), TinyDenoiser(), codec, SETTINGS, on_step=lambda *_: None)
    clips = list(made)
    with Take.open(tmp_path, JOB, CLIPS) as take:
        assert take.past() is None
        for clip in clips[:3]:
            take.add(clip, write_segment)
    assert [path.name for path in (tmp_path / "motion").iterdir()] == ["0002.safetensors"]
    with Take.open(tmp_path, JOB, CLIPS) as take:
        past = take.past()
        assert past.num_clips == take.num_finished == Take.count_finished(tmp_path, JOB, CLIPS) == 3
        assert past.memory.frames.dtype == torch.float32 and torch.equal(past.memory.frames, clips[2].memory.frames)
        assert all(torch.equal(past.latents(r), clips[r].latents) for r in range(3))
        assert [path.name for path in take.segments] == ["0000.mp4", "0001.mp4", "0002.mp4"]


def test_take_json_says_what_each_clip_is(tmp_path):
    run(tmp_path, stop_after=2)
    state = json.loads((tmp_path / "take.json").read_text())
    assert state["fingerprint"] == JOB
    assert [clip["made_from"] for clip in state["clips"]] == json.loads(json.dumps(CLIPS[:2]))
    assert [clip["frames"] for clip in state["clips"]] == [5, 8]
    assert state["clips"][1]["segment"]["bytes"] == (tmp_path / "clips/0001.mp4").stat().st_size
    assert state["motion"]["clip"] == 1


@pytest.mark.parametrize("continuity", ["exact", "carry"])
@pytest.mark.parametrize("first, then, kept", [(13, 26, 2), (26, 40, 3), (21, 26, 3), (26, 13, 2), (26, 9, 1)])
def test_another_length_keeps_the_clips_that_both_have_and_ends_like_a_new_run(tmp_path, continuity, first, then, kept):
    """Of 26 frames the last clip is cut short and made anew; of 13 and 21 none is."""
    run(tmp_path / "new", continuity=continuity, frames=then)
    run(tmp_path / "grown", continuity=continuity, frames=first)
    denoiser = TinyDenoiser()
    made = run(tmp_path / "grown", continuity=continuity, frames=then, denoiser=denoiser)
    assert made == len(denoiser.seen) == -(-(then + 3) // 8) - kept
    new = contents(tmp_path / "new")
    assert contents(tmp_path / "grown")[: len(new)] == new   # those past the end of a shorter one may lie there
    assert then < first or names(tmp_path / "grown") == names(tmp_path / "new")


@pytest.mark.parametrize("continuity", ["exact", "carry"])
def test_a_change_in_the_course_of_a_job_keeps_what_lies_before_it(tmp_path, continuity):
    run(tmp_path / "new", continuity=continuity, prompts=[0.1, 0.1, 0.5, 0.5])
    run(tmp_path / "changed", continuity=continuity)
    assert run(tmp_path / "changed", continuity=continuity, prompts=[0.1, 0.1, 0.5, 0.5]) == 2
    assert contents(tmp_path / "changed") == contents(tmp_path / "new")
    assert run(tmp_path / "changed", continuity=continuity, prompts=[0.1, 0.1, 0.5, 0.7]) == 1


def test_clips_that_are_not_kept_stay_on_disk_until_others_take_their_place(tmp_path):
    run(tmp_path)
    before = contents(tmp_path)
    Take.open(tmp_path, JOB, [*CLIPS[:1], {"prompt": 0.2}]).close()
    assert contents(tmp_path) == before and run(tmp_path) == 0


@pytest.mark.parametrize(
    "change, clips, says",
    [
        ({"negative_prompt": "noise"}, CLIPS, "(negative_prompt differs)"),
        ({"sampler": {"steps": 4, "shift": 3.0}}, CLIPS, "(sampler.steps differs)"),
        ({"pose": "cd34"}, CLIPS, "(pose differs)"),
        ({}, [{**CLIPS[0], "prompt": 0.2}, *CLIPS[1:]], "(prompt differs)"),
        ({"pose": "cd34"}, [{**CLIPS[0], "seed": 6}], "(pose, seed differ)"),
    ],
)
def test_another_job_is_refused_by_name_and_leaves_the_take_alone(tmp_path, change, clips, says):
    run(tmp_path, stop_after=2)
    before = names(tmp_path)
    for use in (Take.open, Take.count_finished):
        with pytest.raises(ConfigError) as error:
            use(tmp_path, {**JOB, **change}, clips)
        assert says in str(error.value) and str(tmp_path) in str(error.value)
    assert names(tmp_path) == before and Take.count_finished(tmp_path, JOB, CLIPS) == 2


@pytest.mark.parametrize("text, says", [("{", "damaged"), ("[]", "damaged"), ('{"format": 99}', "format 99")])
def test_a_take_that_cannot_be_understood_is_not_overwritten(tmp_path, text, says):
    (tmp_path / "take.json").write_text(text)
    for use in (lambda: Take.open(tmp_path, JOB, CLIPS), lambda: Take.count_finished(tmp_path, JOB, CLIPS)):
        with pytest.raises(ConfigError, match=says):
            use()
    assert (tmp_path / "take.json").read_text() == text


@pytest.mark.parametrize("name", ["clips/0000.mp4", "latents/notes.txt", "motion/capture"])
def test_a_folder_with_files_of_somebody_elses_is_refused_and_keeps_them(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("mine")
    (tmp_path / name).with_name(".keep").touch()
    before = names(tmp_path)
    for attempt in (lambda: Take.count_finished(tmp_path, {}, [{}]), lambda: Take.open(tmp_path, {}, [{}])):
        with pytest.raises(ConfigError, match="is no part of a take.*give another take folder"):
            attempt()
    assert names(tmp_path) == before and (tmp_path / name).read_text() == "mine"


def test_no_folder_is_no_finished_clip_and_stays_no_folder(tmp_path):
    assert Take.count_finished(tmp_path / "none", JOB, CLIPS) == 0
    assert not (tmp_path / "none").exists()


def test_two_runs_cannot_write_one_take_and_a_killed_run_lets_go(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from s2v_core.video.take import Take\n"
        f"take = Take.open(Path(sys.argv[1]), {JOB!r}, {CLIPS!r}); print('open', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert child.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match="another run"):
            Take.open(tmp_path, JOB, CLIPS)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert run(tmp_path) == 4


def test_a_take_that_was_refused_lets_the_next_run_in(tmp_path):
    run(tmp_path, stop_after=1)
    with pytest.raises(ConfigError):
        Take.open(tmp_path, {**JOB, "seed": 6}, CLIPS)
    assert run(tmp_path) == 3


@contextmanager
def small_files(limit):
    """The system refuses to let a file grow: a full disk that needs no disk."""
    import resource  # not everywhere

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [1_000, 15_000, 400_000])   # too small for take.json, for latents, for a segment
def test_a_disk_that_gives_out_is_one_sentence_and_loses_no_finished_clip(whole, tmp_path, limit):
    continuity, segments = whole
    run(tmp_path, continuity=continuity, stop_after=2)
    with small_files(limit), pytest.raises(OutputError) as error:
        run(tmp_path, continuity=continuity)
    assert str(tmp_path) in str(error.value) and "run the same command again" in str(error.value)
    assert Take.count_finished(tmp_path, JOB, CLIPS) == 2
    assert not [name for name in names(tmp_path) if name.endswith(".part") and "clips" not in name]
    assert run(tmp_path, continuity=continuity) == 2
    assert contents(tmp_path) == segments


def test_a_full_disk_is_called_full(tmp_path, monkeypatch):
    def refuse(tensors, path):
        raise take_module.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(take_module, "save_file", refuse)
    with pytest.raises(OutputError, match="the disk is full; .* free some space"):
        run(tmp_path)


@contextmanager
def nobody():
    """File permissions do not bind the superuser, so the test steps down."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, exists):
    if exists:
        run(tmp_path / "take", stop_after=1)
        (tmp_path / "take/take.lock").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        with nobody(), pytest.raises(OutputError, match="let the folder be written"):
            Take.open(tmp_path / "take", JOB, CLIPS)
    finally:
        tmp_path.chmod(0o755)


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "take").write_text("a file")
    with pytest.raises(OutputError, match="cannot keep clips in"):
        Take.open(tmp_path / "take", JOB, CLIPS)

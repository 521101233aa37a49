"""Several speakers from the command line, over several clips, stopped and gone on with."""

from __future__ import annotations

import itertools
import json

import av
import numpy as np
import pytest

from s2v_core import who_speaks
from s2v_core.cli import main
from s2v_core.video import take

from .media import picture, pictures_of, tone
from .test_going_on import refuse

SPEAKER = "audio={folder}/{name}.wav,region={region}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, and sounds of which the first takes two short clips."""
    folder = tmp_path_factory.mktemp("speakers")
    picture(folder / "face.png", 80, 64)
    tone(folder / "a.wav", seconds=0.7)
    tone(folder / "b.wav", seconds=0.3)
    return folder


def run(folder, output, *words) -> int:
    argv = ["generate", "--image", folder / "face.png", "-o", folder / output, *words, "--steps", "1"]
    return main([str(word) for word in [*argv, "--size", "64x64", "--fps", "120", "--device", "cpu"]])


def speaker(folder, name, region, more=""):
    return ("--speaker", SPEAKER.format(folder=folder, name=name, region=region) + more)


def heard_in(path) -> np.ndarray:
    """[S] samples of a video's sound."""
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray().mean(0) for frame in file.decode(audio=0)])


def two(folder, split="0.5"):
    return (*speaker(folder, "a", f"0:0:{split}:1"), *speaker(folder, "b", f"{split}:0:1:1", ",start=0.35"))


@pytest.fixture(scope="module")
def plain(folder):
    assert run(folder, "plain.mp4", "--audio", folder / "a.wav") == 0
    return pictures_of(folder / "plain.mp4")


@pytest.fixture(scope="module")
def expected(folder):
    """Two speakers, never interrupted."""
    assert run(folder, "two.mp4", *two(folder)) == 0
    return pictures_of(folder / "two.mp4")


def test_one_speaker_everywhere_is_the_plain_run_bit_for_bit(folder, plain):
    assert run(folder, "one.mp4", *speaker(folder, "a", "0:0:1:1")) == 0
    assert np.array_equal(pictures_of(folder / "one.mp4"), plain)
    assert (folder / "one.mp4").read_bytes() == (folder / "plain.mp4").read_bytes(), "the sound is the same file too"


def test_two_speakers_make_another_video_whose_sound_is_both(folder, plain, expected):
    assert expected.shape == plain.shape and not np.array_equal(expected, plain)
    both, alone = (heard_in(folder / name) for name in ("two.mp4", "plain.mp4"))
    early, late = slice(500, 5000), slice(6500, 9500)   # before and after 0.35 s
    softer = (both[early] @ alone[early]) / (alone[early] @ alone[early])   # too loud together
    assert np.abs(both - softer * alone)[early].max() < 0.05 and np.abs(both - softer * alone)[late].max() > 0.2


def test_a_sound_that_is_given_is_what_is_heard(folder):
    words = (*two(folder), "--audio", folder / "b.wav")
    assert run(folder, "given.mp4", *words) == 0
    assert len(pictures_of(folder / "given.mp4")) == 36, "and the video is as long"


def test_two_speakers_go_on_where_they_were_stopped(folder, expected, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        refuse(patch, take, "save_file", call=3)
        assert run(folder, "stopped.mp4", *two(folder)) == 1
    capsys.readouterr()
    assert run(folder, "stopped.mp4", *two(folder)) == 0
    assert capsys.readouterr().err.count(" done") == 1
    assert np.array_equal(pictures_of(folder / "stopped.mp4"), expected)


def test_speakers_elsewhere_do_not_go_on_from_this_take(folder, capsys):
    kept = ("--take", folder / "mine")
    assert run(folder, "x.mp4", *two(folder), *kept) == 0
    capsys.readouterr()
    assert run(folder, "y.mp4", *two(folder, "0.6"), *kept) == 2
    assert "speakers" in capsys.readouterr().err and not (folder / "y.mp4").exists()


def test_one_sound_shared_out_changes_who_moves(folder, plain):
    people = ("--speaker", "region=0:0:0.5:1,name=anna", "--speaker", "region=0.5:0:1:1,name=ben")
    found = [plain[:30]]
    for first, second in (("anna", "ben"), ("ben", "anna")):
        (folder / "who.srt").write_text(
            f"1\n00:00:00,000 --> 00:00:00,125\n{first}: Hm.\n\n2\n00:00:00,125 --> 00:00:00,700\n{second}: Yes.\n"
        )
        words = ("--audio", folder / "a.wav", *people, "--who-speaks", folder / "who.srt", "--frames", 30)
        assert run(folder, f"{first}.mp4", *words) == 0
        found.append(pictures_of(folder / f"{first}.mp4"))
    assert not any(np.array_equal(a, b) for a, b in itertools.combinations(found, 2))


def test_voices_found_in_one_sound_are_shared_out_as_the_file_beside_the_video_says(folder, capsys, monkeypatch):
    class Halves:
        """Hears speech everywhere, and another voice in each half of the sound."""

        def speech(self, sound):
            return [(0, sound.num_samples // 2), (sound.num_samples // 2 + 800, sound.num_samples)]

        def prints(self, windows):
            self.heard = getattr(self, "heard", -1) + 1
            return np.eye(2)[[self.heard] * len(windows)]

    monkeypatch.setattr(who_speaks, "voice_engine", Halves)
    people = ("--speaker", "region=0:0:0.5:1,name=anna", "--speaker", "region=0.5:0:1:1,name=ben")
    words = ("--audio", folder / "a.wav", *people, "--frames", 60)
    assert run(folder, "found.mp4", *words, "--diarize", "2") == 0
    told, written = capsys.readouterr().err, next(folder.glob("found.mp4.who-speaks-*.csv"))
    assert f"who speaks when is in {written}: correct it there" in told
    assert "speaker anna: 0.00 to 0.35 s" in told and "speaker ben: 0.40 to 0.70 s" in told
    assert run(folder, "written.mp4", *words, "--who-speaks", written) == 0
    assert np.array_equal(pictures_of(folder / "found.mp4"), pictures_of(folder / "written.mp4"))
    written.write_text("start,end,speaker\n0.1,0.2,ben\n")
    assert run(folder, "found.mp4", *words, "--diarize", "2", "--dry-run") == 0
    assert "speaker ben: 0.10 to 0.20 s" in capsys.readouterr().out, "corrected by hand, and used"


def test_a_job_file_lists_speakers(folder, expected, capsys):
    job = {
        "image": "face.png", "output": "job.mp4", "steps": 1, "size": "64x64", "fps": 120,
        "speaker": ["audio=a.wav,region=0:0:0.5:1", {"audio": "b.wav", "region": [0.5, 0, 1, 1], "start": 0.35}],
    }  # fmt: skip
    (folder / "jobs.jsonl").write_text(json.dumps(job))
    assert main(["generate", "--batch", str(folder / "jobs.jsonl"), "--device", "cpu"]) == 0
    assert np.array_equal(pictures_of(folder / "job.mp4"), expected)


@pytest.mark.parametrize(
    "words, message",
    [
        (("--speaker", "region=0:0:1:1"), "--audio must be given"),
        (("--audio", "{folder}/a.wav", "--speaker", "region=0:0:1:1"), "speaker 1 has no audio of its own"),
        (("--speaker", "audio={folder}/a.wav"), "speaker: a speaker needs a region"),
        (("--speaker", "audio={folder}/none.wav,region=0:0:1:1"), "there is no sound file"),
        (("--speaker", "audio={folder}/a.wav,region=0:0:500:9"), "reaches beyond the picture, which is 80x64"),
        (("--audio", "{folder}/a.wav", "--who-speaks", "{folder}/none.csv"), "give each of them with its region"),
        (("--audio", "{folder}/a.wav", "--diarize", "2"), "give each of them with its region"),
        (("--audio", "{folder}/a.wav", "--diarize", "0", "--speaker", "region=0:0:1:1"), "number of voices"),
        (("--audio", "{folder}/a.wav", "--diarize", "1", "--who-speaks", "x.csv"), "says who speaks when, or"),
        (("--audio", "{folder}/a.wav", "--sync-strength", "-1"), "sync strength must be 0 or more"),
        (("--audio", "{folder}/a.wav", "--sync-strength", "2", "--audio-guidance", "3"), "give one of them"),
    ],
)
def test_what_is_wrong_with_speakers_is_one_sentence(folder, capsys, words, message):
    assert run(folder, "wrong.mp4", *(word.format(folder=folder) for word in words)) == 2
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(err.splitlines()) == 1
    assert not (folder / "wrong.mp4").exists()


def test_the_plan_tells_the_speakers_and_both_guidances(folder, capsys):
    words = (*two(folder), "--guidance", "3", "--sync-strength", "1.5", "--dry-run")
    assert run(folder, "plan.mp4", *words) == 0
    told = capsys.readouterr().out
    assert "guidance 3, of the sound 4.5" in told
    assert "speaker 1: a.wav 0.00 to 0.70 s, in 50 % of the picture" in told
    assert "speaker 2: b.wav 0.35 to 0.65 s, in 50 % of the picture" in told

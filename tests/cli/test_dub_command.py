"""`wan-s2v dub`: what people may say, what it says back, and what it makes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from s2v_core.cli import main
from s2v_core.dub.options import DUB_OPTIONS, make_dub_request
from s2v_core.errors import ConfigError
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import probe_video, read_frames
from s2v_core.sampling.presets import LIP_SAFE
from s2v_core.video import fill

from ..core.dub_footage import noise_pictures, swell, write_video

FAST = ("--face-box", "0.25,0.15,0.75,0.85", "--size", "64x64", "--steps", "1", "--guidance", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def logging_stays_as_it_was():
    before = logging.getLogger("s2v_core").level
    yield
    logging.getLogger("s2v_core").setLevel(before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "shot.mp4", noise_pictures(10), 25)
    swell(tmp_path / "new.wav", 0.6)
    return tmp_path


def dub(folder: Path, *words: str) -> int:
    media = ("--video", str(folder / "shot.mp4"), "--audio", str(folder / "new.wav"))
    return main(["dub", *media, "-o", str(folder / "out.mp4"), *words])


def test_a_plan_is_printed_and_nothing_made(folder, capsys):
    assert dub(folder, *FAST, "--start", "0.1", "--length", "trim", "--dry-run") == 0
    said = capsys.readouterr().out
    for words in (
        "video   64x64, 10 frames at 25 fps, 0.40 s", "the sound is cut at the footage's end", "drawn at 64x64",
        "clips   1", "frames 0-2 (outside the times that were asked for)",
    ):  # fmt: skip
        assert words in said, said
    assert not (folder / "out.mp4").exists() and not (folder / "out.mp4.take").exists()


def test_a_plan_says_what_changes_nothing(folder, capsys):
    assert dub(folder, *FAST, "--apg", "--dry-run") == 0
    assert "note    without effect, as nothing is guided (guidance 1): apg" in capsys.readouterr().out


def test_footage_speaks_anew(folder, capsys):
    assert dub(folder, *FAST, "--start", "0.1") == 0
    heard = capsys.readouterr()
    assert "out.mp4: 15 frames, 0.60 s, made in" in heard.out
    assert "frames left as they are: 0-2 (outside the times that were asked for)" in heard.out
    assert "the last frame is held for 0.20 s (5 frames)" in heard.err and "clip 1 of 1 done" in heard.err
    info = probe_video(folder / "out.mp4")
    assert (info.num_frames, info.fps, info.audio_codec) == (15, 25, "aac")
    frames = np.stack(list(read_frames(folder / "out.mp4"))).astype(int)
    truth = np.stack(list(read_frames(folder / "shot.mp4"))).astype(int)
    off = np.abs(frames[:10] - truth)
    assert off[:, :24].mean() < 6 < 20 < off[3:, 36:50, 24:40].mean()


def test_a_stop_says_where_the_clips_are(folder, capsys, monkeypatch):
    def refuse(*args: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fill, "write_segment", refuse)
    assert dub(folder, *FAST) == 130
    assert "stopped; finished clips are kept in" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (("--face-box", "0.5,0.1,0.4,0.9"), "0.5,0.1,0.4,0.9 is no box"),
        (("--face-box", "boxes.csv"), "boxes.csv cannot be read"),
        (("--length", "stretch"), "length must be one of hold, loop, trim; got 'stretch'"),
        (("--strength", "2"), "strength must be above 0 and at most 1, got 2"),
        (("--start", "late"), "start: 'late' is no time, such as 0:12.5"),
        (("--mask-pading", "2"), "unknown option --mask-pading; did you mean --mask-padding?"),
        (("--mask", "none.png"), "there is no picture none.png"),
        (("--size", "65x64"), "multiples of 16"),
    ],
)
def test_a_wrong_word_is_told_in_a_sentence_and_code_2(folder, capsys, words, said):
    assert dub(folder, *words) == 2
    heard = capsys.readouterr().err
    assert said in heard and "Traceback" not in heard and heard.count("\n") == 1


def test_what_must_be_given_and_must_not_be_overwritten(tmp_path):
    def values(**said: object) -> dict[str, object]:
        return {name.replace("_", "-"): value for name, value in said.items()}

    with pytest.raises(ConfigError, match="--video and --output must be given"):
        make_dub_request(values(audio=tmp_path / "a.wav"))
    shot = tmp_path / "a.mp4"
    for name in ("video", "mask", "face_box"):
        given = values(video=tmp_path / "b.mp4", audio=tmp_path / "a.wav", output=shot) | values(**{name: shot})
        with pytest.raises(ConfigError, match=f"would overwrite the {name.replace('_', '-')}"):
            make_dub_request(given)
    with pytest.raises(ConfigError, match=r"must be named \.mp4"):
        make_dub_request(values(video=shot, audio=tmp_path / "a.wav", output=tmp_path / "out.mov"))


def test_every_option_reaches_the_request():
    said = {
        "video": "v.mp4", "audio": "a.wav", "output": "o.mp4", "mask": "m.png", "face-box": "0.1,0.2,0.3,0.4",
        "mask-padding": "0.1", "strength": "0.5", "size": "480p", "length": "loop", "start": "0:01",
        "end": "2", "draw-every": "3", "prompt": "p", "negative-prompt": "n", "seed": "4", "steps": "5",
        "guidance": "6", "sync-strength": "1.5", "apg": True, "shift": "7", "solver": "euler", "continuity": "carry",
        "take": "t", "guidance-interval": "0.2:0.8", "step-cache": "on", "preset": "lightning-8",
    }  # fmt: skip
    values = {name: DUB_OPTIONS[name].parse(name, value) for name, value in said.items()}
    request = make_dub_request(values)
    assert request.face_box == (0.1, 0.2, 0.3, 0.4) and request.max_area == 832 * 480 and request.size is None
    assert (request.mask, request.mask_padding, request.strength, request.length) == (Path("m.png"), 0.1, 0.5, "loop")
    found = {name: value for name, value in values.items() if name not in ("mask", "face-box")}
    assert make_dub_request({**found, "face": 2}).face == 2
    assert (request.start, request.end, request.draw_every, request.seed) == (1, 2, 3, 4)
    settings = request.sampler_settings(steps=1, shift=1, guidance_scale=1)
    assert (settings.steps, settings.guidance_scale, settings.sync_strength, settings.apg) == (5, 6, 1.5, True)
    assert (settings.shift, settings.solver, request.continuity, request.take) == (7, "euler", "carry", Path("t"))
    assert (settings.guidance_interval, settings.step_cache, request.preset) == ((0.2, 0.8), LIP_SAFE, "lightning-8")
    sized = make_dub_request({**values, "size": DUB_OPTIONS["size"].parse("size", "96x64")})
    assert sized.size == VideoSize(width=96, height=64)

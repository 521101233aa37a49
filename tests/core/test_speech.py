"""Words become a wav, by the program on the PATH or by the package; without either, one line says what to install."""

from __future__ import annotations

import json
import os
import re
import sys
import wave

import numpy as np
import pytest

from s2v_core.errors import ConfigError, OutputError
from s2v_core.media import speech
from s2v_core.media.speech import speech_file, write_speech

PROGRAM = f"""#!{sys.executable}
import json, pathlib, sys, wave
words, text = sys.argv[1:], sys.stdin.buffer.read().decode()
if words[words.index("-v") + 1] == "nobody":
    sys.exit("Error: The specified espeak-ng voice does not exist.")
target = pathlib.Path(words[words.index("-w") + 1])
with wave.open(str(target), "wb") as file:
    file.setnchannels(1); file.setsampwidth(2); file.setframerate(22050); file.writeframes(bytes(22050))
pathlib.Path(__file__).with_name("asked.json").write_text(json.dumps([words, text]))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program named espeak-ng, alone on the PATH, that writes down what it is asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "espeak-ng").write_text(PROGRAM)
    (folder / "espeak-ng").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def no_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def samples_of(path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_the_words_reach_the_program_as_they_are_and_no_shell_sees_them(program, tmp_path):
    text = "--help; $(touch hacked) \"quoted\" äöü\nnext line"
    write_speech(text, "en-us+f3", tmp_path / "say.wav")
    words, said = json.loads((program / "asked.json").read_text())
    assert said == text and words[:2] == ["-v", "en-us+f3"] and words[-1] == "--stdin"
    assert sorted(os.listdir(tmp_path)) == ["bin", "say.wav"]


def test_the_wav_lies_beside_the_video_and_is_made_once(program, tmp_path):
    video = tmp_path / "talk.mp4"
    first = speech_file("hello", "en-us", video)
    (program / "asked.json").unlink()
    assert speech_file("hello", "en-us", video) == first and not (program / "asked.json").exists()
    assert first.parent == tmp_path and first.name.startswith("talk.mp4.say-") and first.suffix == ".wav"
    others = {speech_file(text, voice, video) for text, voice in [("hello", "de"), ("bye", "en-us")]}
    assert len({first, *others, speech_file("hello", "en-us", video, 120)}) == 4


@pytest.mark.parametrize("speed", [79, 451])
def test_a_speed_that_nobody_speaks_at_is_refused(program, tmp_path, speed):
    with pytest.raises(ConfigError, match=f"80 to 450 words a minute .*, got {speed}"):
        write_speech("hello", "en-us", tmp_path / "say.wav", speed)
    assert os.listdir(tmp_path) == ["bin"]


def test_the_program_is_told_the_speed(program, tmp_path):
    write_speech("hello", "en-us", tmp_path / "say.wav", 120)
    words, _ = json.loads((program / "asked.json").read_text())
    assert words[words.index("-s") + 1] == "120"


def test_an_unknown_voice_is_named(program, tmp_path):
    with pytest.raises(ConfigError, match="voice 'nobody' .*does not exist.*such as en-us"):
        write_speech("hello", "nobody", tmp_path / "say.wav")
    assert os.listdir(tmp_path) == ["bin"]


@pytest.mark.parametrize("text", ["", "  \n", "?!"])
def test_nothing_to_say_is_refused(program, tmp_path, text):
    with pytest.raises(ConfigError, match="nothing to say"):
        write_speech(text, "en-us", tmp_path / "say.wav")


def test_a_folder_that_cannot_be_is_one_sentence(program, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_speech("hello", "en-us", tmp_path / "file" / "say.wav")


def test_without_espeak_one_line_says_what_brings_it(no_program, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ConfigError, match="`pip install espeakng-loader`"):
        write_speech("hello", "en-us", tmp_path / "say.wav")


def test_the_package_speaks_by_itself_louder_than_silence_and_longer_for_more_words(no_program, tmp_path):
    for name, text in (("short", "Hello."), ("long", "Hello, this is a much longer sentence than the other one.")):
        write_speech(text, speech.VOICE, tmp_path / f"{name}.wav")
    short, long = (samples_of(tmp_path / f"{name}.wav") for name in ("short", "long"))
    assert np.abs(short).max() > 3000 and len(long) > 3 * len(short) > 5000
    for voice in ("nobody", "de+nobody", "xx+f2"):
        with pytest.raises(ConfigError, match=rf"voice '{re.escape(voice)}'"):
            write_speech("hello", voice, tmp_path / "none.wav")
    assert not (tmp_path / "none.wav").exists()


def test_the_package_speaks_languages_variants_and_slowly(no_program, tmp_path):
    said = {}
    for voice in ("en-us", "en-gb", "en-gb+f2", "de", "de+f2", "fr-fr"):   # en-gb and fr-fr are spoken by en and fr
        write_speech("Good morning.", voice, tmp_path / "say.wav")
        said[voice] = samples_of(tmp_path / "say.wav").tobytes()
    assert len(set(said.values())) == len(said)
    write_speech("Good morning.", "en-us", tmp_path / "slow.wav", 90)
    assert len(samples_of(tmp_path / "slow.wav")) > 1.5 * len(said["en-us"]) / 2

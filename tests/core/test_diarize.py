"""One sound of several voices: who speaks when is found, written down, and corrected by hand."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2v_core import who_speaks
from s2v_core.conditioning import diarize as diarizing
from s2v_core.conditioning.diarize import Spoken, cluster, diarize, steady
from s2v_core.conditioning.voice_engine import CHUNK, INSTALL, VoiceEncoder, voice_engine
from s2v_core.config import SAMPLE_RATE
from s2v_core.errors import ConfigError, MediaError, OutputError
from s2v_core.media.audio_io import sound_from_waveform
from s2v_core.speakers import read_turns
from s2v_core.who_speaks import find_turns, turns_file

from ..cli.media import float_wav

LOW, HIGH, THIRD = 220.0, 1400.0, 3000.0


class ByPitch:
    """An engine that hears speech wherever there is sound, and knows voices by their spectrum."""

    def speech(self, sound):
        loud = np.abs(sound.read(0, sound.num_samples).reshape(-1, 160)).max(1) > 0.05
        edges = np.flatnonzero(np.diff(np.concatenate([[0], loud, [0]]).astype(int))) * 160
        return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]

    def prints(self, windows):
        power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
        bands = np.sqrt(np.stack([band.sum(1) for band in np.array_split(power, 16, axis=1)], 1))
        return bands / np.linalg.norm(bands, axis=1, keepdims=True)


def conversation(*said: tuple[float, float]) -> np.ndarray:
    """[S] of stretches of (pitch, seconds); pitch 0 is a pause."""
    rng = np.random.default_rng(0)
    parts = [
        (0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE))
        + (0.02 * rng.standard_normal(round(seconds * SAMPLE_RATE)) if pitch else 0)
        for pitch, seconds in said
    ]
    return np.concatenate(parts).astype(np.float32)


def sound_of(samples):
    return sound_from_waveform(torch.from_numpy(samples)[None], SAMPLE_RATE)


TALK = conversation(
    (0, 0.5), (HIGH, 2), (0, 0.3), (HIGH, 1), (0, 0.6), (LOW, 2), (HIGH, 2), (0, 1), (LOW, 0.3), (0, 0.2)
)  # fmt: skip


def test_voices_are_told_apart_with_pauses_and_without_and_counted_as_they_are_first_heard():
    found = diarize(sound_of(TALK), 2, ByPitch())
    assert [turn.voice for turn in found] == [0, 1, 0, 1]
    starts, ends = [turn.start for turn in found], [turn.end for turn in found]
    assert np.allclose([*starts[:2], starts[3]], [0.5, 4.4, 9.4], atol=0.02), "a short pause belongs to the turn"
    assert np.allclose([ends[0], *ends[2:]], [3.8, 8.4, 9.7], atol=0.02)
    assert starts[2] == ends[1] == pytest.approx(6.4, abs=0.25), "where there is no pause"


def test_three_voices_and_the_same_sound_twice():
    sound = sound_of(conversation((LOW, 2), (0, 0.6), (THIRD, 1), (0, 0.6), (HIGH, 2), (0, 0.6), (THIRD, 1)))
    found = diarize(sound, 3, ByPitch())
    assert [turn.voice for turn in found] == [0, 1, 2, 1] and found == diarize(sound, 3, ByPitch())


def test_a_long_stretch_is_looked_at_a_few_windows_at_a_time(monkeypatch):
    seen = []

    class Counted(ByPitch):
        def prints(self, windows):
            seen.append(len(windows))
            return super().prints(windows)

    expected = diarize(sound_of(TALK), 2, ByPitch())
    monkeypatch.setattr(diarizing, "AT_ONCE", 3)
    assert diarize(sound_of(TALK), 2, Counted()) == expected and max(seen) == 3


def test_one_voice_is_one_voice():
    assert {turn.voice for turn in diarize(sound_of(TALK), 1, ByPitch())} == {0}


def test_too_little_speech_for_so_many_voices_is_said():
    with pytest.raises(MediaError, match="1.0 s of speech are heard in 1.3 s of sound, .* too little to tell 3 voices"):
        diarize(sound_of(conversation((LOW, 1.0), (0, 0.3))), 3, ByPitch())
    with pytest.raises(MediaError, match="0.0 s of speech are heard"):
        diarize(sound_of(conversation((LOW, 1.0))), 1, SimpleNamespace(speech=lambda sound: []))


def test_a_rare_voice_is_found_beside_a_common_one():
    rng = np.random.default_rng(1)
    prints = np.concatenate([np.eye(4)[[0] * 40], np.eye(4)[[1] * 2], np.eye(4)[[2] * 3]])
    prints = prints + 0.05 * rng.standard_normal(prints.shape)
    prints /= np.linalg.norm(prints, axis=1, keepdims=True)
    assert sorted((cluster(prints, 3) @ np.eye(4)[:3].T).argmax(1)) == [0, 1, 2]


def test_a_moment_that_sounds_a_little_like_another_voice_is_no_change_but_a_turn_is():
    alike = np.array([[1, 0.5]] * 5 + [[0.6, 0.7]] + [[1, 0.5]] * 5 + [[0.4, 0.9]] * 4)
    assert steady(alike, 0.3).tolist() == [0] * 11 + [1] * 4
    assert steady(alike, 0.0).tolist() == [0] * 5 + [1] + [0] * 5 + [1] * 4


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(tmp_path, monkeypatch):
    float_wav(tmp_path / "talk.wav", TALK)
    monkeypatch.setattr(who_speaks, "voice_engine", ByPitch)
    return tmp_path / "talk.wav"


def test_names_are_given_in_the_order_of_first_words_and_voices_without_a_speaker_are_numbered():
    sound = sound_of(conversation((LOW, 2), (0, 0.6), (THIRD, 1), (0, 0.6), (HIGH, 2)))
    assert [turn.speaker for turn in find_turns(sound, ["anna", "ben"], 3, ByPitch())] == ["anna", "ben", "voice 3"]


def test_what_is_found_lies_beside_the_video_is_read_back_and_is_not_found_again(talk, tmp_path, monkeypatch):
    video = tmp_path / "talk.mp4"
    path = turns_file(talk, ["anna", "ben"], 2, beside=video)
    assert path.parent == tmp_path and path.name.startswith("talk.mp4.who-speaks-") and path.suffix == ".csv"
    assert [turn.speaker for turn in read_turns(path, ["anna", "ben"])] == ["anna", "ben", "anna", "ben"]
    path.write_text("start,end,speaker\n1,2,ben\n")   # corrected
    monkeypatch.setattr(who_speaks, "voice_engine", None)
    assert turns_file(talk, ["anna", "ben"], 2, beside=video) == path
    assert [turn.speaker for turn in read_turns(path, ["anna", "ben"])] == ["ben"]


def test_other_speakers_another_number_and_another_sound_are_found_anew(talk, tmp_path):
    video = tmp_path / "talk.mp4"
    asked = ((["a", "b"], 2), (["b", "a"], 2), (["a"], 2))
    paths = {turns_file(talk, names, number, beside=video) for names, number in asked}
    float_wav(talk, TALK[::-1])
    assert len({*paths, turns_file(talk, ["a", "b"], 2, beside=video)}) == 4


def test_voices_without_a_speaker_stay_in_the_file_as_remarks(talk, tmp_path):
    path = turns_file(talk, ["anna"], 2, beside=tmp_path / "no folder yet" / "talk.mp4")
    assert path.read_text().count("\n# ") == 2 and ",voice 2\n" in path.read_text()
    assert {turn.speaker for turn in read_turns(path, ["anna"])} == {"anna"}


def test_a_sound_that_is_not_there_and_a_folder_that_is_no_folder_are_one_sentence(talk, tmp_path):
    with pytest.raises(MediaError, match="there is no sound file"):
        turns_file(tmp_path / "none.wav", ["a"], 2, beside=tmp_path / "talk.mp4")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        turns_file(talk, ["a"], 2, beside=tmp_path / "file" / "talk.mp4")


# ---- the packages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["silero_vad", "resemblyzer"])
def test_without_a_package_one_line_says_what_brings_it(monkeypatch, packages, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "resemblyzer":
        monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError) as told:
        voice_engine()
    assert INSTALL in str(told.value) and "who-speaks" in str(told.value) and "\n" not in str(told.value)


class Loud:
    """As silero-vad's iterator: told a chunk at a time, it says where speech begins and ends."""

    def __init__(self, model, *, sampling_rate, min_silence_duration_ms):
        assert model == "model" and sampling_rate == SAMPLE_RATE and min_silence_duration_ms == 150
        self.at, self.speaks = 0, False

    def __call__(self, chunk):
        assert chunk.shape == (CHUNK,)
        loud, self.at = bool(chunk.abs().max() > 0.1), self.at + CHUNK
        if loud == self.speaks:
            return None
        self.speaks = loud
        return {"start" if loud else "end": self.at - CHUNK}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Both packages as they lie in a folder of packages, with weights that have learnt nothing."""
    torch.manual_seed(0)
    folder = tmp_path / "site" / "resemblyzer"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('is not to be imported')")
    state = {**VoiceEncoder().state_dict(), "similarity_weight": torch.ones(1)}
    torch.save({"step": 1, "model_state": state}, folder / "pretrained.pt")
    monkeypatch.syspath_prepend(str(folder.parent))

    def load():
        torch.set_num_threads(1)
        return "model"

    monkeypatch.setitem(sys.modules, "silero_vad", SimpleNamespace(VADIterator=Loud, load_silero_vad=load))
    return folder


def test_speech_is_heard_chunk_by_chunk_to_the_end_and_torch_keeps_its_threads(packages):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = voice_engine().speech(sound_of(conversation((0, 1), (LOW, 1), (0, 3), (HIGH, 0.7))))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert np.allclose(np.array(found) / SAMPLE_RATE, [(1, 2), (5, 5.7)], atol=CHUNK / SAMPLE_RATE)
    assert found[-1][1] == round(5.7 * SAMPLE_RATE)


def test_a_voice_has_one_print_however_loud_it_is(packages):
    voices = np.random.default_rng(0).standard_normal((3, 8000)).astype(np.float32)
    prints = voice_engine().prints(voices)
    assert prints.shape == (3, 256) and np.allclose(np.linalg.norm(prints, axis=1), 1, atol=1e-5)
    assert np.allclose(prints, voice_engine().prints(0.01 * voices), atol=1e-5)
    assert not np.allclose(prints[0], prints[1], atol=1e-5)


def test_another_encoder_than_expected_is_named(packages):
    torch.save({"model_state": {"lstm.weight": torch.ones(1)}}, packages / "pretrained.pt")
    with pytest.raises(ConfigError, match="pretrained.pt holds another voice encoder"):
        voice_engine()


def test_turns_say_their_seconds():
    assert diarize(sound_of(conversation((LOW, 1.0))), 1, ByPitch()) == (Spoken(start=0.0, end=1.0, voice=0),)

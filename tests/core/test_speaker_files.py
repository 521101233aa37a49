"""Speakers as people write them, and files of who speaks when."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2v_core.errors import ConfigError
from s2v_core.speakers import FaceNumber, Speaker, Turn, parse_speaker, parse_turns, read_turns, turns_text


def test_a_speaker_is_written_in_one_line_or_as_a_mapping():
    written = parse_speaker("audio=take 1, anna.wav,region=0:0:0.5:1, name=anna,start=1:02.5,end=80")
    assert written == Speaker(
        region=(0, 0, 0.5, 1), audio=Path("take 1, anna.wav"), name="anna", start=62.5, end=80.0
    )  # fmt: skip
    mapping = {"audio": "take 1, anna.wav", "region": [0, 0, 0.5, 1], "name": "anna", "start": 62.5, "end": 80}
    assert parse_speaker(mapping) == written
    assert parse_speaker("region=mask.png").region == Path("mask.png")
    assert parse_speaker("region=10:20:300:400").region == (10, 20, 300, 400)
    assert parse_speaker("region=face:2, name=ben").region == FaceNumber(number=2)


def test_files_start_at_the_folder_of_the_job():
    speaker = parse_speaker("audio=a.wav,region=mask.png").under(Path("jobs"))
    assert (speaker.audio, speaker.region) == (Path("jobs/a.wav"), Path("jobs/mask.png"))
    assert parse_speaker("audio=/a.wav,region=0:0:1:1").under(Path("jobs")).audio == Path("/a.wav")


@pytest.mark.parametrize(
    "value, message",
    [
        ("a.wav", "written as audio=FILE,region="),
        ("audio=a.wav", "needs a region"),
        ("audio=a.wav,region=0:0:0.5", "a region is LEFT:TOP:RIGHT:BOTTOM"),
        ("audio=a.wav,region=0.5:0:0.2:1", "from its left to its right.*0.5:0:0.2:1"),
        ("audio=a.wav,region=0:0:1:1,voice=b", "a speaker has region, audio, name, start, end, not 'voice'"),
        ("audio=a.wav,audio=b.wav,region=0:0:1:1", "each once"),
        ("audio=a.wav,region=0:0:1:1,start=soon", "'soon' is no time"),
        ("audio=a.wav,region=0:0:1:1,start=4,end=2", "ends after it begins; got 4 to 2"),
        ("region=0:0:1:1,start=4", "give its audio too"),
        ("region=face:0", "counted from 1, from left to right; got face:0"),
        (7, "a speaker is written as"),
    ],
)
def test_what_is_wrong_with_a_speaker_is_said(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_speaker(value)


TURNS = (Turn(start=0, end=4.5, speaker="anna"), Turn(start=4.5, end=9, speaker="ben"))


@pytest.mark.parametrize(
    "text",
    [
        "start,end,speaker\n0,4.5,anna\n0:04.5,0:09,ben\n",
        "# who\n0\t4.5\tanna\n\n4.5\t9\tben",
        "0;4,5;anna\n4,5;9;ben",
        "# said; and heard\n0,4.5,anna\n4.5,9,ben",
        "1\n00:00:00,000 --> 00:00:04,500\nanna: Good morning!\n\n2\n00:00:04,500 --> 00:00:09,000\nben: And you?\n",
        "WEBVTT\n\n00:00.000 --> 00:04.500 align:left\n<v anna>Good morning!\n\n00:04.500 --> 00:09.000\n[ben] Hm.\n",
        "00:00.0 --> 00:04.5\nanna\n\n00:04.5 --> 00:09.0\nben",
    ],
    ids=["table", "tabs", "semicolons", "a remark", "srt", "vtt", "names alone"],
)
def test_who_speaks_when_is_a_table_or_subtitles(tmp_path, text):
    (tmp_path / "turns").write_text(text, encoding="utf-8-sig")
    assert read_turns(tmp_path / "turns", ("anna", "ben")) == TURNS


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "says of nobody when they speak"),
        ("0,4\n", "line 1 of .*turns must be start,end,speaker"),
        ("0,4,anna\n5,6,carl", "line 2 of .*: there is no speaker 'carl'; the speakers are anna, ben"),
        ("0,soon,anna", "line 1 of .*: 'soon' is no time"),
        ("4,4,anna", "line 1 of .*: a turn ends after it begins"),
        ("1\n00:00:00,000 --> 00:00:04,500\n", "after line 2 of .* must stand who speaks"),
    ],
)
def test_what_is_wrong_with_a_file_of_turns_is_said_with_its_line(tmp_path, text, message):
    (tmp_path / "turns").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_turns(tmp_path / "turns", ("anna", "ben"))


def test_a_file_of_turns_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read who speaks from .*none.csv"):
        read_turns(tmp_path / "none.csv", ("anna",))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        read_turns(tmp_path / "bytes", ("anna",))


@pytest.mark.parametrize("name", ["Smith, Anna", "anna; ben", 'the "boss"', "anna"])
def test_a_table_as_it_is_written_can_be_read_whatever_people_are_called(name):
    turns = (Turn(start=0, end=4.5, speaker=name), Turn(start=4.5, end=9, speaker="voice 2"))
    assert parse_turns(turns_text(turns, [name]), [name], where="here") == turns[:1]

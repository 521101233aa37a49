"""A job's speakers: their regions on the video, what each says frame by frame, and what is heard."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.cast import open_cast
from s2v_core.conditioning.audio import SilentFeatures, SoundFeatures
from s2v_core.conditioning.driving import Excerpt
from s2v_core.conditioning.speakers import SpokenFeatures, Utterance
from s2v_core.errors import ConfigError, MediaError
from s2v_core.geometry import VideoSize
from s2v_core.media.audio_io import open_sound
from s2v_core.request import Request
from s2v_core.speakers import parse_speaker
from s2v_core.types import ClipPlan
from s2v_core.video.generate import speaker_inputs

from ..cli.media import picture, tone

FPS = 16.0
SIZE = VideoSize(width=128, height=64)


def encode(waveform: torch.Tensor) -> torch.Tensor:
    """[1, S] -> [2, T, 3] hidden states that tell loudness and place, as a sound encoder would."""
    windows = waveform.unfold(1, 400, 320)[0]                                        # [T, 400]
    states = torch.stack([windows.abs().mean(1), windows.square().mean(1), windows[:, 0]], -1)
    return torch.stack([states, 1 + 2 * states])


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "face.png", 128, 64)
    tone(tmp_path / "a.wav", seconds=2)
    tone(tmp_path / "b.wav", seconds=1, rate=24_000)
    return tmp_path


def request(folder, *speakers, **changes) -> Request:
    said = tuple(parse_speaker(speaker).under(folder) for speaker in speakers)
    return Request(image=folder / "face.png", speakers=said, **changes)


def opened(folder, *speakers, size=SIZE, **changes):
    asked = request(folder, *speakers, **changes)
    return open_cast(asked, Image.open(asked.image), size)


def masks(folder, *regions, size=SIZE):
    with opened(folder, *(f"audio=a.wav,region={region}" for region in regions), size=size) as cast:
        return [person.mask for person in cast.people]


def features(folder, cast, track="a.wav"):
    track = SoundFeatures(open_sound(folder / track), encode, fps=FPS)
    return track, *cast.features(track, encode, FPS)


@pytest.fixture
def photo(folder):
    """The same photographed person twice, the bigger one to the left."""
    face = Image.open(Path(__file__).parent / "data" / "face.jpg").convert("RGB")
    both = Image.new("RGB", (640, 320), (90, 110, 130))
    both.paste(face.resize((240, 240)), (20, 40))
    both.paste(face, (420, 80))
    both.save(folder / "face.png")
    return folder


def test_a_region_is_a_face_counted_from_the_left(photo):
    size = VideoSize(width=640, height=320)
    left, right = masks(photo, "face:1", "face:2", size=size)
    assert (left * right).max() == 0 and left.sum() > 1.5 * right.sum()
    for mask, mouth in ((left, (20 + 120, 40 + 153)), (right, (420 + 80, 80 + 102))):   # in the photograph
        assert mask[mouth[1] // 8, mouth[0] // 8] == 1
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert abs(8 * columns.float().mean() - mouth[0]) < 24 and mask.mean() < 0.4


def test_a_face_that_is_not_there_is_said_with_how_many_are(photo):
    with pytest.raises(ConfigError, match="face:3 is asked for and 2 faces found in the picture, .* LEFT:TOP:"):
        masks(photo, "face:1", "face:3")
    Image.new("RGB", (640, 320), (90, 110, 130)).save(photo / "face.png")
    with pytest.raises(ConfigError, match="face:1 is asked for and no faces found"):
        masks(photo, "face:1")


def test_a_face_by_number_without_opencv_says_what_brings_it(photo, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="pip install 'opencv-python-headless<5'; or .* by a box or mask"):
        masks(photo, "face:1")


def test_a_region_is_in_pixels_or_fractions_of_the_picture_or_drawn(folder):
    drawn = np.zeros((64, 128, 3), np.uint8)
    drawn[:, :64] = 255
    Image.fromarray(drawn).save(folder / "left.png")
    Image.fromarray(np.dstack([np.full_like(drawn, 255), drawn[..., 0]])).save(folder / "layer.png")   # on nothing
    left, fractions, painted, layer = masks(folder, "0:0:64:64", "0:0:0.5:1", "left.png", "layer.png")
    assert left.shape == (8, 16) and torch.equal(left, fractions) and torch.equal(layer, painted)
    torch.testing.assert_close(left, painted)
    assert left[:, :7].min() == 1 and left[:, 9:].max() == 0


def test_neighbouring_regions_share_a_soft_edge_and_come_to_one(folder):
    left, right = masks(folder, "0:0:60:64", "60:0:128:64")
    assert 0 < left[0, 7] < 1
    torch.testing.assert_close(left + right, torch.ones(8, 16))


def test_a_region_is_cropped_as_the_picture_is(folder):
    (left,) = masks(folder, "0:0:0.5:1", size=VideoSize(width=64, height=64))
    assert left[:, :3].min() == 1 and left[:, 5:].max() == 0, "the middle of the picture is the middle of the video"
    with pytest.raises(ConfigError, match="region 0:0:0.1:1 is nowhere in the video"):
        masks(folder, "0:0:0.1:1", size=VideoSize(width=64, height=64))


def test_regions_that_do_not_fit_the_picture_are_refused(folder):
    with pytest.raises(ConfigError, match="0:0:129:64 reaches beyond the picture, which is 128x64 pixels"):
        masks(folder, "0:0:129:64")
    picture(folder / "square.png", 64, 64)
    with pytest.raises(ConfigError, match="square.png is 64x64 and the picture 128x64"):
        masks(folder, "square.png")
    with pytest.raises(MediaError, match="no picture .*none.png"):
        masks(folder, "none.png")


def test_each_speaker_says_its_own_sound_and_silence_is_outside(folder):
    with opened(folder, "audio=a.wav,region=0:0:0.5:1", "audio=b.wav,region=0.5:0:1:1") as cast:
        _, outside, (left, right) = features(folder, cast)
        silence = SilentFeatures(encode).window(0, 40)
        assert torch.equal(outside.window(0, 40), silence)
        for speaker, name in ((left, "a.wav"), (right, "b.wav")):
            alone = SoundFeatures(open_sound(folder / name), encode, fps=FPS)
            assert torch.equal(speaker.audio.window(-3, 40), alone.window(-3, 40))
        still = [torch.equal(speaker.audio.window(17, 30), silence[..., :13]) for speaker in (left, right)]
        assert still == [False, True], "a second of sound ends with frame 15"


def test_a_voice_begins_at_its_time_to_the_sample_and_is_cut_at_its_end(folder):
    with opened(folder, "audio=a.wav,region=0:0:1:1,start=1.03,end=1.9") as cast:
        _, _, (speaker,) = features(folder, cast)
        rest = Fraction(103, 100) - Fraction(16, 16)   # from frame 16 on
        moved = Excerpt(open_sound(folder / "a.wav"), start=-rest, duration=rest + Fraction(87, 100))
        expected = SoundFeatures(moved, encode, fps=FPS)
        assert torch.equal(speaker.audio.window(16, 31), expected.window(0, 15))
        silence = SilentFeatures(encode)
        assert torch.equal(speaker.audio.window(0, 16), silence.window(0, 16))
        assert torch.equal(speaker.audio.window(31, 40), silence.window(0, 9))
        assert open_sound(cast.heard).duration == Fraction(19, 10)


def test_one_sound_is_shared_out_by_who_speaks_when(folder):
    (folder / "who.csv").write_text("0,0.5,anna\n0.5,1.25,ben\n")
    people = ("region=0:0:0.4:1,name=anna", "region=0.6:0:1:1,name=ben")
    with opened(folder, *people, audio=folder / "a.wav", who_speaks=folder / "who.csv") as cast:
        track, _, (anna, ben) = features(folder, cast)
        heard, silence = track.window(0, 24), SilentFeatures(encode).window(0, 24)
        for speaker, start, stop in ((anna, 0, 8), (ben, 8, 20)):
            said = speaker.audio.window(0, 24)
            assert torch.equal(said[..., start:stop], heard[..., start:stop])
            rest = [k for k in range(24) if not start <= k < stop]
            assert torch.equal(said[..., rest], silence[..., rest])
        assert cast.heard == folder / "a.wav"
        assert cast.remarks() == (
            "speaker anna: 0.00 to 0.50 s, in 40 % of the picture",
            "speaker ben: 0.50 to 1.25 s, in 40 % of the picture",
        )


def test_a_storyboard_shares_one_sound_out_clip_by_clip(folder):
    people = ("region=0:0:0.4:1,name=anna", "region=0.6:0:1:1,name=ben")
    starts = (-3, 5, 13, 21)
    plans = [ClipPlan(index=i, start_frame=at, stop_frame=at + 8, seed=0, uses_motion=i > 0)
             for i, at in enumerate(starts)]   # fmt: skip
    with opened(folder, *people, audio=folder / "a.wav", storyboard=folder / "board.txt") as cast:
        told = cast.directed(plans, ["ben", "anna", "anna", "anna+ben"], FPS)
        track, _, (anna, ben) = features(folder, told)
        heard, silence = track.window(0, 29), SilentFeatures(encode).window(0, 29)
        for speaker, speaking in ((anna, range(5, 29)), (ben, [*range(5), *range(21, 29)])):
            said = speaker.audio.window(0, 29)
            assert [k for k in range(29) if torch.equal(said[..., k], heard[..., k])] == list(speaking)
            assert [k for k in range(29) if torch.equal(said[..., k], silence[..., k])] == [
                k for k in range(29) if k not in speaking
            ]
        with pytest.raises(ConfigError, match="'carl' is nobody's name; the speakers are anna, ben"):
            cast.directed(plans[:1], ["carl"], FPS)
        with pytest.raises(ConfigError, match="nobody says when speaker anna speaks"):
            cast.directed(plans[:1], [None], FPS)
        with pytest.raises(ConfigError, match="leave out one of the two"):
            told.directed(plans[:1], ["anna"], FPS)


def test_turns_are_on_the_clock_of_the_sound_also_where_the_video_begins_within_it(folder):
    (folder / "who.csv").write_text("0,0.5,1\n0.75,1.5,1\n")
    cut = {"audio_start": 0.5, "audio_offset": 125.0}   # the picture is two frames late
    with opened(folder, "region=0:0:1:1", audio=folder / "a.wav", who_speaks=folder / "who.csv", **cut) as cast:
        track, _, (speaker,) = features(folder, cast)
        said, heard, silence = (f.window(0, 24) for f in (speaker.audio, track, SilentFeatures(encode)))
        speaking = [k for k in range(24) if torch.equal(said[..., k], heard[..., k])]
        assert speaking == [0, 1, *range(6, 18)] and torch.equal(said[..., 2:6], silence[..., 2:6])


def test_several_voices_in_one_region_are_one_person_who_says_them_all(folder):
    region = "region=0:0:0.5:1"
    with opened(folder, f"audio=b.wav,{region}", f"audio=a.wav,{region},start=1.5") as cast:
        _, _, (person,) = features(folder, cast)
        a, b = (SoundFeatures(open_sound(folder / f"{name}.wav"), encode, fps=FPS) for name in "ab")
        said = person.audio.window(0, 56)
        assert torch.equal(said[..., :16], b.window(0, 16)) and torch.equal(said[..., 24:], a.window(0, 32))
        assert torch.equal(said[..., 16:24], SilentFeatures(encode).window(0, 8))
        assert open_sound(cast.heard).duration == Fraction(7, 2)


def test_one_speaker_everywhere_hears_what_everybody_would_without_speakers(folder):
    with opened(folder, "audio=a.wav,region=0:0:1:1") as cast:
        track, _, speakers = features(folder, cast)
        given = speaker_inputs(ClipPlan(index=0, start_frame=-3, stop_frame=37, seed=0, uses_motion=False), speakers)
        assert torch.equal(given["speaker_features"][:, 0], track.window(-3, 37))
        assert given["speaker_masks"].shape == (1, 1, 10, 8, 16) and given["speaker_masks"].min() == 1
        assert cast.heard == folder / "a.wav", "no mix where nothing is mixed"
    with opened(folder, audio=folder / "a.wav") as nobody:
        track, outside, speakers = features(folder, nobody)
        assert outside is track and speakers == ()


def made_from(folder, *speakers, **changes):
    """What a job's pixels depend on of its speakers: in every clip, in frames 0 to 15, in frames 16 to 31."""
    clips = [ClipPlan(index=0, start_frame=at, stop_frame=at + 16, seed=0, uses_motion=False) for at in (0, 16)]
    with opened(folder, *speakers, **changes) as cast:
        return [json.dumps(cast.fingerprint()), *(json.dumps(cast.said_in(clip, FPS)) for clip in clips)]


def test_what_a_clip_is_made_from_changes_with_place_voice_and_times(folder):
    one = "audio=a.wav,region=0:0:0.5:1"
    before = made_from(folder, one)
    assert made_from(folder, one + ",name=anna") == before
    for changed, expected in (
        ("audio=a.wav,region=0:0:0.6:1", [False, True, True]),
        ("audio=b.wav,region=0:0:0.5:1", [True, False, False]),
        (one + ",start=0.02", [True, False, False]),
        (one + ",end=1.5", [True, True, False]),
    ):
        assert [a == b for a, b in zip(made_from(folder, changed), before, strict=True)] == expected, changed


def test_turns_that_come_later_leave_the_clips_before_as_they_are(folder):
    found = []
    for lines in ("0,1,1\n", "0,0.8,1\n", "0,1,1\n1,2,1\n"):
        (folder / "who.csv").write_text(lines)
        found.append(made_from(folder, "region=0:0:1:1", audio=folder / "a.wav", who_speaks=folder / "who.csv"))
    assert [a == b for a, b in zip(found[0], found[1], strict=True)] == [True, False, True]
    assert [a == b for a, b in zip(found[0], found[2], strict=True)] == [True, True, False]


def test_later_words_replace_earlier_ones_only_while_they_last():
    class Constant:
        def __init__(self, value):
            self.value = value

        def window(self, start, stop):
            return torch.full((1, 1, 1, stop - start), float(self.value))

    def utterance(value, start, stop):
        return Utterance(audio=Constant(value), first_frame=0, start_frame=start, stop_frame=stop)

    said = [utterance(1, 2, 6), utterance(2, 4, 5)]
    assert SpokenFeatures(Constant(0), said).window(1, 8).flatten().tolist() == [0, 1, 1, 2, 1, 0, 0]


def test_what_is_heard_and_by_whom_must_be_clear(folder):
    voice, place = "audio=a.wav,region=0:0:1:1", "region=0:0:1:1"
    track, who = folder / "a.wav", folder / "who.csv"
    for speakers, changes, message in (
        ((), {}, "needs a sound"),
        ((place,), {"audio": track}, "speaker 1 has no audio of its own"),
        ((voice,), {"audio": track, "who_speaks": who}, "leave out theirs"),
        ((), {"audio": track, "who_speaks": who}, "give each of them with its region"),
        ((place,), {"who_speaks": who}, "give that sound as audio"),
        ((place + ",name=a", place + ",name=a"), {"audio": track, "who_speaks": who}, "two speakers are called a"),
    ):
        with pytest.raises(ConfigError, match=message):
            request(folder, *speakers, **changes)
    with pytest.raises(ConfigError, match="nothing is left between 0 s and 0.01 s"):
        opened(folder, voice + ",end=0.01").__enter__()
    tone(folder / "blip.wav", seconds=1102 / 44_100, rate=44_100)   # 400 samples at 16 kHz, rounded
    with pytest.raises(ConfigError, match="blip.wav lasts 0.025 s: no voice is that short"):
        opened(folder, "audio=blip.wav,region=0:0:1:1").__enter__()

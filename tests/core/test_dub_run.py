"""Footage re-dubbed with the bundled model: what changes and what never does, at any frame rate and after a stop."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core import WanS2VPipeline
from s2v_core.dub import filling, shot
from s2v_core.dub.faces import Face
from s2v_core.dub.request import DubRequest
from s2v_core.dub.run import Dubber
from s2v_core.dub.shot import Shot
from s2v_core.dub.stretch import Stretch, StretchSound
from s2v_core.dub.timeline import make_timeline
from s2v_core.errors import ConfigError, Interrupted, MediaError
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import (
    PixelTags,
    probe_video,
    read_frames,
    read_tags,
    read_timed_frames,
    write_segment,
)
from s2v_core.running.watch import Silent

from .dub_footage import FACE, SIDE, noise_pictures, swell, talking_head, write_video, write_wav

SIZE = VideoSize(width=64, height=64)
RATES = [Fraction(24_000, 1001), 24, 25, Fraction(30_000, 1001), 30, 50, Fraction(60_000, 1001)]


@pytest.fixture(scope="module")
def dubber() -> Dubber:
    return Dubber(WanS2VPipeline.from_pretrained(device_map="cpu").components)


def request(folder: Path, **settings) -> DubRequest:
    return DubRequest(
        **{
            "video": folder / "shot.mp4", "audio": folder / "new.wav", "output": folder / "out.mp4", "face_box": FACE,
            "size": SIZE, "steps": 1, "guidance_scale": 1.0, "clip_frames": 16, **settings,
        }
    )  # fmt: skip


def footage(folder: Path, num_frames: int = 10, rate=25, seconds: float | None = None, **settings) -> list[np.ndarray]:
    """shot.mp4 and new.wav; the shot as it is decoded."""
    write_video(folder / "shot.mp4", noise_pictures(num_frames), rate, **settings)
    swell(folder / "new.wav", num_frames / float(rate) if seconds is None else seconds)
    return list(read_frames(folder / "shot.mp4"))


def changed(pictures, truth) -> np.ndarray:
    """[F, H, W] bool."""
    return np.stack([(a != b).any(-1) for a, b in zip(pictures, truth, strict=True)])


# ---- what never changes ----------------------------------------------------------------------------------------------


def test_outside_a_users_mask_every_bit_stays_and_inside_the_mouth_is_new(dubber, written, tmp_path):
    truth = footage(tmp_path)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[34:54, 20:46] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    dubber.run(request(tmp_path, face_box=None, mask=tmp_path / "mask.png"))
    moved = changed(written, truth)
    assert not moved[:, mask == 0].any()
    assert moved[:, 40:48, 26:40].mean() > 0.9


@pytest.mark.parametrize("rate", RATES)
def test_size_rate_frames_and_everything_outside_the_lower_face_stay(dubber, written, tmp_path, rate):
    truth = footage(tmp_path, rate=rate)
    result = dubber.run(request(tmp_path))
    moved = changed(written, truth)
    lower = np.zeros((SIDE, SIDE), bool)
    lower[int(0.4 * SIDE) : int(0.87 * SIDE), int(FACE[0] * SIDE) : int(FACE[2] * SIDE)] = True
    assert moved.any(0)[lower].mean() > 0.5 and not moved[:, ~lower].any() and moved.any((1, 2)).all()
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height, info.num_frames) == (SIDE, SIDE, 10) and info.fps == pytest.approx(float(rate))
    assert info.duration == pytest.approx(result.seconds) == pytest.approx(10 / float(rate))
    assert info.audio_codec == "aac" and result.untouched == ()


def test_frames_that_come_unevenly_keep_their_times(dubber, tmp_path):
    times = [0.0, 0.03, 0.08, 0.12, 0.2, 0.24, 0.3, 0.33]
    footage(tmp_path, 8, seconds=0.36, times=times)
    plan = dubber.plan(request(tmp_path))
    assert "a varying frame rate" in str(plan)
    dubber.run(request(tmp_path))
    shown = [frame.seconds for frame in read_timed_frames(tmp_path / "out.mp4")]
    assert np.allclose(shown, times, atol=1e-4)


def test_odd_sides_stay(dubber, tmp_path):
    write_video(tmp_path / "shot.mp4", noise_pictures(6, width=75, height=67))
    swell(tmp_path / "new.wav", 0.24)
    dubber.run(request(tmp_path))
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height) == (75, 67)


def test_oblong_pixels_and_hdr_stay_and_hdr_is_told(dubber, tmp_path, caplog):
    tags = PixelTags(aspect=Fraction(4, 3), primaries=9, transfer=18, matrix=9)
    write_segment(tmp_path / "shot.mp4", noise_pictures(6), fps=25, tags=tags)
    swell(tmp_path / "new.wav", 0.24)
    dubber.run(request(tmp_path))
    assert read_tags(tmp_path / "out.mp4") == tags
    assert "shot.mp4 is HDR footage: the result is HDR too, of 8 bits a channel" in caplog.text


def test_frames_without_a_box_are_the_footages_own_and_listed(dubber, written, tmp_path):
    truth = footage(tmp_path, 16)
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("frame", "left", "top", "right", "bottom"), *((k, *FACE) for k in range(16) if k not in (0, 6, 7, 15))]
        )
    result = dubber.run(request(tmp_path, face_box=tmp_path / "boxes.csv"))
    assert [str(u) for u in result.untouched] == ["0 (no face)", "6-7 (no face)", "15 (no face)"]
    assert [k for k, frame in enumerate(changed(written, truth)) if not frame.any()] == [0, 6, 7, 15]


def test_nothing_changes_outside_the_times_that_were_asked_for(dubber, written, tmp_path):
    truth = footage(tmp_path, 15)
    result = dubber.run(request(tmp_path, start=0.12, end=0.4))
    assert [k for k, frame in enumerate(changed(written, truth)) if frame.any()] == list(range(3, 10))
    assert [(u.first, u.last) for u in result.untouched] == [(0, 2), (10, 14)]
    assert "outside the times" in str(result.untouched[0])


@dataclass
class People:
    """A detector's stand-in: two people, of whom the right one is larger and away in frames 4 to 9."""

    is_given: bool = False

    def seen(self, number, seconds, picture):
        faces = [Face(box=(2, 8, 22, 32))]
        return faces if 4 <= number < 10 else [*faces, Face(box=(30.0, 10.0, 60.0, 50.0))]


def test_other_people_stay_as_they_are_and_the_one_who_is_away_is_listed(written, dubber, tmp_path):
    truth = footage(tmp_path, 20)
    result = Dubber(dubber.components, People()).run(request(tmp_path, face_box=None))
    moved = changed(written, truth)
    assert not moved[:, :, :30].any() and [k for k, frame in enumerate(moved) if not frame.any()] == [4, 5, 6, 7, 8, 9]
    assert [str(u) for u in result.untouched] == ["4-9 (no face)"]
    written.clear()
    Dubber(dubber.components, People()).run(request(tmp_path, face_box=None, face=1))
    moved = changed(written, truth)
    assert moved.any((1, 2)).all() and not moved[:, :, 22:].any()


def test_a_cut_starts_anew_with_its_own_reference(dubber, tmp_path):
    one, other = noise_pictures(10, seed=1), noise_pictures(10, seed=2)
    write_video(tmp_path / "shot.mp4", one + other)
    swell(tmp_path / "new.wav", 0.8)
    plan = dubber.plan(request(tmp_path, clip_frames=12)).work
    assert [(s.first, s.stop) for s in plan.stretches] == [(0, 10), (10, 20)]
    assert [(p.index, p.uses_motion, p.seed, p.trim_start) for p in plan.clips] == [
        (0, False, 0, 3), (1, True, 1, 0), (2, False, 2, 3), (3, True, 3, 0)
    ]  # fmt: skip


# ---- length ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds, length, frames, said",
    [
        (0.6, "hold", 15, "the last frame is held for 0.20 s (5 frames)"),
        (0.6, "loop", 15, "goes back and forth for 0.20 s"),
        (0.6, "trim", 10, "the sound is cut at the footage's end"),
        (0.2, "hold", 10, "goes on without sound, the mouth at rest"),
        (0.2, "trim", 5, "the footage is cut at the sound's end, after 5 frames"),
    ],
)
def test_sound_of_another_length_is_met_as_asked_and_said(dubber, tmp_path, seconds, length, frames, said):
    footage(tmp_path, seconds=seconds)
    asked = request(tmp_path, length=length)
    assert said in str(dubber.plan(asked))
    assert dubber.run(asked).num_frames == frames == probe_video(tmp_path / "out.mp4").num_frames


def test_a_looped_movement_is_drawn_on_its_own_frames(dubber, written, tmp_path):
    truth = footage(tmp_path, seconds=0.6)
    dubber.run(request(tmp_path, length="loop"))
    numbers = [*range(10), 8, 7, 6, 5, 4]
    moved = changed(written, [truth[n] for n in numbers])
    assert moved.any((1, 2)).all() and not moved[:, :24].any()


# ---- time ------------------------------------------------------------------------------------------------------------


class Numbered:
    """Features whose value is their number."""

    def window(self, start, stop):
        return torch.arange(start, stop).float().view(1, 1, 1, -1)


def heard(times, end, rate, sound, *, first=0, draw_every=1, num=8):
    shot = Shot(path=Path("x"), width=8, height=8, times=tuple(times), end=end, rate=rate, cuts=frozenset())
    stretch = Stretch(
        first=first, faces=tuple([FACE] * (len(times) - first)), crops=np.zeros(1), draw_every=draw_every, plans=()
    )
    timeline = make_timeline(shot, float(sound), "hold")
    sounds = StretchSound(Numbered(), timeline, stretch, Fraction(sound))
    return timeline, sounds.window(0, num).flatten().tolist()


@pytest.mark.parametrize("rate", RATES)
def test_every_drawn_frame_hears_the_moment_it_shows(rate):
    times = [float(k / Fraction(rate)) for k in range(40)]
    for first, draw_every in ((0, 1), (7, 1), (4, 2)):
        _, indices = heard(
            times, 40 / float(rate), Fraction(rate), 40 / Fraction(rate), first=first, draw_every=draw_every
        )
        shown = [times[first + k * draw_every] for k in range(8)]
        assert all(abs(index / 30 - seconds) <= 1 / 60 + 1e-6 for index, seconds in zip(indices, shown, strict=True))


def test_uneven_frames_hear_their_own_moments_and_past_the_sound_there_is_silence():
    times = [0.0, 0.05, 0.2, 0.21, 0.35, 0.5, 0.52, 0.7]
    _, indices = heard(times, 0.75, None, Fraction(3, 5))
    assert indices == [0, 2, 6, 6, 10, 15, 16, 21]   # the sound has 18: 21 is silence
    _, indices = heard(times, 0.75, None, Fraction(69, 100))
    assert indices[-1] == 21 and indices[-2] == 16   # of 21: 0.7 s is past the end


def test_a_frame_that_shows_before_the_sound_ends_hears_its_last():
    _, indices = heard([0.0, 0.1, 0.192], 0.3, None, Fraction(1, 5), num=3)
    assert indices == [0, 3, 5]   # 0.192 s is nearest to feature 6, which there is not


def test_the_sounds_own_frames_are_drawn_from_them(dubber, tmp_path, monkeypatch):
    """Another sound changes the mouth; the same footage and sound do not."""
    footage(tmp_path)
    outputs = []
    for name, level in (("a", 1.0), ("b", 1.0), ("c", 0.2)):
        t = np.arange(6400) / 16_000
        write_wav(tmp_path / "new.wav", level * np.sin(2 * np.pi * (220 if level == 1 else 900) * t))
        dubber.run(request(tmp_path, output=tmp_path / f"{name}.mp4"))
        outputs.append(np.stack(list(read_frames(tmp_path / f"{name}.mp4"))))
    assert np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[0], outputs[2])


def test_fast_footage_is_drawn_every_second_frame_and_blended_between(dubber, written, tmp_path):
    footage(tmp_path, 9, rate=60)
    plan = dubber.plan(request(tmp_path))
    assert plan.work.stretches[0].draw_every == 2 and "one frame of 2; those between are blended" in str(plan)
    assert len(plan.work.clips) == 1 and plan.work.clips[0].num_kept == 5
    still = [noise_pictures(1)[0]] * 9   # then a blended frame is the mean of its neighbours
    write_video(tmp_path / "shot.mp4", still, 60)
    dubber.run(request(tmp_path))
    frames = np.stack(written).astype(float)
    assert np.abs(frames[1::2] - (frames[0:-1:2] + frames[2::2]) / 2).max() <= 2.5   # rounding, and x264 on the shot
    assert np.abs(frames[0] - frames[2]).max() > 10
    every = dubber.plan(request(tmp_path, draw_every=1))
    assert every.work.clips[0].num_kept == 9


# ---- strength, reference, stops --------------------------------------------------------------------------------------


def test_footage_is_read_forward_and_few_of_its_pictures_wait_in_memory(dubber, tmp_path, monkeypatch):
    footage(tmp_path, 20)
    kept, begun = [], []
    monkeypatch.setattr(filling, "FrameReader", lambda path, keep: kept.append(keep) or shot.FrameReader(path, keep))
    monkeypatch.setattr(shot, "read_timed_frames", lambda path: begun.append(path) or read_timed_frames(path))
    dubber.run(request(tmp_path))
    assert len(begun) == 2 and len(kept) == 2 and max(kept) < 12   # one reader cuts, one pastes


def test_a_weak_dub_keeps_more_of_the_old_mouth(dubber, written, tmp_path):
    """Which is wide open, and the new sound is a faint hiss."""
    shot = talking_head(3, fps=Fraction(25), num_frames=40, width=64, height=64, motion="still", camera="still")
    first = int(np.convolve(shot.openings[0], np.ones(8), "valid").argmax())
    write_video(tmp_path / "shot.mp4", shot.frames(first, first + 8))
    write_wav(tmp_path / "new.wav", np.random.default_rng(0).normal(0, 1e-3, round(0.32 * 16_000)))
    truth = np.stack(list(read_frames(tmp_path / "shot.mp4"))).astype(float)
    inside = shot.mouth_boxes(first, first + 8)[:, 0].mean(0).round().astype(int)
    mouth = np.s_[:, inside[1] : inside[3], inside[0] : inside[2]]
    errors = []
    for strength in (1.0, 0.2):
        written.clear()
        dubber.run(request(tmp_path, strength=strength, steps=12))
        errors.append(np.abs(np.stack(written) - truth)[mouth].mean())
    assert errors[1] < 0.7 * errors[0], errors


class StopsAt(Silent):
    def __init__(self, clip: int) -> None:
        self.clip = clip
        self.started: list[int] = []

    def clip_started(self, index, total, steps):
        self.started.append(index)

    def step(self, index, step, steps):
        if index == self.clip:
            raise Interrupted("stopped")


@pytest.mark.parametrize("continuity", ["exact", "carry"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_file(dubber, tmp_path, continuity):
    write_video(tmp_path / "shot.mp4", noise_pictures(16, seed=1) + noise_pictures(24, seed=2))
    swell(tmp_path / "new.wav", 1.6)
    whole, parts = tmp_path / "whole.mp4", tmp_path / "parts.mp4"
    asked = request(tmp_path, output=parts, continuity=continuity, clip_frames=12)
    dubber.run(replace(asked, output=whole))
    assert [len(s.plans) for s in dubber.plan(asked).work.stretches] == [2, 3]
    for clip in (1, 2, 4):   # within the first stretch, before the second, within it
        watch = StopsAt(clip)
        with pytest.raises(Interrupted):
            dubber.run(asked, watch)
        assert dubber.plan(asked).finished_clips == clip
    last = StopsAt(99)
    dubber.run(asked, last)
    assert last.started == [4] and whole.read_bytes() == parts.read_bytes()
    assert not (tmp_path / "parts.mp4.take").exists()


def test_a_take_of_another_face_is_not_continued(dubber, tmp_path):
    footage(tmp_path, 16)
    with pytest.raises(Interrupted):
        dubber.run(request(tmp_path), StopsAt(1))
    with pytest.raises(ConfigError, match="other settings.*faces"):
        dubber.run(request(tmp_path, face_box=(0.2, 0.1, 0.7, 0.8)))


# ---- bad requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"strength": 0.0}, "strength must be above 0"),
        ({"mask_padding": 3.0}, "mask padding must be"),
        ({"length": "stretch"}, "length must be one of hold, loop, trim; got 'stretch'"),
        ({"start": 2.0, "end": 1.0}, "end after it"),
        ({"draw_every": 0}, "draw-every must be 1 or more"),
        ({"face": 0}, "counted from 1"),
        ({"face": 2}, "face 2 is one of the found ones: leave it out beside a face box"),
        ({"face": 1, "face_box": None, "mask": "mask.png"}, "leave it out beside a face box or mask"),
        ({"face_box": (0.5, 0.1, 0.4, 0.9)}, "0.5,0.1,0.4,0.9 is no box"),
        ({"continuity": "maybe"}, "continuity must be one of"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_impossible_requests_are_refused_when_they_are_made(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        request(tmp_path, **settings)


def test_a_shot_without_a_face_says_what_helps(dubber, tmp_path):
    footage(tmp_path)
    with pytest.raises(MediaError, match=r"no face to dub in any frame \(no face\); give --face-box, or a --mask"):
        dubber.plan(request(tmp_path, face_box=None))
    with pytest.raises(MediaError, match="no frame between 7 s and the end"):
        dubber.plan(request(tmp_path, start=7.0))
    with pytest.raises(MediaError, match="number 3"):
        Dubber(dubber.components, People()).plan(request(tmp_path, face_box=None, face=3))
    (tmp_path / "late.csv").write_text("frame,left,top,right,bottom\n10,0.2,0.1,0.8,0.9\n")
    with pytest.raises(MediaError, match=r"late\.csv has no box for any frame of .*; frames are counted from 0"):
        dubber.plan(request(tmp_path, face_box=tmp_path / "late.csv"))


def test_a_mask_that_is_padded_away_is_refused(dubber, tmp_path):
    footage(tmp_path)
    with pytest.raises(ConfigError, match=r"a mask padding of -0\.5 leaves nothing of the mask"):
        dubber.plan(request(tmp_path, mask_padding=-0.5))
    assert dubber.plan(request(tmp_path, mask_padding=-0.1)).work.stretches


def test_media_that_cannot_be_used_are_named(dubber, tmp_path):
    footage(tmp_path)
    with pytest.raises(MediaError, match="no file .*none.mp4"):
        dubber.plan(request(tmp_path, video=tmp_path / "none.mp4"))
    with pytest.raises(MediaError, match="no sound file .*none.wav"):
        dubber.plan(request(tmp_path, audio=tmp_path / "none.wav"))
    with pytest.raises(MediaError, match="no picture track"):
        dubber.plan(request(tmp_path, video=tmp_path / "new.wav"))

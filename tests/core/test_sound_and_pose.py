"""What drives a video beside its sound as it is, through the bundled model: whole runs, frame by frame."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from s2v_core import WanS2VPipeline
from s2v_core.conditioning.image import fit_picture
from s2v_core.errors import ConfigError
from s2v_core.geometry import VideoSize
from s2v_core.media.image_io import read_picture
from s2v_core.media.video_io import probe_video, read_frames
from s2v_core.request import Request
from s2v_core.video.color import to_lab

from ..cli.media import picture, silent_video

RATE = 16_000


@pytest.fixture(scope="module")
def pipe() -> WanS2VPipeline:
    return WanS2VPipeline.from_pretrained(device_map="cpu")


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A face, two sounds of half a second, and a pose video that is shorter."""
    folder = tmp_path_factory.mktemp("media")
    picture(folder / "face.png", 64, 64)
    write(folder / "song.wav", voice(1.0, seed=1))
    write(folder / "vocals.wav", voice(1.0, seed=2))
    silent_video(folder / "pose.mp4", frames=4)
    return folder


def voice(seconds: float, seed: int) -> np.ndarray:
    """Noise that swells and fades, as -1..1."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    return rng.uniform(-1, 1, len(t)) * (0.5 - 0.45 * np.cos(2 * np.pi * (1 + seed) * t))


def write(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.round(samples * 32_000).astype("<i2").tobytes())
    return path


def read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_000


def request(media: Path, **said) -> Request:
    plain = {"image": media / "face.png", "audio": media / "song.wav", "size": VideoSize(width=64, height=64)}
    return Request(**{**plain, "steps": 1, "guidance_scale": 1.0, "audio_end": 0.5, **said})


def made(pipe, media, tmp_path, **said) -> np.ndarray:
    """The frames of a run."""
    output = tmp_path / "out.mp4"
    pipe.run(request(media, output=output, **said))
    return np.stack(list(read_frames(output)))


def heard(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


# ---- sound ----------------------------------------------------------------------------------------------------------


def test_a_separate_sound_drives_and_the_other_is_heard(pipe, media, tmp_path):
    of_vocals = made(pipe, media, tmp_path, audio=media / "vocals.wav")
    vocals = heard(tmp_path / "out.mp4")
    of_song = made(pipe, media, tmp_path)
    song = heard(tmp_path / "out.mp4")
    driven = made(pipe, media, tmp_path, driving_audio=media / "vocals.wav")
    assert np.array_equal(driven, of_vocals) and not np.array_equal(driven, of_song)
    assert np.array_equal(heard(tmp_path / "out.mp4"), song) and not np.array_equal(song, vocals)


def test_a_stretch_is_the_video_of_that_sound_alone(pipe, media, tmp_path):
    alone = write(tmp_path / "alone.wav", read(media / "song.wav")[round(0.3 * RATE) : round(0.8 * RATE)])
    expected = made(pipe, media, tmp_path, audio=alone, audio_end=None)
    sound = heard(tmp_path / "out.mp4")
    assert np.array_equal(made(pipe, media, tmp_path, audio_start=0.3, audio_end=0.8), expected) and len(expected) == 8
    assert np.corrcoef(heard(tmp_path / "out.mp4")[: len(sound)], sound)[0, 1] > 0.99


def test_an_offset_moves_the_picture_and_leaves_the_sound(pipe, media, tmp_path):
    later = np.concatenate([np.zeros(round(0.125 * RATE)), read(media / "song.wav")])
    expected = made(pipe, media, tmp_path, driving_audio=write(tmp_path / "later.wav", later))
    sound = heard(tmp_path / "out.mp4")
    assert np.array_equal(made(pipe, media, tmp_path, audio_offset=125.0), expected)
    assert np.array_equal(heard(tmp_path / "out.mp4"), sound)
    assert not np.array_equal(made(pipe, media, tmp_path), expected)


@pytest.mark.parametrize(
    "said", [{"loudness": -23.0}, {"noise_gate": -30.0}, {"isolate_voice": True}], ids=lambda said: next(iter(said))
)
def test_cleaning_changes_what_drives_and_not_what_is_heard(pipe, media, tmp_path, said):
    fading = np.concatenate([voice(2.0, seed=1), 0.03 * voice(3.0, seed=2)])
    plain = {"audio": write(tmp_path / "fading.wav", fading), "audio_end": None, "num_frames": 8}
    frames = made(pipe, media, tmp_path, **plain)
    sound = heard(tmp_path / "out.mp4")
    assert not np.array_equal(made(pipe, media, tmp_path, **plain, **said), frames)
    assert np.array_equal(heard(tmp_path / "out.mp4"), sound)


def test_a_shorter_driving_sound_is_told_and_one_that_is_over_is_refused(pipe, media, tmp_path):
    short = write(tmp_path / "short.wav", voice(0.3, seed=3))
    plan = pipe.plan(request(media, driving_audio=short))
    assert "the driving audio lasts 0.30 s of 0.50 s: the mouth rests from there on" in str(plan)
    with pytest.raises(ConfigError, match="driving audio lasts 0.30 s and the start is 0.4 s"):
        pipe.plan(request(media, driving_audio=short, audio_start=0.4))


def test_words_that_are_said_slowly_take_longer(pipe, media, tmp_path):
    said = {"audio": None, "say": "Good morning, how are you?", "audio_end": None, "output": tmp_path / "out.mp4"}
    slow, fast = (pipe.plan(request(media, speech_speed=speed, **said)).num_frames for speed in (120, 300))
    assert slow > 1.5 * fast and len(list(tmp_path.glob("out.mp4.say-*.wav"))) == 2


def test_words_become_the_sound_and_stay_beside_the_video(pipe, media, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))   # the package's voice: the same everywhere
    said = {"audio": None, "say": "Good morning.", "audio_end": None}
    frames = made(pipe, media, tmp_path, **said)
    speech = next(tmp_path.glob("out.mp4.say-*.wav"))
    with wave.open(str(speech)) as file:
        assert len(frames) == -(-file.getnframes() * 16 // file.getframerate()) > 8
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)   # what was spoken is not spoken again
    again = made(pipe, media, tmp_path, audio=speech, audio_end=None)
    assert np.array_equal(made(pipe, media, tmp_path, **said), frames) and np.array_equal(again, frames)


# ---- pose -----------------------------------------------------------------------------------------------------------


SOME_POSE = (("pose_strength", 0.5), ("pose_steps", 1), ("pose_start", 0.25), ("pose_skip", 0.1))


def test_a_poses_strength_and_steps_change_the_frames_and_none_of_it_is_no_pose(pipe, media, tmp_path):
    def run(**said) -> np.ndarray:
        return made(pipe, media, tmp_path, steps=2, **said)

    pose = {"pose_video": media / "pose.mp4"}
    free, full = run(), run(**pose)
    assert np.array_equal(run(**pose, pose_strength=0.0), free)
    different = [free, full, *(run(**pose, **{name: value}) for name, value in SOME_POSE)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(different) for b in different[:i])


def test_a_pose_that_ends_before_the_sound_is_told(pipe, media):
    plan = pipe.plan(request(media, pose_video=media / "pose.mp4"))
    assert "the pose video lasts 0.25 s of 0.50 s: the rest moves freely" in str(plan)
    assert "pose" not in str(pipe.plan(request(media, pose_video=media / "pose.mp4", pose_end=0.25)))
    with pytest.raises(ConfigError, match="lasts 0.25 s: leaving out 3 s leaves nothing"):
        pipe.plan(request(media, pose_video=media / "pose.mp4", pose_skip=3.0))


@pytest.mark.parametrize(
    "said, told",
    [
        ({"voice": "de", "speech_speed": 200}, "without effect, as there are no words to say: voice, speech_speed"),
        ({"pose_strength": 0.5, "pose_steps": 3}, "without effect, as no pose is followed: pose_strength, pose_steps"),
        ({"apg": True, "negative_prompt": "blur"}, "as nothing is guided (guidance 1): negative_prompt, apg"),
        ({"sync_strength": 0.5}, "as nothing is guided (guidance 1): sync_strength"),
        ({"pose_video": "pose.mp4", "pose_start": 0.5}, "pose is to be followed from 0.5 s on, the video lasts 0.50 s"),
        ({"audio_end": 1.5}, "the sound was asked for up to 1.5 s and ends at 1.00 s"),
    ],
)
def test_what_was_asked_for_and_changes_nothing_is_told(pipe, media, said, told):
    if "pose_video" in said:
        said = {**said, "pose_video": media / said["pose_video"]}
    assert told in str(pipe.plan(request(media, **said)))


def test_what_has_its_effect_is_not_told(pipe, media, tmp_path):
    (tmp_path / "scenes.txt").write_text("[guidance 4] a")
    guided = {"apg": True, "negative_prompt": "blur", "sync_strength": 0.5}
    posed = {"pose_video": media / "pose.mp4", "pose_steps": 1}
    for said in (posed, {**guided, "guidance_scale": 2.0}, {**guided, "storyboard": tmp_path / "scenes.txt"},
                 {"sync_strength": 1.5}, {"audio_end": 1.0}):  # fmt: skip
        told = str(pipe.plan(request(media, **said)))
        assert "without effect" not in told and "asked for up to" not in told


def test_footage_needs_its_package_and_says_so_before_the_work(pipe, media, monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.holistic", None)
    with pytest.raises(ConfigError, match="pip install 'mediapipe"):
        pipe.plan(request(media, pose_footage=media / "pose.mp4"))


def test_footage_is_drawn_and_followed(pipe, media, tmp_path, monkeypatch):
    """With a finder that sees the same person everywhere, footage is a pose video of that person."""
    from s2v_core.conditioning.skeleton import Skeleton, draw_skeleton
    from s2v_core.media.video_io import write_segment

    body = np.stack([np.linspace(10, 50, 18), np.linspace(12, 60, 18)], axis=1)
    person = Skeleton(body=body, hands=(), face=None)
    monkeypatch.setattr("s2v_core.running.job.skeleton_finder", lambda: lambda picture: person)
    drawn = tmp_path / "drawn.mp4"
    write_segment(drawn, [draw_skeleton(person, 64, 64)] * 4, fps=16)
    footage = made(pipe, media, tmp_path, pose_footage=media / "pose.mp4")
    as_it_is = made(pipe, media, tmp_path, pose_video=media / "pose.mp4")
    assert not np.array_equal(footage, as_it_is) and not np.array_equal(footage, made(pipe, media, tmp_path))
    of_drawing = made(pipe, media, tmp_path, pose_video=drawn)   # compressed, where the footage's was not
    assert np.abs(footage.astype(int) - of_drawing).mean() < np.abs(
        made(pipe, media, tmp_path).astype(int) - of_drawing
    ).mean()


# ---- continuity -----------------------------------------------------------------------------------------------------


def lab_means(frames: np.ndarray) -> torch.Tensor:
    return to_lab(torch.from_numpy(frames.reshape(-1, 3).T.astype(np.float32) / 255)).mean(1)


@pytest.mark.parametrize("method", ["lab", "mkl"])
def test_matched_frames_have_the_pictures_colours(pipe, media, tmp_path, method):
    size = VideoSize(width=64, height=64)
    target = fit_picture(read_picture(media / "face.png"), size)
    wanted = to_lab((target[0].flatten(1) + 1) / 2).mean(1)
    off, on = (lab_means(made(pipe, media, tmp_path, match_colour=m)) for m in ("off", method))
    off, on = (off - wanted).norm(), (on - wanted).norm()   # a difference of 2 can just be seen
    assert on < 2 < off and on < 0.5 * off


def test_the_first_window_may_be_all_picture(pipe, media, tmp_path):
    grey, image = (made(pipe, media, tmp_path, start_from_image=True, first_window=w) for w in ("grey", "image"))
    assert len(grey) == len(image) == 8 and not np.array_equal(grey, image)


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_interpolation_gives_the_file_another_rate_and_the_same_length(pipe, media, tmp_path, fps):
    slow = made(pipe, media, tmp_path)
    fast = made(pipe, media, tmp_path, output_fps=fps)
    info = probe_video(tmp_path / "out.mp4")
    assert len(fast) == -(-fps // 2) and info.fps == pytest.approx(fps) and len(slow) == 8
    assert np.abs(fast[0].astype(int) - slow[0]).mean() < 4   # compressed twice
    assert probe_video(tmp_path / "out.mp4").audio_codec == "aac"


def test_a_take_goes_on_only_with_the_same_pose_and_colours(pipe, media, tmp_path):
    kept = {"take": tmp_path / "take", "pose_video": media / "pose.mp4", "match_colour": "lab"}
    first = made(pipe, media, tmp_path, **kept)
    assert np.array_equal(made(pipe, media, tmp_path, **kept), first)
    for changed, name in (({"pose_strength": 0.5}, "pose.strength"), ({"match_colour": "mkl"}, "match_colour")):
        with pytest.raises(ConfigError, match=f"{name} differs"):
            made(pipe, media, tmp_path, **{**kept, **changed})
    sharp = made(pipe, media, tmp_path, **kept, output_fps=25.0)   # of the same clips
    assert len(sharp) == 13 and not (tmp_path / "take" / "interpolated.mp4").exists()

"""A pose video is shown by its times, over the whole length, whatever its rate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.conditioning.image import fit_picture
from s2v_core.conditioning.pose import PoseVideo
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import probe_video, read_timed_frames, write_segment

SIZE = VideoSize(width=64, height=64)


@dataclass
class Frame:
    seconds: float
    value: int
    source: Source

    def picture(self) -> np.ndarray:
        self.source.pictures += 1
        return np.full((64, 64, 3), self.value, np.uint8)


class Source:
    """Frames whose brightness is their index, and a count of what was asked of them."""

    def __init__(self, times):
        self.times, self.starts, self.read, self.pictures = list(times), 0, 0, 0

    def __call__(self):
        self.starts += 1
        for index, seconds in enumerate(self.times):
            self.read += 1
            yield Frame(seconds, index, self)


def steady(rate: float, count: int) -> Source:
    return Source(index / rate for index in range(count))


def shown(window: torch.Tensor) -> list[int]:
    """Which source frame each frame of a window shows; -1 is black past the end (brightness -1 is index 0 too)."""
    return ((window[0, 0, :, 0, 0] + 1) * 127.5).round().int().tolist()


def pose(source: Source, *, duration: float, fps: float = 16.0, size: VideoSize = SIZE) -> PoseVideo:
    return PoseVideo(source, duration=duration, size=size, fps=fps)


@pytest.mark.parametrize("rate", [8, 12, 16, 23.976, 25, 30, 60])
def test_frame_k_shows_the_last_source_frame_that_has_appeared_at_k_over_fps(rate):
    count = int(rate * 4)
    window = pose(steady(rate, count), duration=count / rate).window(0, 60)
    assert shown(window) == [int(k / 16 * rate + 1e-3 * rate) for k in range(60)]


def test_a_pose_does_not_drift_over_its_whole_length():
    source = steady(30, 200)
    video = pose(source, duration=200 / 30)
    last = video.window(80, 106)
    assert shown(last)[-1] == int(105 / 16 * 30)   # every second frame, as the reference takes, would end at 12.5 fps


def test_a_varying_rate_is_shown_by_its_times():
    source = Source([0, 0.5, 0.51, 0.52, 0.9, 1.9])
    assert shown(pose(source, duration=2.0, fps=10).window(0, 20)) == [0] * 5 + [1] + [3] * 3 + [4] * 10 + [5]


def test_times_rounded_to_milliseconds_show_every_frame_once():
    source = Source(round(index / 16, 3) for index in range(100))
    assert shown(pose(source, duration=100 / 16).window(0, 100)) == list(range(100))


def test_before_zero_the_first_frame_is_shown_and_past_the_end_black():
    source = Source([0, 0.25, 0.5])
    source.times = [0.0, 0.0625, 0.125]
    window = pose(source, duration=3 / 16).window(-3, 8)
    assert shown(window) == [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert bool((window[:, :, 6:] == -1).all())


@pytest.mark.parametrize("duration, told", [(10.0, True), (10.02, False), (10.0625, False)])
def test_poses_end_early_where_the_last_frame_shows_none(duration, told):
    video = pose(steady(25, 250), duration=duration)
    num_frames = 161   # the last one begins at 10 s
    assert bool(video.ends_early(num_frames / 16)) == told
    assert bool((video.window(num_frames - 1, num_frames) == -1).all()) == told


def test_windows_in_order_read_the_source_once_and_make_only_the_pictures_shown():
    source = steady(60, 240)
    video = pose(source, duration=4.0)
    parts = [video.window(start, start + 16) for start in range(0, 64, 16)]
    assert source.starts == 1 and source.read <= 240 and source.pictures == 64
    assert torch.equal(torch.cat(parts, dim=2), pose(steady(60, 240), duration=4.0).window(0, 64))


def test_an_earlier_window_starts_over_and_gives_the_same_frames():
    source = steady(25, 100)
    video = pose(source, duration=4.0)
    first, later = video.window(0, 20), video.window(20, 40)
    assert torch.equal(video.window(0, 20), first) and source.starts == 2
    assert torch.equal(video.window(20, 40), later)


def test_a_still_source_frame_is_scaled_once_for_the_frames_that_show_it():
    source = steady(2, 4)
    pose(source, duration=2.0).window(0, 32)
    assert source.pictures == 4


def test_a_file_is_followed_to_its_end(tmp_path):
    path = tmp_path / "pose.mp4"
    write_segment(path, (np.full((64, 64, 3), 2 * index, np.uint8) for index in range(100)), fps=30)
    video = PoseVideo(partial(read_timed_frames, path), duration=probe_video(path).duration, size=SIZE, fps=16)
    window = video.window(0, 60)
    expected = [2 * int(k / 16 * 30 + 0.03) for k in range(54)]   # 100 frames at 30 fps last until frame 53.3
    assert np.abs(np.array(shown(window)[:54]) - expected).max() <= 2   # limited-range rounding
    assert bool((window[:, :, 54:] == -1).all())


def test_pose_and_reference_picture_are_scaled_and_cropped_alike():
    pixels = np.random.default_rng(0).integers(0, 255, (90, 200, 3), dtype=np.uint8)

    @dataclass
    class One:
        seconds: float = 0.0

        def picture(self) -> np.ndarray:
            return pixels

    size = VideoSize(width=80, height=96)
    video = PoseVideo(lambda: iter([One()]), duration=1.0, size=size, fps=16)
    assert torch.equal(video.window(0, 1), fit_picture(Image.fromarray(pixels), size))

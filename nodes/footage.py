"""Footage of a person as a file of drawn poses.

Knows the host's VIDEO and progress bar; finding and drawing people is the core's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..s2v_core.conditioning.pose import CLOCK_STEP, TimedFrame
from ..s2v_core.conditioning.pose_footage import drawn_poses, skeleton_finder
from ..s2v_core.media.video_io import probe_video, read_timed_frames, write_segment
from ..s2v_core.video.take import file_digest
from . import host
from .job import video_path
from .run import FOLDER


def drawn_video(video: object, fps: float, *, node_id: str | None) -> Path:
    """The poses of a host VIDEO as an mp4 at `fps` in the host's temporary folder; one that is there is given again.

    Raises: MediaError; ConfigError where the package is missing.
    """
    path = video_path(video)
    output = host.temp_folder() / f"{FOLDER}_pose_{file_digest(path)[:20]}_{fps:g}.mp4"
    if not output.is_file():
        find = skeleton_finder()
        num_frames = max(1, math.ceil((probe_video(path).duration - CLOCK_STEP) * fps))
        progress = host.Progress(num_frames, node_id)
        frames = drawn_poses(frames_at(read_timed_frames(path), fps, num_frames), find)
        write_segment(output, _shown(frames, progress), fps=fps)
    return output


def frames_at(frames: Iterable[TimedFrame], fps: float, num_frames: int) -> Iterator[TimedFrame]:
    """For each k below `num_frames` the frame that a player would show at k / fps."""
    frames = iter(frames)
    current = next(frames)
    following = next(frames, None)
    for k in range(num_frames):
        while following is not None and following.seconds <= k / fps + CLOCK_STEP:
            current, following = following, next(frames, None)
        yield current


def _shown(frames: Iterable[TimedFrame], progress: host.Progress) -> Iterator[np.ndarray]:
    """The pictures, each in the browser too; this is where Cancel is heard."""
    for done, frame in enumerate(frames, 1):
        picture = frame.picture()
        progress.show(done, Image.fromarray(picture))
        yield picture

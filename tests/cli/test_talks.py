"""The shipped model talks: on people and voices that it was not trained on, measured from the finished video's pixels.

`tests/benchmarks/talks.py` measures the same, and more, on many.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2v_core import WanS2VPipeline
from s2v_core.config import SAMPLE_RATE
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import read_frames
from s2v_core.request import Request
from s2v_core.training.measure import best_lag, compressed_loudness, correlation, mouth_opening
from s2v_core.training.synthetic import FPS, SyntheticClip

from .media import float_wav

FRAMES = 64
SHUT = 0.012            # squares of the face's width: less dark than this is a shut mouth
SPOKEN, PAUSE = 1.0, 3.0   # seconds
SETTLED = 0.25          # seconds that a mouth may take to shut, and to open before it is heard


def stranger(seed: int) -> SyntheticClip:
    return SyntheticClip(seed, num_frames=FRAMES, held_out=True, engine="formant", motion="still", camera="still")


@pytest.fixture(scope="module")
def pipe() -> WanS2VPipeline:
    return WanS2VPipeline.from_pretrained(device_map="cpu")


def talking(pipe: WanS2VPipeline, folder: Path, face: SyntheticClip, sound: np.ndarray) -> np.ndarray:
    """[F] how far the mouth of a finished video is open."""
    Image.fromarray(face.reference).save(folder / "face.png")
    float_wav(folder / "sound.wav", sound)
    request = Request(
        image=folder / "face.png", audio=folder / "sound.wav", prompt=face.prompt, output=folder / "talk.mp4",
        size=VideoSize(width=128, height=128),
    )  # fmt: skip
    return mouth_opening(np.stack(list(read_frames(pipe.run(request).path))))


def test_mouths_follow_the_sound_that_is_heard_and_no_other(pipe, tmp_path):
    one, other = stranger(0), stranger(1)
    heard = {name: compressed_loudness(clip.waveform, FRAMES, FPS) for name, clip in (("one", one), ("other", other))}
    for name, sound in (("one", one), ("other", other)):   # the same face, given another voice
        mouth = talking(pipe, tmp_path, one, sound.waveform)
        lag, by_lag = best_lag(mouth, heard[name])
        assert lag == 0 and by_lag[0] > 0.8
        assert correlation(mouth, heard["other" if name == "one" else "one"]) < 0.3


def test_in_a_pause_of_three_seconds_the_mouth_is_shut_and_it_speaks_before_and_after(pipe, tmp_path):
    face = stranger(0)
    spoken = face.waveform[: round(SPOKEN * SAMPLE_RATE)]
    mouth = talking(pipe, tmp_path, face, np.concatenate([spoken, np.zeros(round(PAUSE * SAMPLE_RATE)), spoken]))
    first, last = round(SPOKEN * FPS), round((SPOKEN + PAUSE) * FPS)
    settled = round(SETTLED * FPS)
    assert (mouth[first + settled : last - settled] < SHUT).mean() >= 0.95
    assert min(mouth[:first].max(), mouth[last:].max()) > 2 * SHUT

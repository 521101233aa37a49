"""Small footage for tests of dubbing: video files at any frame rate, from pictures, and a drawn talking head.

Knows files; nothing of the room under test.
"""

from __future__ import annotations

import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import numpy as np

from s2v_core.training import synthetic

SIDE = 64
FACE = (0.25, 0.15, 0.75, 0.85)


def write_video(path: Path, pictures: Iterable[np.ndarray], rate: Fraction | int = 25, *, times: Sequence[float] = ()):
    """A video of pictures [H, W, 3]; with times (seconds) at these, else evenly."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "12", "preset": "ultrafast"})
        if times:
            stream.codec_context.time_base = Fraction(1, 90_000)
        for index, picture in enumerate(pictures):
            if not index:
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv444p" if picture.shape[0] % 2 or picture.shape[1] % 2 else "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = index, 1 / Fraction(rate)
            if times:
                frame.pts, frame.time_base = round(times[index] * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def noise_pictures(count: int, *, width: int = SIDE, height: int = SIDE, seed: int = 0) -> list[np.ndarray]:
    """A coloured pattern that moves a pixel a frame: every frame differs, everywhere."""
    blocks = np.random.default_rng(seed).integers(0, 255, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pattern = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return [np.roll(pattern, index, axis=1) for index in range(count)]


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """16-bit, 16 kHz, mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32_000).clip(-32_767, 32_767).astype("<i2").tobytes())
    return path


def swell(path: Path, seconds: float) -> Path:
    """Sound that swells twice a second."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    return write_wav(path, np.sin(2 * np.pi * 220 * t) * (0.5 - 0.45 * np.cos(4 * np.pi * t)))


def talking_head(seed: int, *, fps: Fraction, num_frames: int, **settings: object) -> synthetic.SyntheticClip:
    """The generator's clip, drawn at another rate than its own."""
    with mock.patch.object(synthetic, "FPS", float(fps)):
        return synthetic.SyntheticClip(seed, num_frames=num_frames, **settings)

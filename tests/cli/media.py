"""Small sound, picture and video files for tests of the command."""

from __future__ import annotations

import math
import wave
from pathlib import Path

import av
import numpy as np
from PIL import Image


def tone(path: Path, *, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> Path:
    """A 16-bit wav that swells and fades twice a second."""
    t = np.arange(round(seconds * rate)) / rate
    samples = np.sin(2 * math.pi * 220 * t) * (0.5 - 0.45 * np.cos(4 * math.pi * t))
    frames = np.repeat((samples * 32_000).astype("<i2")[:, None], channels, axis=1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(frames.tobytes())
    return path


def float_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """A mono wav of 32-bit floats, NaN and all."""
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def picture(path: Path, width: int, height: int) -> Path:
    """Two gradients."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).save(path)
    return path


def silent_video(path: Path, *, frames: int = 4) -> Path:
    """Pictures without a sound track."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            grey = np.full((64, 64, 3), 40 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def pictures_of(path: Path) -> np.ndarray:
    """[F, H, W, 3] uint8: every frame of a video."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

"""Sound files for the benchmarks. Knows nothing of what is measured."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def write_sound(path: Path, samples: np.ndarray) -> None:
    """[S] in [-1, 1] at 16 kHz, as 16-bit mono wav."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((samples * 32_767).clip(-32_767, 32_767).astype("<i2").tobytes())

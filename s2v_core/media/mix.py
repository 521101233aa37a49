"""Several sounds to one file: each from its own moment on, added up.

Knows files of sound and times; not who speaks, nor what is done with the file. Memory does not grow with length.
"""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import OutputError
from .audio_io import BLOCK, resampled, sound_format

MAX_RATE = 48_000   # Hz
FULL_SCALE = 32_767


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedSound:
    """A file of sound in a longer one; both times in seconds."""

    path: Path
    start: Fraction
    duration: Fraction   # from the file's beginning


def mix_sounds(sounds: Sequence[PlacedSound], output: Path) -> None:
    """Write a 16-bit wav of all sounds together: at the highest of their rates, in stereo where one of them is.

    What would be too loud makes the whole softer. The same files give the same bytes.

    Raises: MediaError about a file; OutputError when the disk does not take it.
    """
    formats = [sound_format(sound.path) for sound in sounds]
    rate = min(MAX_RATE, max(rate for rate, _ in formats))
    num_channels = min(2, max(channels for _, channels in formats))
    try:
        with tempfile.TemporaryFile(prefix="s2v-mix-") as raw:
            for sound in sounds:
                _add(raw, sound, rate, num_channels)
            _write(raw, output, rate, num_channels)
    except OSError as error:
        raise OutputError(
            f"the speakers' sounds cannot be mixed in {output.parent} ({error.strerror}); free some space there"
        ) from error


def _add(raw: IO[bytes], sound: PlacedSound, rate: int, num_channels: int) -> None:
    """Add a sound to what is there; raw holds [S, C] float32, and silence past its end."""
    at, left = round(sound.start * rate), round(sound.duration * rate)
    layout = "stereo" if num_channels == 2 else "mono"
    for part in resampled(sound.path, sample_format="flt", layout=layout, rate=rate):
        block = part.to_ndarray().reshape(-1, num_channels)[:left]
        there = _read(raw, at, len(block), num_channels)
        raw.seek(4 * at * num_channels)
        raw.write((there + block).tobytes())
        at, left = at + len(block), left - len(block)
    if left:   # the resampler may keep the last few
        raw.seek(0, 2)
        raw.truncate(max(raw.tell(), 4 * (at + left) * num_channels))


def _read(raw: IO[bytes], at: int, num: int, num_channels: int) -> np.ndarray:
    """[num, C] float32."""
    raw.seek(4 * at * num_channels)
    found = np.frombuffer(raw.read(4 * num * num_channels), np.float32)
    return np.concatenate([found, np.zeros(num * num_channels - len(found), np.float32)]).reshape(num, num_channels)


def _write(raw: IO[bytes], output: Path, rate: int, num_channels: int) -> None:
    num_bytes = raw.seek(0, 2)
    step = 4 * BLOCK
    peak = 0.0
    for at in range(0, num_bytes, step):
        raw.seek(at)
        peak = max(peak, float(np.abs(np.frombuffer(raw.read(step), np.float32)).max(initial=0)))
    with wave.open(str(output), "wb") as file:
        file.setnchannels(num_channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        for at in range(0, num_bytes, step):
            raw.seek(at)
            block = np.frombuffer(raw.read(step), np.float32)
            file.writeframes(np.round(block * (FULL_SCALE / max(1.0, peak))).astype("<i2").tobytes())

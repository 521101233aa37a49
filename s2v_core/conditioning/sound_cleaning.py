"""Making a driving sound even and quiet in its pauses: one loudness throughout, and a noise gate.

Knows sound that is read a stretch at a time. What is heard in the video is another matter: it stays as it is.
"""

from __future__ import annotations

import numpy as np

from ..config import SAMPLE_RATE
from ..errors import MediaError
from ..media.audio_io import sound_statistics
from .audio import SoundSource

STEP = SAMPLE_RATE // 100      # samples from one gain to the next
HOP = SAMPLE_RATE // 10        # samples from one loudness block to the next
WINDOW = 4 * HOP               # samples of a loudness block: 400 ms, as in BS.1770
BLOCKS = 200                   # loudness blocks measured at a time
SILENT = -70.0                 # LUFS; quieter blocks are never counted, as in BS.1770
PAUSE = 20.0                   # LU below the whole: quieter blocks are pauses, which are not made louder for themselves
AROUND = 15                    # hops on each side that a moment's loudness is taken over: 3 s, "short-term"
MOST_GAIN = 20.0               # dB, up and down
GATE_EARLY, GATE_LATE = 5, 20  # steps that the gate opens before sound and stays open after it
GATE_FADE = 5                  # steps of its slopes

# The two filters of BS.1770 at 48 kHz: numerator, denominator.
SHELF = (1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)
HIGH_PASS = (1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)


def clean(sound: SoundSource, *, loudness: float | None, gate: float | None) -> SoundSource:
    """The sound brought to one loudness, and then silent where it is below a level; None leaves one out.

    Args:
        loudness: LUFS (BS.1770), such as -23; every 3 s are brought there, by at most 20 dB. (One gain for the whole
            sound would change nothing: the sound encoder normalises it.) Pauses are left as far below as they were.
        gate: dB of full scale, such as -45, after the loudness.

    Raises: MediaError when the gate would leave nothing.
    """
    gains = np.zeros(-(-sound.num_samples // STEP) + 1)   # dB
    if loudness is not None:
        gains = _levelling(block_loudness(sound), loudness, len(gains))
    factors = 10 ** (gains / 20)
    if gate is not None:
        factors = factors * _gating(sound, gains, gate)
    return sound if loudness is None and gate is None else _Shaped(sound, factors)


class _Shaped:
    """A sound times gains that are given every 10 ms: a `SoundSource` without a copy."""

    def __init__(self, sound: SoundSource, factors: np.ndarray) -> None:
        self._sound, self._factors = sound, factors
        self.duration, self.num_samples = sound.duration, sound.num_samples
        self.mean, self.variance = sound_statistics(self)

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop-start] float32 samples."""
        first = start // STEP
        factors = self._factors[first : stop // STEP + 2]
        at = np.arange(start - first * STEP, stop - first * STEP) / STEP
        return (self._sound.read(start, stop) * np.interp(at, np.arange(len(factors)), factors)).astype(np.float32)


def block_loudness(sound: SoundSource) -> np.ndarray:
    """LUFS of blocks of 400 ms, one every 100 ms; what is missing in the last ones is silence.

    The weighting is applied to each block's spectrum, so that blocks need no past.
    Source: ITU-R BS.1770-4.
    """
    weights = k_weights(np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE))
    count = -(-sound.num_samples // HOP)
    found = []
    for first in range(0, count, BLOCKS):
        last = min(first + BLOCKS, count)
        samples = np.zeros((last - first - 1) * HOP + WINDOW, np.float32)
        known = sound.read(first * HOP, min(first * HOP + len(samples), sound.num_samples))
        samples[: len(known)] = known
        blocks = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
        power = np.abs(np.fft.rfft(blocks, axis=1)) ** 2 * weights
        found.append((2 * power[:, 1:-1].sum(1) + power[:, -1]) / WINDOW**2)   # mean square, by Parseval
    return _lufs(np.concatenate(found))


def k_weights(frequencies: np.ndarray) -> np.ndarray:
    """Power gain of the K weighting at frequencies in Hz."""
    z = np.exp(-2j * np.pi * frequencies / 48_000)
    filters = (np.polyval(b[::-1], z) / np.polyval(a[::-1], z) for b, a in (SHELF, HIGH_PASS))
    return np.abs(np.prod(list(filters), axis=0)) ** 2


def integrated(loudness: np.ndarray) -> float:
    """LUFS of the whole, from its blocks: without silence, and without what is 10 LU below the rest.

    -inf where all is silent.
    """
    heard = loudness[loudness > SILENT]
    if not heard.size:
        return -np.inf
    return _mean(heard[heard > _mean(heard) - 10])


def _mean(loudness: np.ndarray) -> float:
    return float(_lufs(_power(loudness).mean()))


def _lufs(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def _power(loudness: np.ndarray) -> np.ndarray:
    return 10 ** ((loudness + 0.691) / 10)


def _levelling(loudness: np.ndarray, target: float, count: int) -> np.ndarray:
    """dB of gain at `count` steps. In pauses it goes from what was before them to what comes after."""
    active = loudness > max(SILENT, integrated(loudness) - PAUSE)
    if not active.any():
        return np.zeros(count)
    power, numbers = (
        np.convolve(values, np.ones(2 * AROUND + 1))[AROUND:-AROUND] for values in (_power(loudness) * active, active)
    )
    gains = np.clip(target - _lufs(power[active] / numbers[active]), -MOST_GAIN, MOST_GAIN)
    centres = (np.flatnonzero(active) * HOP + WINDOW / 2) / STEP
    return np.interp(np.arange(count), centres, gains)


def _gating(sound: SoundSource, gains: np.ndarray, gate: float) -> np.ndarray:
    """0 (shut) to 1 (open) at every step."""
    levels = step_levels(sound) + gains[:-1]
    loud = levels > gate
    if not loud.any():
        raise MediaError(
            f"a noise gate at {gate:g} dB leaves nothing of the driving sound, whose loudest moment is at "
            f"{levels.max():.0f} dB; lower the gate"
        )
    opens = np.append(loud, loud[-1]).astype(float)
    around = (np.convolve(opens, np.ones(GATE_EARLY + GATE_LATE + 1))[GATE_EARLY:][: len(opens)] > 0).astype(float)
    return np.convolve(np.pad(around, GATE_FADE // 2, mode="edge"), np.ones(GATE_FADE) / GATE_FADE, "valid")


def step_levels(sound: SoundSource) -> np.ndarray:
    """Level of each 10 ms, dB of full scale (root mean square)."""
    found = []
    for start in range(0, sound.num_samples, BLOCKS * HOP):
        samples = sound.read(start, min(start + BLOCKS * HOP, sound.num_samples)).astype(np.float64)
        padded = np.pad(samples, (0, -len(samples) % STEP)).reshape(-1, STEP)
        found.append(10 * np.log10(np.maximum((padded**2).mean(1), 1e-12)))
    return np.concatenate(found)

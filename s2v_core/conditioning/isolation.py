"""A voice taken out of a song: what comes again and again in the music is found and taken away.

Knows sound that is read a stretch at a time; no words, no instruments, no weights. Memory does not grow with length.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..config import SAMPLE_RATE
from ..media.audio_io import Sound, recorded
from .audio import SoundSource

FFT = 1024                      # samples of a spectrum
HOP = FFT // 4                  # from one to the next
LEAD = FFT - HOP                # samples that the first spectrum lies before the sound
APART = SAMPLE_RATE // HOP      # spectra: a held vowel, so near, is no repetition
REACH = 1875                    # spectra on each side in which the music may come again: 30 s
CELL = 15                       # spectra in which it comes again once at most; so many fit in REACH
AROUND = 32                     # spectra before and after that must be alike too: music goes on alike, voices do not
ALIKE = 8                       # of the most alike spectra tell the music
BLOCK = 512                     # spectra at a time


def isolate_voice(sound: SoundSource) -> Sound:
    """The voice of a song, as long as the song; a sound without music loses some of its loudness alone.

    A spectrum's music is the median of the spectra most like it, judged by what comes before and after too: the voice,
    which changes from one repetition to the next, is in few of them.

    Raises: MediaError where nothing but music is found.
    Source: after Rafii and Pardo, "Music/voice separation using the similarity matrix", ISMIR 2012.
    """
    return recorded(_voice(sound), name="the isolated voice", duration=sound.duration)


def _voice(sound: SoundSource) -> Iterator[np.ndarray]:
    """[n] samples after samples."""
    count = -(-sound.num_samples // HOP) + FFT // HOP - 1
    left, begun = sound.num_samples, np.zeros(LEAD, np.float32)
    for first in range(0, count, BLOCK):
        last = min(first + BLOCK, count)
        start, stop = max(0, first - REACH), min(count, last + REACH)
        spectra = _spectra(sound, start, stop)
        masks = _masks(np.abs(spectra), first - start, last - start)
        parts = np.fft.irfft(spectra[first - start : last - start] * masks)
        added = np.zeros((last - first) * HOP + LEAD, np.float32)
        added[:LEAD] = begun
        for index, part in enumerate(parts * (_window() / 1.5)):   # squared, these windows add up to 1.5
            added[index * HOP : index * HOP + FFT] += part
        done, begun = added[: (last - first) * HOP], added[(last - first) * HOP :]
        done = done[LEAD if first == 0 else 0 :][:left]
        left -= len(done)
        yield done


def _spectra(sound: SoundSource, start: int, stop: int) -> np.ndarray:
    """[stop-start, FFT/2+1] complex."""
    low, high = start * HOP - LEAD, (stop - 1) * HOP - LEAD + FFT
    samples = np.zeros(high - low, np.float32)
    first, last = max(low, 0), min(high, sound.num_samples)
    samples[first - low : last - low] = sound.read(first, last)
    windows = np.lib.stride_tricks.sliding_window_view(samples, FFT)[::HOP]
    return np.fft.rfft(windows * _window(), axis=1)


def _window() -> np.ndarray:
    return np.hanning(FFT + 1)[:-1].astype(np.float32)


def _masks(loud: np.ndarray, first: int, last: int) -> np.ndarray:
    """[last-first, bins] how much of each spectrum is voice.

    Args:
        loud: [n, bins] magnitudes, of the spectra around too.
    """
    loud = loud.astype(np.float32)
    likeness, places = _repetitions(loud, first, last)
    best = np.argpartition(likeness, -ALIKE, axis=1)[:, -ALIKE:]                   # [b, k]
    known = np.take_along_axis(likeness, best, 1)[..., None] > 0
    again = np.where(known, loud[np.take_along_axis(places, best, 1)], 0)         # [b, k, bins]
    music = np.minimum(np.median(again, axis=1), loud[first:last])
    voice, music = (loud[first:last] - music) ** 2, music**2
    return voice / np.maximum(voice + music, 1e-12)


def _repetitions(loud: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The most alike spectrum in each cell of time around each spectrum: [b, cells] likeness, and its place.

    Likeness is 0 or less where there is none.
    """
    shapes = np.sqrt(loud)                                                         # loud voices count less
    shapes = shapes / np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-9)
    padded = np.pad(shapes, ((REACH + AROUND,) * 2, (0, 0)))
    rows = padded[REACH + first : REACH + last + 2 * AROUND]                        # from `first` - AROUND on
    products = rows @ padded[first : last + 2 * (REACH + AROUND)].T
    step, across = products.strides
    lags = np.lib.stride_tricks.as_strided(products, (len(rows), 2 * REACH), (step + across, across))
    sums = np.cumsum(np.concatenate([np.zeros((1, 2 * REACH), np.float32), lags]), axis=0)
    alike = sums[2 * AROUND + 1 :] - sums[: -2 * AROUND - 1]                        # [b, lags], along the diagonals
    lag = np.arange(-REACH, REACH)
    places = np.arange(first, last)[:, None] + lag
    alike[(places < 0) | (places >= len(loud)) | (np.abs(lag) < APART)] = -1
    alike = alike.reshape(last - first, -1, CELL)
    best = alike.argmax(2)[..., None]
    places = places.clip(0, len(loud) - 1).reshape(alike.shape)
    return np.take_along_axis(alike, best, 2)[..., 0], np.take_along_axis(places, best, 2)[..., 0]

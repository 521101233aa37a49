"""Sound features on the video's clock, made as they are asked for, in memory that does not grow with the sound.

Knows no files and no networks: it is handed sound that can be read in stretches, and a callable that encodes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..config import FEATURE_RATE, FEATURE_VIDEO_RATE, FEATURE_WINDOW, SAMPLE_RATE
from ..errors import ShapeError

HOP = SAMPLE_RATE // FEATURE_RATE   # samples from one hidden state to the next
CHUNK = 40 * FEATURE_RATE           # hidden states kept of one encoding of a long sound
CONTEXT = 10 * FEATURE_RATE         # further ones encoded on each side and dropped (at the sound's ends: on one side)
WHOLE = CHUNK + 2 * CONTEXT         # encoded at a time; up to here that is the whole sound, as in the reference
MAX_CHUNKS = 2                      # kept at a time: a clip lies in one or two
SILENCE_SECONDS = 2

Encode = Callable[[Tensor], Tensor]
"""[1, S] normalised waveform at 16 kHz -> [L, T, C] hidden states, T = (S - 400) // 320 + 1."""


class SoundSource(Protocol):
    """Mono sound at 16 kHz that is read a stretch at a time."""

    duration: Fraction   # seconds
    num_samples: int
    mean: float          # over all samples
    variance: float      # of the population

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop-start] float32 samples."""
        ...


def num_video_frames(sound: SoundSource, fps: float) -> int:
    """Frames that cover the sound: exactly ceil(duration * fps), for fps such as 24000/1001 too."""
    return max(1, math.ceil(sound.duration * Fraction(fps).limit_denominator(1_000_000)))


def num_hidden_states(num_samples: int) -> int:
    """Hidden states that wav2vec2's convolutions make of a waveform."""
    if num_samples < FEATURE_WINDOW:
        raise ShapeError(f"sound features need at least {FEATURE_WINDOW} samples at 16 kHz, got {num_samples}")
    return (num_samples - FEATURE_WINDOW) // HOP + 1


def num_features(num_states: int) -> int:
    """Features at 30 a second that stand for hidden states at 50 a second.

    Rounded down as in the reference (which also makes none of a single hidden state, where this makes one).
    """
    return max(1, int(num_states / FEATURE_RATE * FEATURE_VIDEO_RATE))


def feature_indices(num_frames: int, fps: float) -> Tensor:
    """Which feature, of those at 30 a second, each of the first `num_frames` frames of a video hears.

    Returns: [num_frames] int64, the nearest ones.
    Source: the reference's sampling in its own float arithmetic. Where a frame lies midway between two features (every
        second frame at 12 fps, every fourth at 24), its rounding of `num_frames / fps / num_frames` decides: there the
        choice may differ between videos of different length. At 16, 25 and 30 fps it never does.
    """
    step = num_frames / fps / num_frames
    return (torch.arange(num_frames, dtype=torch.float64) * step * FEATURE_VIDEO_RATE).round().long()


def state_positions(indices: Tensor, num_states: int) -> tuple[Tensor, Tensor]:
    """Where features lie among the hidden states: both grids' first and last elements coincide.

    Args:
        indices: [n] int64 of features at 30 a second, of a sound with `num_states` hidden states in all.

    Returns: [n] int64 of the hidden state at or before each, and [n] float32 weights of the one after it.
    Source: the reference's linear interpolation with align_corners; in float64, since its float32 coordinates are off
        by a hundredth of a hidden state after an hour.
    """
    last = max(num_features(num_states) - 1, 1)
    positions = indices.double() * (num_states - 1) / last if num_states > 1 else indices.double() * 0
    positions = positions.clamp(max=num_states - 1)
    lower = positions.floor()
    return lower.long(), (positions - lower).float()


def interpolate_states(states: Tensor, lower: Tensor, weight: Tensor) -> Tensor:
    """[L, T, C] hidden states at [n] positions -> [L, n, C]."""
    upper = (lower + 1).clamp(max=states.shape[1] - 1)
    return torch.lerp(states[:, lower], states[:, upper], weight[:, None])


def read_normalised(sound: SoundSource, start: int, stop: int) -> Tensor:
    """[1, stop-start] samples, with zero mean and unit variance over the whole sound (as wav2vec2's processor does)."""
    samples = (sound.read(start, stop) - np.float32(sound.mean)) / np.float32(math.sqrt(sound.variance + 1e-7))
    return torch.from_numpy(samples)[None]


def silence_features(encode: Encode) -> Tensor:
    """[1, L, C, 1] float32 on the CPU: what the sound encoder makes of silence, the hidden states of zeros averaged."""
    states = _checked_states(encode, torch.zeros(1, SILENCE_SECONDS * SAMPLE_RATE))
    quarter = states.shape[1] // 4   # its ends hear the edge
    return states[:, quarter:-quarter].float().mean(1)[None, :, :, None].cpu()


class SilentFeatures:
    """Nothing to hear, at any length: an `AudioFeatures`."""

    def __init__(self, encode: Encode) -> None:
        self._features = silence_features(encode)

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        """[1, L, C, stop-start]."""
        return self._features.expand(-1, -1, -1, stop_frame - start_frame)


def _checked_states(encode: Encode, waveform: Tensor) -> Tensor:
    states = encode(waveform)                                            # [L, T, C]
    expected = num_hidden_states(waveform.shape[1])
    if states.ndim != 3 or states.shape[1] != expected:
        raise ShapeError(
            f"the sound encoder made {list(states.shape)} of {waveform.shape[1]} samples, "
            f"where [layers, {expected}, width] is needed: Wan-S2V hears 50 hidden states a second"
        )
    return states


# L hidden states a layer and the input, T hidden frames, C width, n frames of the video
class SoundFeatures:
    """The features of one sound at a video's fps: the `AudioFeatures` of the clip loop.

    Up to 60 s the sound is encoded whole, exactly as in the reference. A longer one is encoded in fixed stretches of
    60 s, of which 40 s are kept; they do not depend on what was asked for or in which order. A frame that begins
    before the sound ends hears it: the last feature is held where the reference's rounding has run out of them.
    Frames before 0 and after the end hear silence: the hidden states of zeros, averaged.
    """

    def __init__(self, sound: SoundSource, encode: Encode, *, fps: float) -> None:
        self._sound = sound
        self._encode = encode
        self._num_states = num_hidden_states(sound.num_samples)
        self._num_frames = num_video_frames(sound, fps)
        indices = feature_indices(self._num_frames, fps).clamp(max=num_features(self._num_states) - 1)
        self._lower, self._weight = state_positions(indices, self._num_states)
        whole = self._num_states <= WHOLE
        self._chunk_of = torch.zeros_like(self._lower) if whole else self._lower // CHUNK   # [num_frames]
        self._chunks: dict[int, Tensor] = {}
        self._silence: Tensor | None = None

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        """[1, L, C, stop-start] float32 on the CPU; before and past the sound, the features of silence."""
        before = max(0, min(stop_frame, 0) - start_frame)
        after = max(0, stop_frame - max(start_frame, self._num_frames))
        first, last = max(start_frame, 0), min(stop_frame, self._num_frames)
        parts = [self._of_silence(before), *self._of_sound(first, last), self._of_silence(after)]
        return torch.cat([part for part in parts if part is not None], dim=3)

    def _of_silence(self, num_frames: int) -> Tensor | None:
        if not num_frames:
            return None
        if self._silence is None:
            self._silence = silence_features(self._encode)
        return self._silence.expand(-1, -1, -1, num_frames)

    def _of_sound(self, first: int, last: int) -> list[Tensor]:
        parts = []
        while first < last:
            chunk = int(self._chunk_of[first])
            start, stop = self._frames_of(chunk)
            parts.append(self._features_of(chunk)[..., first - start : min(last, stop) - start])
            first = stop
        return parts

    def _frames_of(self, chunk: int) -> tuple[int, int]:
        start, stop = torch.searchsorted(self._chunk_of, torch.tensor([chunk, chunk + 1])).tolist()
        return start, stop

    def _features_of(self, chunk: int) -> Tensor:
        """[1, L, C, n] features of the frames that begin in the chunk."""
        if chunk not in self._chunks:
            if len(self._chunks) == MAX_CHUNKS:
                del self._chunks[next(iter(self._chunks))]   # the oldest
            self._chunks[chunk] = self._encode_chunk(chunk)
        return self._chunks[chunk]

    def _encode_chunk(self, chunk: int) -> Tensor:
        first = max(0, min(chunk * CHUNK - CONTEXT, self._num_states - WHOLE))
        last = min(first + WHOLE, self._num_states)
        waveform = read_normalised(self._sound, first * HOP, (last - 1) * HOP + FEATURE_WINDOW)
        states = _checked_states(self._encode, waveform)
        frames = slice(*self._frames_of(chunk))
        lower, weight = (x[frames].to(states.device) for x in (self._lower - first, self._weight))
        features = interpolate_states(states.float(), lower, weight)     # [L, n, C]
        return rearrange(features, "l n c -> 1 l c n").cpu().contiguous()

"""Sound in memory: cut, moved, and as a file.

Knows the host's AUDIO; not what a sound is for.
"""

from __future__ import annotations

import math
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..s2v_core.errors import ConfigError, MediaError, OutputError

BLOCK = 2**16   # samples written at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Waveform:
    """Sound in memory."""

    samples: Tensor    # [C, S] float32 on the CPU
    sample_rate: int   # Hz

    @property
    def seconds(self) -> Fraction:
        return Fraction(self.samples.shape[1], self.sample_rate)

    def between(self, start: float, end: float) -> Waveform:
        """From `start` to `end` seconds; end 0 is the sound's end.

        Raises: ConfigError when nothing is left.
        """
        first = round(start * self.sample_rate)
        last = self.samples.shape[1]
        if end > 0:
            last = first + math.floor((end - start) * self.sample_rate + 1e-6)   # rounded up, it would buy a frame
        if first >= min(last, self.samples.shape[1]):
            raise ConfigError(
                f"start {start:g} s and end {end:g} s leave nothing of {float(self.seconds):.2f} s of sound: "
                "start must come before end and before the sound's end (end 0 is the whole sound)"
            )
        return Waveform(samples=self.samples[:, first:last], sample_rate=self.sample_rate)

    def moved(self, seconds: float) -> Waveform:
        """The same length, `seconds` later (earlier when negative), silent where nothing is left."""
        shift = round(seconds * self.sample_rate)
        return self.fitted(self.samples.shape[1], shift)

    def fitted(self, num_samples: int, shift: int = 0) -> Waveform:
        samples = F.pad(self.samples, (shift, num_samples - self.samples.shape[1] - shift))
        return Waveform(samples=samples, sample_rate=self.sample_rate)

    def as_audio(self) -> dict[str, object]:
        """The host's AUDIO."""
        return {"waveform": self.samples[None], "sample_rate": self.sample_rate}


def waveform_of(audio: dict[str, object] | None) -> Waveform:
    """The first sound of a host AUDIO; whole numbers, as some decoders give, become fractions of full scale.

    Args:
        audio: its waveform is [B, C, S]; some nodes give [C, S] or [S]. None is what the host's Get Video Components
            gives for a silent video.

    Raises: MediaError for an input that holds no sound.
    """
    if audio is None:
        raise MediaError("the audio input holds no sound: the video that it comes from is silent; connect a sound")
    waveform = audio["waveform"].detach().cpu()
    samples = waveform[:1].flatten(0, 1) if waveform.ndim == 3 else torch.atleast_2d(waveform)
    if samples.ndim != 2 or not samples.numel():
        raise MediaError(f"the audio input holds no sound: its waveform is {list(waveform.shape)}")
    if not samples.is_floating_point():
        samples = samples.float() / (torch.iinfo(samples.dtype).max + 1)
    return Waveform(samples=samples.float(), sample_rate=int(audio["sample_rate"]))


def read_wav(path: Path) -> Waveform:
    """A 16-bit wav."""
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
        samples = torch.from_numpy(np.ascontiguousarray(values.T, np.float32) / 2**15)
        return Waveform(samples=samples, sample_rate=file.getframerate())


def write_wav(path: Path, sound: Waveform) -> None:
    """The sound as a file, sample for sample, for whoever takes files."""
    layouts = {1: "mono", 2: "stereo"}
    samples = sound.samples
    if samples.shape[0] not in layouts:
        samples = samples.mean(0, keepdim=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="wav") as container:
            stream = container.add_stream("pcm_f32le", rate=sound.sample_rate, layout=layouts[samples.shape[0]])
            for part in samples.split(BLOCK, dim=1):
                packed = np.ascontiguousarray(part.T.reshape(1, -1).numpy())
                frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layouts[samples.shape[0]])
                frame.sample_rate = sound.sample_rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (OSError, av.error.FFmpegError) as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); free space on the disk") from error

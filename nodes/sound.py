"""The sound that drives a video: what is heard, what moves the mouth, and its features as they are asked for.

Knows the host's AUDIO and AUDIO_ENCODER; not what a model does with the features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..s2v_core.conditioning.audio import SoundFeatures, SoundSource, num_video_frames, read_normalised
from ..s2v_core.conditioning.sound_cleaning import clean
from ..s2v_core.config import SAMPLE_RATE
from ..s2v_core.errors import ConfigError, MediaError, OutputError
from ..s2v_core.media.audio_io import sound_from_waveform
from ..s2v_core.types import DrivingSettings
from . import host
from .bundled import BundledAudioEncoder

BLOCK = 2**16   # samples written at a time

Encode = Callable[[Tensor], Tensor]


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


def waveform_of(audio: dict[str, object]) -> Waveform:
    """The first sound of a host AUDIO; whole numbers, as some decoders give, become fractions of full scale.

    Raises: MediaError for an input that holds no sound.
    """
    samples = audio["waveform"][0].detach().cpu()
    if samples.ndim != 2 or not samples.numel():
        raise MediaError(f"the audio input holds no sound: its waveform is {list(audio['waveform'].shape)}")
    if not samples.is_floating_point():
        samples = samples.float() / (torch.iinfo(samples.dtype).max + 1)
    return Waveform(samples=samples.float(), sample_rate=int(audio["sample_rate"]))


def trimmed(
    audio: dict[str, object], driving_audio: dict[str, object] | None, *, start: float, end: float, offset: float
) -> tuple[Waveform, Waveform]:
    """What is heard and what drives, equally long.

    Args:
        driving_audio: on the same clock as `audio`; None: the same sound.
        start, end: seconds; end 0 is the end.
        offset: seconds that the driving sound comes later.
    """
    heard = waveform_of(audio).between(start, end)
    driving = heard
    if driving_audio is not None:
        driving = waveform_of(driving_audio)
        if driving.seconds <= start:
            raise ConfigError(
                f"the driving audio lasts {float(driving.seconds):.2f} s and start is {start:g} s: nothing of it is "
                "left; it must be on the same clock as audio"
            )
        num_samples = round(heard.seconds * driving.sample_rate)
        driving = driving.fitted(num_samples, -round(start * driving.sample_rate))
    return heard, driving.moved(offset) if offset else driving


class DrivingSound:
    """What S2V Audio Encode hands on: the sound that is heard, and features of the sound that drives.

    Features are made when a clip asks for them and kept per frame rate; memory does not grow with the sound.
    """

    def __init__(
        self, heard: Waveform, driving: Waveform, encode: Encode, *, loudness: float = 0.0, noise_gate: float = 0.0
    ) -> None:
        """`loudness` (LUFS) and `noise_gate` (dB) are of the driving sound; 0 is off."""
        self.heard = heard
        settings = DrivingSettings(loudness=loudness or None, gate=noise_gate or None)
        recorded = sound_from_waveform(driving.samples, driving.sample_rate)
        self.sound: SoundSource = clean(recorded, loudness=settings.loudness, gate=settings.gate)
        self._encode = encode
        self._features: dict[float, SoundFeatures] = {}
        self._encoder_digest = ""

    def features(self, fps: float) -> SoundFeatures:
        if fps not in self._features:
            self._features = {fps: SoundFeatures(self.sound, self._encode, fps=fps)}
        return self._features[fps]

    def num_frames(self, fps: float) -> int:
        """Frames of a video that covers the sound."""
        return num_video_frames(self.sound, fps)

    def encoder_output(self) -> EncoderOutput:
        return EncoderOutput(self.sound, self._encode)

    def heard_digest(self) -> str:
        """What tells the sound that is heard from another."""
        found = hashlib.sha256(self.heard.samples.contiguous().numpy().tobytes())
        found.update(f"{self.heard.sample_rate}".encode())
        return found.hexdigest()

    def encoder_digest(self) -> str:
        """What tells the encoder from another: what it makes of a tenth of a second."""
        if not self._encoder_digest:
            states = self._encode(torch.linspace(-1, 1, SAMPLE_RATE // 10)[None])
            self._encoder_digest = hashlib.sha256(np.round(states.float().cpu().numpy(), 3).tobytes()).hexdigest()
        return self._encoder_digest


class EncoderOutput(dict):
    """The host's AUDIO_ENCODER_OUTPUT, made when one of its entries is read: the whole sound in one piece is large."""

    def __init__(self, sound: SoundSource, encode: Encode) -> None:
        super().__init__(audio_samples=sound.num_samples)
        self._sound, self._encode = sound, encode

    def __missing__(self, key: str) -> object:
        if key not in ("encoded_audio", "encoded_audio_all_layers"):
            raise KeyError(key)
        states = self._encode(read_normalised(self._sound, 0, self._sound.num_samples))
        self["encoded_audio_all_layers"] = [layer[None] for layer in states]
        self["encoded_audio"] = states[-1:]
        return self[key]


def encode_with(encoder: object) -> Encode:
    """[1, S] normalised waveform at 16 kHz -> [L, T, C] hidden states, by a host AUDIO_ENCODER or ours."""
    if isinstance(encoder, BundledAudioEncoder):
        return encoder.hidden_states
    return lambda waveform: _encode_with_host(encoder, waveform)


def _encode_with_host(encoder: object, waveform: Tensor) -> Tensor:
    host.stop_if_asked()
    network = encoder.model
    normalises = getattr(network, "do_normalize", False)
    network.do_normalize = False   # ours is normalised over the whole sound, this may be a stretch of it
    try:
        layers = encoder.encode_audio(waveform[:, None], SAMPLE_RATE)["encoded_audio_all_layers"]
    finally:
        network.do_normalize = normalises
    if not isinstance(layers, list | tuple):
        raise ConfigError("the audio encoder is none that S2V hears with; load wav2vec2_large_english_fp16.safetensors")
    return torch.cat([layer.float().cpu() for layer in layers])


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

"""The sound that drives a video: what is heard, what moves the mouth, and its features as they are asked for.

Knows the host's AUDIO and AUDIO_ENCODER; not what a model does with the features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..s2v_core.cast import Cast
from ..s2v_core.conditioning.audio import SoundFeatures, SoundSource, read_normalised
from ..s2v_core.conditioning.driving import exact
from ..s2v_core.conditioning.isolation import isolate_voice
from ..s2v_core.conditioning.sound_cleaning import clean
from ..s2v_core.config import SAMPLE_RATE
from ..s2v_core.errors import ConfigError
from ..s2v_core.geometry import VideoSize
from ..s2v_core.media.audio_io import sound_from_waveform
from ..s2v_core.types import AudioFeatures, DrivingSettings, SpeakerTrack
from . import host
from .bundled import BundledAudioEncoder
from .voices import Spoken, cast_of
from .waveform import Waveform, waveform_of

Encode = Callable[[Tensor], Tensor]


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
        self,
        heard: Waveform,
        driving: Waveform,
        encode: Encode,
        *,
        loudness: float = 0.0,
        noise_gate: float = 0.0,
        isolate: bool = False,
        speakers: tuple[Spoken, ...] = (),
        speakers_later: float = 0.0,
    ) -> None:
        """`loudness` (LUFS) and `noise_gate` (dB) are of what drives; 0 is off.

        Args:
            isolate: take the music out of what drives, first.
            speakers: voices that drive in place of `driving`, each in its own region.
            speakers_later: seconds by which the video comes to them later than they say.
        """
        self.heard = heard
        self.speakers = speakers
        self._speakers_later = exact(speakers_later)
        self._settings = DrivingSettings(loudness=loudness or None, gate=noise_gate or None)
        drives = sound_from_waveform(driving.samples, driving.sample_rate)
        self.sound = self._cleaned(isolate_voice(drives) if isolate else drives)
        self._encode = encode
        self._features: dict[float, SoundFeatures] = {}
        self._encoder_digest = ""

    def features(self, fps: float) -> SoundFeatures:
        if fps not in self._features:
            self._features = {fps: SoundFeatures(self.sound, self._encode, fps=fps)}
        return self._features[fps]

    def _cleaned(self, sound: SoundSource) -> SoundSource:
        return clean(sound, loudness=self._settings.loudness, gate=self._settings.gate)

    def cast(self, picture: Image.Image, size: VideoSize) -> Cast:
        """Who speaks in a video of the picture; nobody: all of it hears the sound."""
        return cast_of(self.speakers, picture, size, later=self._speakers_later, clean=self._cleaned)

    def shared_out(self, cast: Cast, fps: float) -> tuple[AudioFeatures, tuple[SpeakerTrack, ...]]:
        """What is heard outside everybody's region, and what each of the cast says."""
        return cast.features(self.features(fps), self._encode, fps)

    def num_frames(self, fps: float) -> int:
        """Frames of a video that covers what is heard; what drives may be a sample longer, at another rate."""
        return max(1, math.ceil(self.heard.seconds * exact(fps)))

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

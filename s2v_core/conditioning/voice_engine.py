"""Speech and voices as two optional packages know them: where somebody speaks, and whose voice it is.

Knows the packages' weights, which come with them; nothing is downloaded. Who speaks when is `diarize.py`'s business.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from ..config import SAMPLE_RATE
from ..errors import ConfigError
from .audio import SoundSource
from .diarize import Stretch, VoiceEngine

INSTALL = "pip install --no-deps silero-vad resemblyzer"   # --no-deps: what they ask for beyond torch is not used here
CHUNK = 512              # samples that silero-vad looks at
PAUSE = 0.15             # seconds without speech that end a stretch
BLOCK = 64 * CHUNK       # samples read at a time
LEVEL = 10 ** (-30 / 20)   # root mean square that voices are brought to, as in training
FFT, STEP, MELS = 400, 160, 40


class PackagedEngine:
    """Speech by silero-vad, voices by the speaker encoder of Resemblyzer."""

    def __init__(self, package: object, encoder: VoiceEncoder) -> None:
        self._package, self._encoder = package, encoder

    def speech(self, sound: SoundSource) -> Sequence[Stretch]:
        """The stretches in which somebody speaks, found a block at a time."""
        with _threads_kept():
            listen = self._package.VADIterator(
                self._package.load_silero_vad(), sampling_rate=SAMPLE_RATE, min_silence_duration_ms=int(1000 * PAUSE)
            )
        found: list[Stretch] = []
        begin: int | None = None
        for at in range(0, sound.num_samples, BLOCK):
            samples = sound.read(at, min(at + BLOCK, sound.num_samples))
            padded = torch.from_numpy(np.pad(samples, (0, -len(samples) % CHUNK)))
            for chunk in padded.split(CHUNK):
                told = listen(chunk) or {}
                begin = told.get("start", begin)
                if "end" in told and begin is not None:
                    found.append((begin, min(told["end"], sound.num_samples)))
                    begin = None
        return found if begin is None else [*found, (begin, sound.num_samples)]

    def prints(self, windows: np.ndarray) -> np.ndarray:
        """[n, 256] for [n, S] samples."""
        with torch.inference_mode():
            return self._encoder(torch.from_numpy(windows).float()).numpy()


class VoiceEncoder(nn.Module):
    """A voice's print. Source: Wan et al., "Generalized end-to-end loss for speaker verification", arXiv 1710.10467."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        bank = mel_filter_bank(FFT // 2 + 1, MELS, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
        self.register_buffer("mels", torch.from_numpy(bank).float(), persistent=False)   # [201, 40]
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """[n, S] at 16 kHz, of any loudness -> [n, 256] of length 1."""
        samples = samples * (LEVEL / samples.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-5))
        spectrum = torch.stft(samples, FFT, STEP, window=self.window, pad_mode="constant", return_complex=True)
        mels = spectrum.abs().square().mT @ self.mels                     # [n, T, 40]
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=-1)


def voice_engine() -> VoiceEngine:
    """The engine that the packages bring.

    Raises: ConfigError with what to install where one of them is missing or unlike the one this was made for.
    """
    try:
        with _threads_kept():
            import silero_vad
        weights = _weights_of("resemblyzer", "pretrained.pt")
    except ImportError:
        raise ConfigError(
            f"telling voices from each other takes two packages: {INSTALL}; "
            "or say who speaks when in a file (who-speaks)"
        ) from None
    encoder = VoiceEncoder()
    known = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
    try:
        encoder.load_state_dict({name: known[name] for name in encoder.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise ConfigError(f"{weights} holds another voice encoder than expected ({error}): {INSTALL}==0.1.4") from error
    return PackagedEngine(silero_vad, encoder.eval())


def _weights_of(package: str, name: str) -> Path:
    """A file that comes with a package, which is not imported: that would take more packages."""
    spec = importlib.util.find_spec(package)
    for folder in [] if spec is None else spec.submodule_search_locations or []:
        if Path(folder, name).is_file():
            return Path(folder, name)
    raise ImportError(f"no {name} of {package}")


@contextmanager
def _threads_kept() -> Iterator[None]:
    """silero-vad sets torch to one thread when it is imported and loaded; afterwards there are as many as before."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)

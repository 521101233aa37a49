"""The frozen models that make windows: autoencoder, sound encoder and text encoder, each read when first needed.

Knows model folders and devices; not videos or windows.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.files import open_weights
from ..checkpoints.loading import load_model
from ..checkpoints.official import ModelFiles, find_components
from ..conditioning.text import Tokenizer, byte_tokenizer, encode_prompt, folder_tokenizer, sentencepiece_tokenizer
from ..models.sound_encoder import SoundEncoder
from ..models.text_encoder import build_text_encoder
from ..models.vae import WanVAE

BUNDLED = Path(__file__).parent.parent / "bundled"
KEPT_PROMPTS = 256   # the newest: windows of one video share a prompt, and videos often do


class ModelEncoders:
    """The `Encoders` of a model folder.

    Args:
        folder: as `generate --model` takes it; None: the bundled model.
        with_text: prompts will be encoded too.

    Raises: CheckpointError for a folder that lacks a part.
    """

    def __init__(self, folder: Path | None, *, device: torch.device, with_text: bool) -> None:
        self.files: ModelFiles = find_components(BUNDLED if folder is None else folder)
        self.device = device
        self.with_text = with_text
        self._prompts: dict[str, Tensor] = {}   # no lru_cache of a method: it would keep all models until a collection

    def encode_frames(self, frames: Tensor) -> Tensor:
        return self.codec.encode(frames.to(self.device)).cpu()

    def hidden_states(self, waveform: Tensor) -> Tensor:
        return self._sound_encoder.hidden_states(waveform.to(self.device)).float().cpu()

    def identity(self) -> str:
        """What tells the weights from others."""
        paths = [self.files.vae, self.files.audio_encoder, *([self.files.text_encoder] if self.with_text else [])]
        return hashlib.sha256(b"".join(open_weights(path).summary() for path in paths)).hexdigest()[:32]

    def encode_prompt(self, prompt: str) -> Tensor:
        if prompt not in self._prompts:
            if len(self._prompts) == KEPT_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
            max_tokens = self.files.config.transformer.text_len
            embeds = encode_prompt(self._text_encoder, self._tokenizer, prompt, max_tokens=max_tokens)
            self._prompts[prompt] = embeds[0].float().cpu()
        return self._prompts[prompt]

    @cached_property
    def codec(self) -> WanVAE:
        config = self.files.config.vae
        return load_model(self.files.vae, "vae", lambda: WanVAE(config), dtype=torch.float32, device=self.device)

    @cached_property
    def _sound_encoder(self) -> SoundEncoder:
        path, config = self.files.audio_encoder, self.files.config.audio_encoder
        return load_model(path, "audio_encoder", lambda: SoundEncoder(config), dtype=torch.float32, device=self.device)

    @cached_property
    def _text_encoder(self) -> torch.nn.Module:
        path, config = self.files.text_encoder, self.files.config.text_encoder
        return load_model(path, "text_encoder", lambda: build_text_encoder(config), device=self.device)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.files.config.text_encoder.tokenizer == "bytes":
            return byte_tokenizer
        if self.files.tokenizer is not None:
            return folder_tokenizer(self.files.tokenizer)
        return sentencepiece_tokenizer(self.files.read_spiece_model())

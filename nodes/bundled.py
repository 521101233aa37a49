"""The small bundled model as the host's MODEL, CLIP, VAE and AUDIO_ENCODER: nothing to download.

Knows how the host holds each of them; the weights and what they compute are `s2v_core`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..s2v_core.checkpoints.loading import load_model, read_component
from ..s2v_core.checkpoints.official import ModelFiles, find_components
from ..s2v_core.components import BUNDLED
from ..s2v_core.conditioning.audio import read_normalised
from ..s2v_core.conditioning.text import byte_tokenizer, encode_prompt
from ..s2v_core.config import VAEConfig
from ..s2v_core.media.audio_io import sound_from_waveform
from ..s2v_core.media.image_io import read_picture
from ..s2v_core.models.sound_encoder import SoundEncoder
from ..s2v_core.models.text_encoder import build_text_encoder
from ..s2v_core.models.vae import WanVAE
from . import host, model
from .waveform import read_wav

SAMPLES = BUNDLED.parents[1] / "samples"

@dataclass(frozen=True, kw_only=True, slots=True)
class Bundled:
    """The four parts, as the host hands them from node to node."""

    model: host.ModelPatcher
    clip: host.CLIP
    vae: host.VAE
    audio_encoder: BundledAudioEncoder
    sample_image: Tensor              # the host's IMAGE [1, H, W, 3]
    sample_audio: dict[str, object]   # the host's AUDIO


def load_bundled() -> Bundled:
    """Read the bundled model, all of it in float32, and the sample picture and sound that the pack comes with."""
    files = find_components(BUNDLED)
    return Bundled(
        model=_load_transformer(files),
        clip=_load_clip(files),
        vae=_load_vae(files),
        audio_encoder=_load_ears(files),
        sample_image=_sample_image(),
        sample_audio=_sample_audio(),
    )


def _sample_image() -> Tensor:
    pixels = torch.from_numpy(np.array(read_picture(SAMPLES / "drawn.png")))
    return (pixels.float() / 255)[None]


def _sample_audio() -> dict[str, object]:
    return read_wav(SAMPLES / "speech.wav").as_audio()


def _load_transformer(files: ModelFiles) -> host.ModelPatcher:
    stored = read_component(files.transformer, "transformer")
    tensors = {name: tensor.dense(torch.float32) for name, tensor in stored.items()}
    return model.load(
        tensors,
        files.config.transformer,
        name=files.transformer.name,
        options={"dtype": torch.float32},
        default_area=files.config.default_area,
    )


# ---- text ------------------------------------------------------------------------------------------------------------


class PromptTokenizer:
    """What the host calls to cut a prompt; the encoder below takes whole text."""

    def __init__(self, **settings: object) -> None:
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: object) -> dict[str, str]:
        return {"text": text}

    def state_dict(self) -> dict:
        return {}


class PromptEncoder(nn.Module):
    """The bundled text encoder behind the calls that the host makes."""

    def __init__(self, files: ModelFiles) -> None:
        super().__init__()
        config = files.config
        self.max_tokens = config.transformer.text_len
        self.dtypes = {torch.float32}
        self.encoder = load_model(
            files.text_encoder, "text_encoder", lambda: build_text_encoder(config.text_encoder), dtype=torch.float32
        )

    def reset_clip_options(self) -> None:
        pass

    def set_clip_options(self, options: dict) -> None:
        pass

    def encode_token_weights(self, tokens: dict[str, str]) -> tuple[Tensor, None]:
        """[1, text_len, D] prompt embeds, zero past the prompt, so that both branches fit into one batch."""
        embeds = encode_prompt(self.encoder, byte_tokenizer, tokens["text"], max_tokens=self.max_tokens)
        return F.pad(embeds, (0, 0, 0, self.max_tokens - embeds.shape[1])).cpu(), None


class _Target:
    """What the host builds a CLIP from."""

    def __init__(self, files: ModelFiles) -> None:
        self.params: dict = {}
        self.tokenizer = PromptTokenizer
        self.clip = lambda **settings: PromptEncoder(files)


def _load_clip(files: ModelFiles) -> host.CLIP:
    return host.CLIP(_Target(files), model_options={"dtype": torch.float32})


# ---- pictures --------------------------------------------------------------------------------------------------------


class FirstStage(WanVAE):
    """The bundled autoencoder as the host's VAE calls its own: latents that are not normalised, whole videos.

    Args:
        default_area: pixels of a video of the models that it belongs to, when nobody asks for a size.
    """

    def __init__(self, config: VAEConfig, default_area: int) -> None:
        super().__init__(config)
        self.default_area = default_area

    def encode(self, frames: Tensor) -> Tensor:
        return host.LATENT_FORMAT.process_out(super().encode(frames))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 16, T, h, w] -> [B, 3, F, H, W] in [-1, 1]."""
        return torch.cat(list(self.decoder().decode(host.LATENT_FORMAT.process_in(latents))), dim=2)


def _load_vae(files: ModelFiles) -> host.VAE:
    weights = {name: stored.dense(torch.float32) for name, stored in read_component(files.vae, "vae").items()}
    return host.make_vae(weights, lambda **settings: FirstStage(files.config.vae, files.config.default_area))


# ---- sound -----------------------------------------------------------------------------------------------------------


class BundledAudioEncoder:
    """The bundled sound encoder: for our nodes, and for the host's AudioEncoderEncode."""

    def __init__(self, encoder: SoundEncoder) -> None:
        self.encoder = encoder

    def hidden_states(self, waveform: Tensor) -> Tensor:
        """[1, S] normalised waveform at 16 kHz -> [L, T, C] float32 on the CPU."""
        return self.encoder.hidden_states(waveform).float().cpu()

    def encode_audio(self, audio: Tensor, sample_rate: int) -> dict[str, object]:
        """[1, C, S] sound of any rate -> the host's AUDIO_ENCODER_OUTPUT."""
        with sound_from_waveform(audio[0], sample_rate) as sound:
            waveform = read_normalised(sound, 0, sound.num_samples)
        states = self.hidden_states(waveform)
        return {
            "encoded_audio": states[-1:],
            "encoded_audio_all_layers": [layer[None] for layer in states],
            "audio_samples": waveform.shape[1],
        }


def _load_ears(files: ModelFiles) -> BundledAudioEncoder:
    config = files.config.audio_encoder
    return BundledAudioEncoder(
        load_model(files.audio_encoder, "audio_encoder", lambda: SoundEncoder(config), dtype=torch.float32)
    )

"""A host VAE as the clip loop's VideoCodec: the same weights, read as a stream.

Knows the host's VAE from outside; the autoencoder itself is `s2v_core`'s.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from torch import Tensor

from ..s2v_core.checkpoints import keymaps
from ..s2v_core.checkpoints.shapes import vae_config_from_shapes
from ..s2v_core.config import DEFAULT_AREA
from ..s2v_core.errors import ConfigError
from ..s2v_core.geometry import SPATIAL_STRIDE
from ..s2v_core.models.cost import decoder_room
from ..s2v_core.models.vae import WanVAE, decoder_receptive_field
from ..s2v_core.types import VideoDecoder
from . import host
from .bundled import FirstStage

_made: weakref.WeakKeyDictionary[host.VAE, HostCodec] = weakref.WeakKeyDictionary()


def codec_of(vae: host.VAE) -> HostCodec:
    """The codec of a VAE input, made once and kept as long as the VAE.

    Raises: ConfigError for a VAE that is not Wan 2.1's.
    """
    if vae not in _made:
        _made[vae] = HostCodec(_our_model(vae))
    return _made[vae]


def default_area(vae: host.VAE) -> int:
    """Pixels of a video that the models of a VAE like: few for the bundled one."""
    stage = vae.first_stage_model
    return stage.default_area if isinstance(stage, FirstStage) else DEFAULT_AREA


def _our_model(vae: host.VAE) -> WanVAE:
    if isinstance(vae.first_stage_model, WanVAE):
        return vae.first_stage_model
    weights = vae.get_sd()
    kind, prefix = keymaps.identify(weights)
    if kind.component != "vae":
        raise ConfigError(
            "the vae input is not the Wan 2.1 VAE; load wan_2.1_vae.safetensors (Wan 2.2's own VAE does not fit S2V)"
        )
    names = keymaps.model_keys("vae", weights, prefix)
    model = WanVAE(vae_config_from_shapes({ours: tuple(weights[name].shape) for name, ours in names.items()}))
    model.load_state_dict({ours: weights[name].float() for name, ours in names.items()})
    return model.eval().requires_grad_(False)


class HostCodec:
    """Frames in [-1, 1] to normalised latents and back, in float32, on the host's VAE device.

    Causal state is carried, so frames come as they are ready, and Cancel is heard between two latent frames.
    """

    def __init__(self, model: WanVAE) -> None:
        self.model = model
        self.patcher = host.vae_patcher(model)
        self.decoder_reach = decoder_receptive_field(model.config)

    def bring(self, width: int, height: int) -> None:
        """The weights to their device, with room to work on frames of this size in pixels."""
        itemsize = self.model.conv1.weight.dtype.itemsize
        host.bring([self.patcher], decoder_room(self.model.config, width * height, itemsize))

    def encode(self, frames: Tensor) -> Tensor:
        self.bring(frames.shape[-1], frames.shape[-2])
        host.stop_if_asked()
        return WanVAE.encode(self.model, frames).cpu()

    def decoder(self) -> VideoDecoder:
        return _Decoder(self)


class _Decoder:
    """A stream whose weights may have been sent away between two calls."""

    def __init__(self, codec: HostCodec) -> None:
        self._codec = codec
        self._stream = codec.model.decoder()

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        self._bring(latents)
        for frames in self._stream.decode(latents):
            host.stop_if_asked()
            yield frames

    def prime(self, latents: Tensor) -> None:
        self._bring(latents)
        host.stop_if_asked()
        self._stream.prime(latents)

    def _bring(self, latents: Tensor) -> None:
        self._codec.bring(latents.shape[-1] * SPATIAL_STRIDE, latents.shape[-2] * SPATIAL_STRIDE)


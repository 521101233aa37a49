"""Our transformer as a host MODEL: the wrapper and configuration that the host builds it with, and loading.

Knows how the host identifies and holds models; not where a node got its file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..s2v_core.checkpoints.keymaps import AUDIO_ENCODER
from ..s2v_core.config import DEFAULT_AREA, TransformerConfig
from ..s2v_core.errors import CheckpointError, ConfigError
from ..s2v_core.models.dit import WanS2VTransformer
from . import host
from .transformer import HostTransformer

SPEAKERS = ("speaker_features", "speaker_masks")   # in conditioning: what somebody says, and where
POSE_UNTIL = "pose_until"   # in conditioning: the timestep below which the pose is left out
SHIFT = 3.0   # what Wan-S2V ships with; the host's own default is 8


class S2VModel(host.HostS2VModel):
    """The host's S2V model with our transformer inside: conditioning nodes of the host drive it as they do theirs."""

    def __init__(self, model_config: S2VConfig, device: torch.device | None = None) -> None:
        host.BaseModel.__init__(self, model_config, host.FLOW, device=device, unet_model=HostTransformer)
        self.memory_usage_factor_conds = ("reference_latent", "reference_motion")
        self.memory_usage_shape_process = {"reference_motion": lambda s: [s[0], s[1], 1.5, s[-2], s[-1]]}
        self.default_area = model_config.default_area

    def extra_conds(self, **kwargs: object) -> dict:
        out = super().extra_conds(**kwargs)
        out |= {name: host.tensor(kwargs[name]) for name in SPEAKERS if kwargs.get(name) is not None}
        if kwargs.get(POSE_UNTIL) is not None:
            out[POSE_UNTIL] = host.constant(kwargs[POSE_UNTIL])
        if kwargs.get("hooks") is not None:
            out["weights_change"] = host.constant(True)   # hooks patch weights while a run goes on
        return out

    def memory_required(self, input_shape: list[int], *args: object, **kwargs: object) -> float:
        """Bytes for a forward: the host's estimate, and the prompt's keys and values, which are kept over the steps."""
        config = self.diffusion_model.config
        numbers = 2 * config.num_layers * config.text_len * config.dim * input_shape[0]
        return super().memory_required(input_shape, *args, **kwargs) + numbers * 2


class S2VConfig(host.HostS2VConfig):
    """What the host builds S2VModel from. Subclasses say which transformer."""

    transformer: TransformerConfig
    default_area: int
    sampling_settings = {"shift": SHIFT}

    def get_model(self, state_dict: dict, prefix: str = "", device: torch.device | None = None) -> S2VModel:
        self.unet_config["s2v_config"] = self.transformer
        return S2VModel(self, device=device)


def load(
    tensors: dict[str, Tensor],
    config: TransformerConfig,
    *,
    name: str,
    options: Mapping[str, object],
    default_area: int = DEFAULT_AREA,
) -> host.ModelPatcher:
    """Weights under the official names into a MODEL.

    Args:
        name: of the file, for what errors say.
        options: the host's model options: dtype, fp8_optimizations, custom_operations.
        default_area: pixels of a video when nobody asks for a size.

    Raises: CheckpointError when weights are missing.
    """
    _require_complete(tensors, config, name)
    kind = type("S2VConfig", (S2VConfig,), {"transformer": config, "default_area": default_area})
    patcher = host.load_diffusion_model(tensors, kind, options)
    if patcher is None or not isinstance(patcher.model, S2VModel):
        raise CheckpointError(f"this ComfyUI did not recognise {name} as an S2V transformer; update ComfyUI")
    forget_after_sampling(patcher)
    return patcher


def forget_after_sampling(patcher: host.ModelPatcher) -> None:
    """What is kept over the steps of a run takes memory that others want afterwards."""
    host.after_sampling(patcher, "wan_s2v", patcher.model.diffusion_model.constants.forget)


def _require_complete(tensors: Mapping[str, Tensor], config: TransformerConfig, name: str) -> None:
    wanted = WanS2VTransformer(config, device="meta").state_dict()
    missing = [key for key in wanted if key not in tensors]
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} of the {len(wanted)} weights of a Wan S2V transformer "
            f"({', '.join(missing[:3])}, ...): it looks like an unfinished download, get it again"
        )


# ---- any S2V MODEL, ours or the host's own ---------------------------------------------------------------------------


def transformer_of(model: host.ModelPatcher) -> nn.Module:
    """The S2V transformer inside a MODEL. Raises: ConfigError when it is none."""
    inside = model.model.diffusion_model
    if not isinstance(model.model, host.HostS2VModel):
        raise ConfigError(
            f"the model input holds a {type(model.model).__name__}, where a Wan2.2-S2V model is needed: "
            "load it with S2V Load Model, or with the host's own loader from a wan2.2_s2v_14B file"
        )
    return inside


def default_area(model: host.ModelPatcher) -> int:
    return model.model.default_area if isinstance(model.model, S2VModel) else DEFAULT_AREA


def check_speakers(model: host.ModelPatcher) -> None:
    """Whether the model can hear several speakers. Raises: ConfigError when it is the host's own."""
    if not isinstance(model.model, S2VModel):
        raise ConfigError(
            "ComfyUI's own S2V model hears one sound for the whole picture: load the model with S2V Load Model, or "
            "disconnect the speakers input of S2V Audio Encode"
        )


def check_pose_steps(model: host.ModelPatcher) -> None:
    """Whether the model can leave a pose out after some steps. Raises: ConfigError when it is the host's own."""
    if not isinstance(model.model, S2VModel):
        raise ConfigError(
            "ComfyUI's own S2V model follows a pose in every step: load the model with S2V Load Model, or set "
            "pose_steps to 0"
        )


def check_fit(model: host.ModelPatcher, features: Tensor, prompt_embeds: Tensor) -> None:
    """Sound features [1, L, C, F] and prompt embeds [1, L, D] against what the transformer reads.

    Raises: ConfigError that names the input to change.
    """
    transformer = transformer_of(model)
    encoder = transformer.get_submodule(AUDIO_ENCODER)
    layers, width = encoder.weights.shape[1], encoder.encoder.conv1_local.conv.weight.shape[1]
    if tuple(features.shape[1:3]) != (layers, width):
        raise ConfigError(
            f"the audio encoder makes {features.shape[1]} layers of width {features.shape[2]}, the model hears "
            f"{layers} of width {width}: the big model needs wav2vec2_large_english, the bundled one its own encoder"
        )
    text = transformer.text_embedding[0].in_features
    if prompt_embeds.shape[-1] != text:
        raise ConfigError(
            f"the prompt is encoded to width {prompt_embeds.shape[-1]}, the model reads {text}: "
            "the big model needs the umt5_xxl text encoder, the bundled one its own"
        )

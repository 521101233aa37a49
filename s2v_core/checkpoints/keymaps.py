"""Foreign spellings, all of them: the official settings' and weight files' names, and what we call them.

Knows names and shapes only: no file, no tensor data, no model class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import (
    WAN_LATENT_MEAN,
    WAN_LATENT_STD,
    AudioEncoderConfig,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
)
from ..errors import ConfigError

# Official setting -> field of TransformerConfig. `config.json` leaves out those with a star, the constructor has them.
_TRANSFORMER_FIELDS = {
    "dim": "dim",
    "ffn_dim": "ffn_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "cond_dim": "pose_channels",
    "patch_size": "patch_size",              # *
    "freq_dim": "freq_dim",
    "text_dim": "text_dim",                  # *
    "text_len": "text_len",
    "eps": "eps",
    "qk_norm": "qk_norm",                    # *
    "cross_attn_norm": "cross_attn_norm",    # *
    "audio_dim": "audio_dim",
    "num_audio_token": "num_audio_tokens",
    "audio_inject_layers": "audio_inject_layers",
    "enable_adain": "use_adain",
    "zero_timestep": "zero_timestep",
    "framepack_drop_mode": "motion_drop_mode",
}
_TRANSFORMER_NEEDS = ("dim", "ffn_dim", "num_heads", "num_layers")

# Official switches of which only one position was ever shipped for S2V.
_TRANSFORMER_SWITCHES = {
    "model_type": "s2v",
    "enable_motioner": False,
    "enable_tsm": False,
    "enable_framepack": True,
    "adain_mode": "attn_norm",
}

_VAE_FIELDS = {
    "dim": "dim",
    "z_dim": "latent_channels",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temperal_downsample": "temporal_downsample",
}

_TEXT_FIELDS = {
    "vocab": "vocab_size",
    "dim": "dim",
    "dim_attn": "attention_dim",
    "dim_ffn": "ffn_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "num_buckets": "num_buckets",
}
_TEXT_FIELDS_TRANSFORMERS = {
    "vocab_size": "vocab_size",
    "d_model": "dim",
    "d_ff": "ffn_dim",
    "num_heads": "num_heads",
    "num_layers": "num_layers",
    "relative_attention_num_buckets": "num_buckets",
    "relative_attention_max_distance": "max_distance",
}

_AUDIO_FIELDS = tuple(AudioEncoderConfig.__dataclass_fields__)
_AUDIO_SWITCHES = {"feat_extract_activation": "gelu", "hidden_act": "gelu", "add_adapter": False}


def transformer_config_from_official(settings: Mapping[str, Any]) -> TransformerConfig:
    """Our settings of an S2V transformer, from its `config.json` or the official constructor's arguments.

    Settings that only matter while running (`add_last_motion`, `window_size`, `zero_init`) are passed over.

    Raises: ConfigError when a size is missing, or a switch stands where no S2V checkpoint has it.
    """
    _check_switches(settings, _TRANSFORMER_SWITCHES, "an S2V checkpoint form we run")
    missing = [name for name in _TRANSFORMER_NEEDS if name not in settings]
    if missing:
        raise ConfigError(f"these are not the settings of a Wan transformer: {', '.join(missing)} missing")
    return TransformerConfig(**_renamed(settings, _TRANSFORMER_FIELDS))


def transformer_config_to_official(config: TransformerConfig) -> dict[str, Any]:
    """The settings a `config.json` would hold for this transformer."""
    fields = {theirs: getattr(config, ours) for theirs, ours in _TRANSFORMER_FIELDS.items()}
    return {**_TRANSFORMER_SWITCHES, **{name: _untupled(value) for name, value in fields.items()}}


def vae_config_from_official(settings: Mapping[str, Any]) -> VAEConfig:
    """Our settings of a Wan 2.1 VAE, from the official constructor's arguments.

    The latent statistics are only known for 16 channels; others pass unscaled (mean 0, deviation 1).
    """
    if settings.get("attn_scales"):
        raise ConfigError(f"attn_scales {settings['attn_scales']} is not a Wan 2.1 VAE: it has none")
    fields = _renamed(settings, _VAE_FIELDS)
    return VAEConfig(**fields, **_latent_statistics(fields.get("latent_channels", 16)))


def text_config_from_official(settings: Mapping[str, Any]) -> TextEncoderConfig:
    """Our settings of a umT5 encoder, from the official constructor's arguments or from `transformers`' config.json."""
    if settings.get("shared_pos"):
        raise ConfigError("shared_pos True is T5, not umT5: umT5 has position biases in every layer")
    if "d_model" not in settings:
        return TextEncoderConfig(**_renamed(settings, _TEXT_FIELDS))
    fields = _renamed(settings, _TEXT_FIELDS_TRANSFORMERS)
    return TextEncoderConfig(**fields, attention_dim=settings["num_heads"] * settings["d_kv"])


def audio_config_from_official(settings: Mapping[str, Any]) -> AudioEncoderConfig:
    """Our settings of a wav2vec2 encoder, from its `config.json`."""
    _check_switches(settings, _AUDIO_SWITCHES, "a wav2vec2 form we run")
    return AudioEncoderConfig(**_renamed(settings, {name: name for name in _AUDIO_FIELDS}))


def _check_switches(settings: Mapping[str, Any], shipped: Mapping[str, Any], form: str) -> None:
    for name, value in shipped.items():
        if settings.get(name, value) != value:
            raise ConfigError(f"{name} {settings[name]!r} is not {form}: it needs {value!r}")


def _renamed(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The settings that we have a field for, under our names, hashable."""
    return {ours: _tupled(settings[theirs]) for theirs, ours in names.items() if theirs in settings}


def _tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _untupled(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _latent_statistics(channels: int) -> dict[str, tuple[float, ...]]:
    if channels == len(WAN_LATENT_MEAN):
        return {"latent_mean": WAN_LATENT_MEAN, "latent_std": WAN_LATENT_STD}
    return {"latent_mean": (0.0,) * channels, "latent_std": (1.0,) * channels}

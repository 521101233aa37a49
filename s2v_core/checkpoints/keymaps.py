"""Foreign spellings, all of them: the official settings' and weight files' names, and what we call them.

Knows names and shapes only: no file, no tensor data, no model class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
    return VAEConfig(**fields, **latent_statistics(fields.get("latent_channels", 16)))


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
    return {ours: tupled(settings[theirs]) for theirs, ours in names.items() if theirs in settings}


def tupled(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _untupled(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def latent_statistics(channels: int) -> dict[str, tuple[float, ...]]:
    if channels == len(WAN_LATENT_MEAN):
        return {"latent_mean": WAN_LATENT_MEAN, "latent_std": WAN_LATENT_STD}
    return {"latent_mean": (0.0,) * channels, "latent_std": (1.0,) * channels}


# ---- what a file is, by the names in it ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of weight file."""

    title: str                # as people say it, with its article
    component: str | None     # which of our models it can be
    marks: tuple[str, ...]    # every one of these begins some name in the file


AUDIO_ENCODER = "casual_audio_encoder"   # sic: the audio encoder inside the transformer
_BLOCK = "blocks.0.self_attn.q."

S2V = Kind(
    title="a Wan S2V transformer", component="transformer", marks=(_BLOCK, AUDIO_ENCODER + ".", "audio_injector.")
)
LORA = Kind(title="a LoRA", component=None, marks=())
UNKNOWN = Kind(title="of no kind that is known here", component=None, marks=())

# The first whose marks are all found is it.
KINDS = (
    S2V,
    Kind(title="a Wan VACE transformer", component=None, marks=(_BLOCK, "vace_patch_embedding.")),
    Kind(title="a Wan camera-control transformer", component=None, marks=(_BLOCK, "control_adapter.")),
    Kind(title="a HuMo transformer", component=None, marks=(_BLOCK, "audio_proj.audio_proj_glob_1.")),
    Kind(title="a Wan Animate transformer", component=None, marks=(_BLOCK, "face_adapter.")),
    Kind(title="a Wan image-to-video transformer", component=None, marks=(_BLOCK, "img_emb.")),
    Kind(title="a Wan text-to-video transformer", component=None, marks=(_BLOCK, "head.modulation")),
    Kind(
        title="a Wan transformer in diffusers' spelling",
        component=None,
        marks=("blocks.0.attn1.", "condition_embedder."),
    ),
    Kind(title="a Wan VAE in diffusers' spelling", component=None, marks=("encoder.down_blocks.", "post_quant_conv.")),
    Kind(title="a Wan 2.2 VAE", component=None, marks=("decoder.upsamples.0.upsamples.0.",)),
    Kind(
        title="a Wan 2.1 VAE",
        component="vae",
        marks=("encoder.downsamples.0.residual.0.gamma", "decoder.upsamples.0.residual.0.gamma"),
    ),
    Kind(title="a umT5 text encoder", component="text_encoder", marks=("token_embedding.", "blocks.0.pos_embedding.")),
    Kind(
        title="a umT5 text encoder",
        component="text_encoder",
        marks=("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.",),
    ),
    Kind(title="a umT5 text encoder", component="text_encoder", marks=("enc.blk.1.attn_rel_b.",)),
    Kind(title="a T5 text encoder", component=None, marks=("encoder.block.0.layer.0.SelfAttention.",)),
    Kind(title="a T5 text encoder", component=None, marks=("enc.blk.0.attn_q.",)),
    Kind(
        title="a wav2vec2 sound encoder",
        component="audio_encoder",
        marks=("feature_extractor.conv_layers.0.conv.", "encoder.pos_conv_embed."),
    ),
    Kind(title="a Whisper sound encoder", component=None, marks=("encoder.embed_positions.", "encoder.conv1.")),
)

# What repackagers put in front of a model's names.
PREFIXES = (
    "", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "module.", "net.",
    "vae.", "first_stage_model.", "text_encoder.", "text_encoders.umt5xxl.transformer.", "umt5xxl.transformer.",
    "wav2vec2.", "audio_encoder.",
)  # fmt: skip


def identify(names: Iterable[str]) -> tuple[Kind, str]:
    """What a file with these names is, and the prefix under which its model lies."""
    names = list(names)
    if any(is_lora_key(name) for name in names):
        return LORA, ""
    for prefix in PREFIXES:
        inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        for kind in KINDS:
            if inner and all(any(name.startswith(mark) for name in inner) for mark in kind.marks):
                return kind, prefix
    return UNKNOWN, ""


# ---- names of our four models' weights -------------------------------------------------------------------------------

# llama.cpp's names of a T5 encoder's parts -> transformers'.
_GGUF_T5 = {
    "token_embd": "shared",
    "enc.output_norm": "encoder.final_layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
SPIECE_MODEL = "spiece_model"   # the tokenizer, as bytes, inside single-file umT5 weights
_TEXT_UNUSED = ("decoder.", "lm_head.", SPIECE_MODEL, "logit_scale")


def _plain_keys(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _text_keys(names: Iterable[str]) -> dict[str, str]:
    from ..models.text_encoder import umt5_key  # here: it imports transformers, which takes seconds

    return {name: umt5_key(_gguf_t5_key(name)) for name in names if not name.startswith(_TEXT_UNUSED)}


def _gguf_t5_key(name: str) -> str:
    part, _, leaf = name.rpartition(".")
    block = re.match(r"enc\.blk\.(\d+)\.(\w+)$", part)
    if block:
        return f"encoder.block.{block[1]}.{_GGUF_T5.get(block[2], block[2])}.{leaf}"
    return f"{_GGUF_T5.get(part, part)}.{leaf}"


def _audio_keys(names: Iterable[str]) -> dict[str, str]:
    from ..models.sound_encoder import sound_encoder_keys  # here: as above

    return sound_encoder_keys(names)


_KEYS = {"transformer": _plain_keys, "vae": _plain_keys, "text_encoder": _text_keys, "audio_encoder": _audio_keys}


def model_keys(component: str, names: Iterable[str], prefix: str) -> dict[str, str]:
    """A file's name for a weight -> our model's, for the weights that the model uses."""
    inner = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    return {inner[name]: ours for name, ours in _KEYS[component](inner).items()}


# ---- fp8 with scales -------------------------------------------------------------------------------------------------

FP8_MARKER = "scaled_fp8"                          # an empty tensor that says: this file has scales
SCALE_SUFFIXES = (".scale_weight", ".weight_scale")   # beside `.weight`, which it multiplies
QUANT_NOTE = ".comfy_quant"                        # JSON as bytes beside `.weight`: {"format": ...}
QUANT_METADATA = "_quantization_metadata"          # the same for all layers, in the header
UNUSED_SUFFIXES = (".scale_input", ".input_scale", QUANT_NOTE)   # for fp8 products, which we do not make
FP8_NOTES = ("float8_e4m3fn", "float8_e5m2")       # formats in such notes that we read


# ---- LoRA ------------------------------------------------------------------------------------------------------------

# Ending of a LoRA's key -> which part of the change it is.
LORA_PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".diff": "weight",
    ".diff_b": "bias",
    ".diff_m": "modulation",
}
LORA_ALPHA = ".alpha"   # apart: other models have weights that end like this
# Endings of kinds of change that we do not apply.
LORA_UNSUPPORTED = {
    ".lora_mid.weight": "Tucker-decomposed LoRA",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_magnitude_vector.weight": "DoRA",
    ".hada_w1_a": "LoHa",
    ".lokr_w1": "LoKr",
    ".lokr_w1_a": "LoKr",
    ".oft_blocks": "OFT",
}
LORA_PREFIXES = (
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "model.",
    "lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_",
)  # fmt: skip

# Diffusers' names of Wan modules -> the official ones. Parts of names, tried in order.
_DIFFUSERS_WAN = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn1.to_": "self_attn.",
    "attn2.to_": "cross_attn.",
    "attn1.norm_": "self_attn.norm_",
    "attn2.norm_": "cross_attn.norm_",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "proj_out": "head.head",
}

# A piece of a foreign LoRA's target -> the model it was made for.
LORA_ORIGINS = {
    "double_blocks": "FLUX or HunyuanVideo",
    "single_transformer_blocks": "FLUX",
    "joint_blocks": "Stable Diffusion 3",
    "transformer_blocks": "LTX-Video, Qwen-Image or another diffusers model",
    "down_blocks": "Stable Diffusion",
    "input_blocks": "Stable Diffusion",
    "text_model": "a CLIP text encoder",
    "self_attn": "another Wan model",
}


LORA_METADATA = "lora_adapter_metadata"   # PEFT's settings as JSON in a safetensors header, as diffusers writes them
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def is_lora_key(name: str) -> bool:
    return name.endswith((*LORA_PARTS, *LORA_UNSUPPORTED))


def lora_target(name: str) -> str:
    """A LoRA's name for a module -> the official one; underscores for dots (kohya) are left to the caller."""
    for prefix in LORA_PREFIXES:
        name = name.removeprefix(prefix)
    for theirs, official in _DIFFUSERS_WAN.items():
        name = name.replace(theirs, official)
        name = name.replace(theirs.replace(".", "_"), official.replace(".", "_")) if "." not in name else name
    return name

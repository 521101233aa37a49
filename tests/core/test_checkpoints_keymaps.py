"""Foreign spellings: settings, kinds of file, names of weights, and configs read off shapes."""

from __future__ import annotations

import json

import pytest
import torch

from s2v_core.checkpoints import keymaps
from s2v_core.checkpoints.keymaps import (
    audio_config_from_official,
    identify,
    model_keys,
    text_config_from_official,
    transformer_config_from_official,
    transformer_config_to_official,
    vae_config_from_official,
)
from s2v_core.checkpoints.shapes import (
    audio_config_from_shapes,
    text_config_from_shapes,
    transformer_config_from_shapes,
    vae_config_from_shapes,
)
from s2v_core.config import AudioEncoderConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from s2v_core.errors import CheckpointError, ConfigError
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.models.text_encoder import build_text_encoder

from ..golden.case import ROOT
from . import checkpoints_tiny as tiny


def recorded(name: str) -> dict:
    return json.loads((ROOT / name).read_text())


def recorded_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(entry["shape"]) for key, entry in recorded(name)["keys"].items()}


def shapes_of(tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# ---- settings


def test_official_settings_of_the_14b_model_are_our_defaults():
    assert transformer_config_from_official(recorded("keys_14b.json")["config"]) == TransformerConfig()


def test_official_settings_round_trip():
    config = tiny.CONFIG
    written = json.loads(json.dumps(transformer_config_to_official(config)))
    assert transformer_config_from_official(written) == config


def test_config_json_leaves_out_what_the_constructor_has():
    left_out = ("patch_size", "text_dim", "qk_norm", "cross_attn_norm", "window_size")
    settings = {k: v for k, v in recorded("keys_14b.json")["config"].items() if k not in left_out}
    assert transformer_config_from_official({**settings, "_class_name": "WanModel_S2V"}) == TransformerConfig()


@pytest.mark.parametrize(
    "name,value",
    [
        ("enable_motioner", True),
        ("enable_tsm", True),
        ("enable_framepack", False),
        ("adain_mode", "adain"),
        ("model_type", "t2v"),
    ],
)
def test_switch_that_no_s2v_checkpoint_has_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name} {value!r} is not an S2V checkpoint form"):
        transformer_config_from_official({**tiny.OFFICIAL, name: value})


def test_settings_without_sizes_are_refused():
    with pytest.raises(ConfigError, match="ffn_dim"):
        transformer_config_from_official({"dim": 64, "num_heads": 2, "num_layers": 2})


def test_vae_settings():
    assert vae_config_from_official(recorded("keys_vae21.json")["config"]) == VAEConfig()
    with pytest.raises(ConfigError, match="attn_scales"):
        vae_config_from_official({"dim": 96, "attn_scales": [0.5]})


def test_text_settings_of_both_kinds():
    assert text_config_from_official(recorded("keys_umt5_xxl_encoder.json")["config"]) == TextEncoderConfig()
    theirs = {
        "model_type": "umt5", "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64,
        "num_layers": 24, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    }  # fmt: skip
    assert text_config_from_official(theirs) == TextEncoderConfig()
    with pytest.raises(ConfigError, match="umT5"):
        text_config_from_official({"vocab": 10, "shared_pos": True})


def test_audio_settings():
    theirs = {"model_type": "wav2vec2", "conv_dim": [512] * 7, "hidden_size": 1024, "vocab_size": 33}
    assert audio_config_from_official(theirs) == AudioEncoderConfig()
    with pytest.raises(ConfigError, match="relu"):
        audio_config_from_official({"hidden_act": "relu"})


# ---- what a file is

T2V = ["blocks.0.self_attn.q.weight", "head.modulation", "patch_embedding.weight"]


@pytest.mark.parametrize(
    "names,title",
    [
        (T2V, "a Wan text-to-video transformer"),
        ([*T2V, "img_emb.proj.0.bias"], "a Wan image-to-video transformer"),
        ([*T2V, "vace_patch_embedding.weight"], "a Wan VACE transformer"),
        ([*T2V, "face_adapter.fuser_blocks.0.k_norm.weight"], "a Wan Animate transformer"),
        (["decoder.upsamples.0.upsamples.0.residual.2.weight"], "a Wan 2.2 VAE"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (["enc.blk.0.attn_q.weight", "enc.blk.1.attn_rel_b.weight"], "a umT5 text encoder"),
        (["lora_unet_blocks_0_self_attn_q.lora_down.weight"], "a LoRA"),
        (["model.layers.0.mlp.weight"], "of no kind that is known here"),
    ],
)
def test_kinds_of_file(names, title):
    assert identify(names)[0].title == title


def test_recorded_checkpoints_are_recognised_under_any_prefix():
    for name, component in [("keys_14b.json", "transformer"), ("keys_vae21.json", "vae")]:
        names = recorded(name)["keys"]
        for prefix in ("", "model.diffusion_model.", "diffusion_model.", "model."):
            kind, found = identify([prefix + n for n in names])
            assert (kind.component, found) == (component, prefix)
    assert identify(recorded("keys_umt5_xxl_encoder.json")["keys"])[0].component == "text_encoder"


def test_a_t2v_file_is_not_s2v_and_an_s2v_file_is():
    names = list(recorded("keys_14b.json")["keys"])
    assert identify(names)[0] is keymaps.S2V
    deaf = [n for n in names if not n.startswith(("casual_audio_encoder", "audio_injector"))]
    assert identify(deaf)[0].title == "a Wan text-to-video transformer"


# ---- names


def gguf_t5_name(name: str) -> str:
    """The other way round: transformers' name of a weight to llama.cpp's."""
    for theirs, ours in keymaps._GGUF_T5.items():
        name = name.replace(ours + ".", theirs + ".") if "." in ours or ours == "shared" else name
    return name.replace("encoder.block.", "enc.blk.")


def test_umt5_names_official_transformers_and_gguf_agree():
    with torch.device("meta"):
        ours = dict(build_text_encoder(tiny.TEXT).named_parameters())
    names = recorded("keys_umt5_xxl_encoder.json")["keys"]
    official = [n for n in names if not n.startswith("blocks.") or int(n.split(".")[1]) < tiny.TEXT.num_layers]
    assert set(model_keys("text_encoder", official, "").values()) == set(ours)
    assert set(model_keys("text_encoder", [*ours, "spiece_model", "lm_head.weight"], "").values()) == set(ours)
    llama = [gguf_t5_name(n) for n in ours]
    assert "enc.blk.1.attn_rel_b.weight" in llama and "enc.output_norm.weight" in llama
    assert set(model_keys("text_encoder", llama, "").values()) == set(ours)


def test_model_keys_keep_what_belongs_to_a_layer():
    keys = model_keys("transformer", ["model.diffusion_model.head.head.weight", "vae.x"], "model.diffusion_model.")
    assert keys == {"model.diffusion_model.head.head.weight": "head.head.weight"}


# ---- configs from shapes


def test_shapes_of_the_released_models_give_our_defaults():
    assert transformer_config_from_shapes(recorded_shapes("keys_14b.json")) == TransformerConfig()
    assert vae_config_from_shapes(recorded_shapes("keys_vae21.json")) == VAEConfig()
    shapes = recorded_shapes("keys_umt5_xxl_encoder.json")
    ours = {name: shapes[key] for key, name in model_keys("text_encoder", shapes, "").items()}
    assert text_config_from_shapes(ours) == TextEncoderConfig()
    with torch.device("meta"):
        sound_encoder = SoundEncoder(AudioEncoderConfig())
    assert audio_config_from_shapes(shapes_of(dict(sound_encoder.named_parameters()))) == AudioEncoderConfig()


def test_shapes_of_other_sizes():
    with torch.device("meta"):
        model = tiny.WanS2VTransformer(tiny.RELEASED)
    assert transformer_config_from_shapes(shapes_of(dict(model.named_parameters()))) == TransformerConfig(
        dim=128, ffn_dim=64, num_heads=1, text_dim=32, audio_dim=64
    )
    assert vae_config_from_shapes(shapes_of(tiny.vae_weights())) == tiny.VAE
    assert text_config_from_shapes(shapes_of(tiny.text_weights())) == tiny.TEXT
    assert audio_config_from_shapes(shapes_of(tiny.audio_weights())) == tiny.AUDIO


def test_base_wav2vec2_without_norms_is_told_apart():
    base = AudioEncoderConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=32, conv_dim=(8,) * 7,
        conv_bias=False, feat_extract_norm="group", do_stable_layer_norm=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = SoundEncoder(base)
    assert audio_config_from_shapes(shapes_of(dict(model.named_parameters()))) == base


def test_shapes_that_cannot_tell_ask_for_a_config():
    with pytest.raises(CheckpointError, match="config.json"):
        transformer_config_from_shapes(shapes_of(tiny.transformer_weights()))
    with pytest.raises(CheckpointError, match="conv2.weight is missing"):
        vae_config_from_shapes({k: v for k, v in shapes_of(tiny.vae_weights()).items() if k != "conv2.weight"})

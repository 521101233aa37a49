"""Write the bundled model's settings and the weights that are not trained yet, always the same ones.

    python scripts/make_bundled_model.py

The four models are the real classes at a small size. Training replaces their weights; the layout stays.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from s2v_core.config import AudioEncoderConfig, ModelConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.models.text_encoder import build_text_encoder
from s2v_core.models.vae import WanVAE

FOLDER = Path(__file__).parents[1] / "s2v_core" / "bundled"

AUDIO = AudioEncoderConfig(
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=192,
    conv_dim=(64,) * 7,
    feat_extract_norm="group",
    do_stable_layer_norm=False,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
TEXT = TextEncoderConfig(
    vocab_size=259, dim=64, attention_dim=64, ffn_dim=128, num_heads=4, num_layers=2, tokenizer="bytes"
)
CONFIG = ModelConfig(
    name="bundled",
    transformer=TransformerConfig(
        dim=128,
        ffn_dim=384,
        num_heads=4,
        num_layers=6,
        text_dim=TEXT.dim,
        text_len=128,
        audio_dim=AUDIO.hidden_size,
        num_audio_layers=AUDIO.num_hidden_layers + 1,
        audio_inject_layers=(0, 2, 4),
    ),
    vae=VAEConfig(dim=12),
    text_encoder=TEXT,
    audio_encoder=AUDIO,
    default_area=128 * 128,
    default_steps=12,
    default_shift=3.0,
    default_guidance=3.0,
    negative_prompt="",
)


TRAINED = ("audio_encoder",)   # by configs/bundled/sound.yaml; left alone here


def make_models() -> dict[str, nn.Module]:
    return {
        "transformer": WanS2VTransformer(CONFIG.transformer),
        "vae": WanVAE(CONFIG.vae),
        "text_encoder": build_text_encoder(CONFIG.text_encoder),
        "audio_encoder": SoundEncoder(CONFIG.audio_encoder),
    }


def main() -> None:
    torch.manual_seed(0)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "model.json").write_text(json.dumps(asdict(CONFIG), indent=2) + "\n", encoding="utf-8")
    for name, model in make_models().items():
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key.endswith(("modulation", "padding_tokens", "weights")):
                    parameter.normal_(mean=0.01, std=0.02)
        if name in TRAINED:
            continue
        save_file({k: v.bfloat16().contiguous() for k, v in model.state_dict().items()}, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()

"""Put the bundled model together: its settings, and the weights that the recipes in configs/bundled have made.

    python scripts/make_bundled_model.py --autoencoder runs/bundled/vae --student runs/bundled/stage2/export

The four models are the real classes at a small size. What is not named stays as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from s2v_core.checkpoints.official import read_model_config
from s2v_core.config import AudioEncoderConfig, ModelConfig, TextEncoderConfig, TransformerConfig, VAEConfig

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
TRANSFORMER = TransformerConfig(
    dim=128,
    ffn_dim=384,
    num_heads=4,
    num_layers=6,
    text_dim=TEXT.dim,
    text_len=128,
    audio_dim=AUDIO.hidden_size,
    num_audio_layers=AUDIO.num_hidden_layers + 1,
    audio_inject_layers=(0, 2, 4),
)


def settings(vae: VAEConfig) -> ModelConfig:
    return ModelConfig(
        name="bundled",
        transformer=TRANSFORMER,
        vae=vae,
        text_encoder=TEXT,
        audio_encoder=AUDIO,
        default_area=128 * 128,
        default_steps=8,
        default_shift=3.0,
        default_guidance=1.5,
        negative_prompt="",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--autoencoder", type=Path, help="folder of vae.safetensors and vae.json")
    parser.add_argument("--sound", type=Path, help="folder of audio_encoder.safetensors")
    parser.add_argument("--student", type=Path, help="folder of transformer.safetensors and text_encoder.safetensors")
    options = parser.parse_args()
    vae = read_model_config(FOLDER / "model.json").vae
    if options.autoencoder:
        stored = json.loads((options.autoencoder / "vae.json").read_text(encoding="utf-8"))
        vae = VAEConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})
    (FOLDER / "model.json").write_text(json.dumps(asdict(settings(vae)), indent=2) + "\n", encoding="utf-8")
    for folder, names in (
        (options.autoencoder, ("vae",)),
        (options.sound, ("audio_encoder",)),
        (options.student, ("transformer", "text_encoder")),
    ):
        for name in names if folder else ():
            shutil.copyfile(folder / f"{name}.safetensors", FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    main()

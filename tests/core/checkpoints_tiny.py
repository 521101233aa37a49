"""Tiny weight files in every published form, made on the spot.

Knows the forms; what is read back is the tests' matter.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from s2v_core.config import AudioEncoderConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.models.text_encoder import build_text_encoder
from s2v_core.models.vae import WanVAE

# Every matrix has rows of whole 32-blocks.
CONFIG = TransformerConfig(
    dim=64, ffn_dim=96, num_heads=2, num_layers=2, text_dim=32, text_len=8, audio_dim=32, audio_inject_layers=(1,)
)
# The released layout, which needs no config.json: 40 layers, 12 of which hear; heads of 128.
RELEASED = TransformerConfig(dim=128, ffn_dim=64, num_heads=1, text_dim=32, audio_dim=64)
VAE = VAEConfig(dim=4)
TEXT = TextEncoderConfig(vocab_size=300, dim=32, attention_dim=64, ffn_dim=64, num_heads=4, num_layers=2)
AUDIO = AudioEncoderConfig(
    hidden_size=64, num_attention_heads=1, intermediate_size=32, conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip

OFFICIAL = {
    "model_type": "s2v", "dim": 64, "ffn_dim": 96, "num_heads": 2, "num_layers": 2, "text_dim": 32, "text_len": 8,
    "audio_dim": 32, "audio_inject_layers": [1], "cond_dim": 16, "in_dim": 16, "out_dim": 16, "freq_dim": 256,
    "enable_adain": True, "adain_mode": "attn_norm", "zero_timestep": True, "enable_motioner": False,
    "enable_framepack": True, "framepack_drop_mode": "padd", "num_audio_token": 4, "eps": 1e-6,
}  # fmt: skip


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    g = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g) * 0.1
    return model.eval().requires_grad_(False)


def transformer(config: TransformerConfig = CONFIG, seed: int = 0) -> WanS2VTransformer:
    return randomised(WanS2VTransformer(config), seed)


def weights(model: torch.nn.Module, dtype: torch.dtype = torch.float32, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: tensor.detach().to(dtype).contiguous() for name, tensor in model.named_parameters()}


def transformer_weights(dtype: torch.dtype = torch.float32, prefix: str = "") -> dict[str, Tensor]:
    return weights(transformer(), dtype, prefix)


def vae_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return weights(randomised(WanVAE(VAE), 1), dtype)


def text_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """In transformers' spelling, as in single-file repackagings."""
    return weights(randomised(build_text_encoder(TEXT), 2), dtype)


def audio_weights(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return weights(randomised(SoundEncoder(AUDIO), 3), dtype)


def velocity(model: WanS2VTransformer) -> Tensor:
    """One forward, the same each time."""
    g = torch.Generator().manual_seed(5)
    grid = (2, 8, 8)
    with torch.no_grad():
        clip = model.prepare_clip(
            prompt=model.prepare_prompt(torch.randn(1, 3, CONFIG.text_dim, generator=g)),
            num_latents=grid[0],
            reference_latent=torch.randn(1, 16, 1, *grid[1:], generator=g),
            audio_features=torch.randn(1, 25, CONFIG.audio_dim, 4 * grid[0], generator=g),
            motion_latents=torch.randn(1, 16, 19, *grid[1:], generator=g),
            pose_latents=torch.randn(1, 16, *grid, generator=g),
        )
        return model(torch.randn(1, 16, *grid, generator=g), torch.tensor([700.0]), clip)


# ---- forms of file ---------------------------------------------------------------------------------------------------


def is_matrix(name: str, tensor: Tensor) -> bool:
    rows_hold_blocks = tensor.dim() == 2 and tensor.shape[1] % 32 == 0
    return name.endswith(".weight") and rows_hold_blocks and "trainable_cond_mask" not in name


def save_fp8_scaled(path: Path, tensors: dict[str, Tensor], *, spelling: str = "scale_weight") -> dict[str, Tensor]:
    """As ComfyUI repackages: each matrix as fp8 and a scale. Returns the numbers that the file stands for."""
    stored, meant = {}, {}
    for name, tensor in tensors.items():
        if not is_matrix(name, tensor):
            stored[name] = meant[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        layer = name.removesuffix(".weight")
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[f"{layer}.{spelling}"] = scale
        if spelling == "scale_weight":
            stored[f"{layer}.scale_input"] = torch.ones(())
        else:
            note = json.dumps({"format": "float8_e4m3fn"}).encode()
            stored[f"{layer}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
        meant[name] = stored[name].float() * scale
    if spelling == "scale_weight":
        stored["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    save_file(stored, path)
    return meant


def save_gguf(path: Path, tensors: dict[str, Tensor], matrices: str = "Q8_0") -> dict[str, Tensor]:
    """As GGUF repackagers do: matrices quantised, convs F16 with their 5 axes noted, the rest F32."""
    writer = gguf.GGUFWriter(path, "wan")
    meant = {}
    for name, tensor in tensors.items():
        array = tensor.float().numpy()
        if is_matrix(name, tensor):
            kind = gguf.GGMLQuantizationType[matrices]
            packed = gguf.quants.quantize(array, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        elif tensor.dim() == 5:
            half = array.astype(np.float16)
            writer.add_tensor(name, half.reshape(half.shape[0], -1))
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(half.shape))
            meant[name] = torch.from_numpy(half).float()
        else:
            writer.add_tensor(name, array)
            meant[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def save_sharded(folder: Path, tensors: dict[str, Tensor], count: int = 3) -> Path:
    """Shards and their index; returns the index."""
    stem = "diffusion_pytorch_model"
    names = list(tensors)
    places = {}
    for i in range(count):
        shard = f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = names[i::count]
        save_file({name: tensors[name] for name in part}, folder / shard)
        places |= dict.fromkeys(part, shard)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index

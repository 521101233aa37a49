"""The reference implementation's transformer on a CPU, to be run beside ours with equal weights.

Knows a checkout of github.com/Wan-Video/Wan2.2 and its own demands (diffusers, einops); not our model.

It is written for CUDA: attention needs FlashAttention, precision comes from nested CUDA autocasts. On a CPU, attention
is torch's SDPA with the same casts around it, and the autocasts are a CPU's: what CUDA would compute in float32 from
bf16 weights is computed in float32 from the same numbers.
"""

from __future__ import annotations

import importlib
import sys
import types
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2v_core.config import TransformerConfig

FLOAT32_PARTS = ("time_embedding", "time_projection", "head", "casual_audio_encoder")
PACKAGES = ("wan", "wan.modules", "wan.modules.s2v", "wan.distributed", "wan.utils")


def load_modules(checkout: Path) -> types.ModuleType:
    """The module of the reference's transformer, without the packages around it, which import much more."""
    if not (checkout / "wan/modules/s2v/model_s2v.py").is_file():
        raise SystemExit(f"{checkout} is not a checkout of Wan2.2: it has no wan/modules/s2v/model_s2v.py")
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    modules = [importlib.import_module(f"wan.modules.{name}") for name in ("attention", "model", "s2v.model_s2v")]
    for module in modules:
        module.flash_attention = sdpa
    transformer = modules[-1]
    for module in (transformer, importlib.import_module("wan.modules.s2v.audio_utils")):
        module.amp = types.SimpleNamespace(autocast=in_float32)
    return transformer


def in_float32(*, dtype: torch.dtype = torch.float32) -> AbstractContextManager:
    return torch.autocast("cpu", enabled=False)


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
    """[B, N, heads, head_dim] each; computed in v's dtype, returned in q's. All key lengths are full here."""
    given = q.dtype
    q, k, v = (x.to(v.dtype).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).to(given)


def make_reference(checkout: Path, config: TransformerConfig, weights: dict[str, Tensor]) -> nn.Module:
    """The reference's transformer with our weights."""
    model = load_modules(checkout).WanModel_S2V(
        cond_dim=config.pose_channels,
        audio_dim=config.audio_dim,
        num_audio_token=config.num_audio_tokens,
        enable_adain=config.use_adain,
        adain_mode="attn_norm",
        audio_inject_layers=list(config.audio_inject_layers),
        zero_timestep=config.zero_timestep,
        enable_motioner=False,
        enable_framepack=True,
        framepack_drop_mode=config.motion_drop_mode,
        text_len=config.text_len,
        in_dim=config.in_channels,
        out_dim=config.out_channels,
        dim=config.dim,
        ffn_dim=config.ffn_dim,
        freq_dim=config.freq_dim,
        text_dim=config.text_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        qk_norm=config.qk_norm,
        cross_attn_norm=config.cross_attn_norm,
        eps=config.eps,
    )
    model = model.eval().requires_grad_(False).to(weights["patch_embedding.weight"].dtype)
    model.load_state_dict(weights)
    for name in FLOAT32_PARTS:
        getattr(model, name).float()
    for block in model.blocks:
        block.norm3.float()
    return model


def reference_velocity(
    model: nn.Module, inputs: dict[str, Tensor], timestep: Tensor, *, prompt: Tensor, audio_gain: float
) -> Tensor:
    """One forward of the reference: [1, 16, T, h, w] float32.

    Args:
        inputs: latents, reference_latent, motion_latents and audio_features, each with a batch of one.
        prompt: [1, L, text_dim].
        audio_gain: what the sound is multiplied by; 0 in the guidance's other branch.
    """
    dtype = model.patch_embedding.weight.dtype
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = model(
            [inputs["latents"][0].to(dtype)],
            t=timestep,
            context=[prompt[0].to(dtype)],
            seq_len=0,
            ref_latents=[inputs["reference_latent"][0].to(dtype)],
            motion_latents=[inputs["motion_latents"][0].to(dtype)],
            cond_states=[torch.zeros_like(inputs["latents"][0], dtype=dtype)],
            audio_input=inputs["audio_features"].to(dtype) * audio_gain,
            motion_frames=[73, 19],
        )
    return out[0][None]

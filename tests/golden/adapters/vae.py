"""The video autoencoder: kinds vae_encode, vae_decode and their stages."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from s2v_core.checkpoints.keymaps import vae_config_from_official
from s2v_core.models.vae import Decoder, Encoder, WanVAE
from s2v_core.models.vae_layers import Carry, Frames

from ..case import Case

STAGES = {"downsamples": "down", "middle": "mid", "upsamples": "up"}   # our attributes, the recorded names


def load_vae(case: Case, *, normalised: bool = True) -> WanVAE:
    """The case's model; with `normalised=False` its latents pass unscaled."""
    config = vae_config_from_official(case.config)
    if "in.scale_mean" in case.tensors:
        scales = case.tensors["in.scale_mean"], case.tensors["in.scale_std"]
        config = replace(config, latent_mean=tuple(scales[0].tolist()), latent_std=tuple(scales[1].tolist()))
    if not normalised:
        zeros, ones = (0.0,) * config.latent_channels, (1.0,) * config.latent_channels
        config = replace(config, latent_mean=zeros, latent_std=ones)
    vae = WanVAE(config)
    vae.load_state_dict(case.weights[0])
    return vae


def recorded(case: Case, found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in found.items() if name in case.tensors}


def video_of(case: Case) -> Tensor:
    """[1, 3, F, H, W] in [-1, 1]."""
    if "in.video_u8" in case.tensors:
        return case.tensors["in.video_u8"][None] / 127.5 - 1
    return case.tensors["in.video"][None]


def decode_unclamped(vae: WanVAE, latents: Tensor) -> Tensor:
    """[C, T, h, w] -> [3, F, H, W]."""
    carry = Carry()
    frames = [frame for latent in latents[None].unbind(2) for frame in vae.decoder.step(latent, carry)]
    return torch.stack(frames, 2)[0]


def record_stages(part: Encoder | Decoder, prefix: str) -> dict[str, Tensor]:
    """What every block of `part` gives from now on: `prefix.conv1#i`, `prefix.down0#i` and so on, i the step."""
    seen: dict[str, Tensor] = {}
    steps: Counter[str] = Counter()

    def watch(module: torch.nn.Module, name: str) -> None:
        def keep(_module: torch.nn.Module, _inputs: tuple, frames: Frames) -> None:
            seen[f"{prefix}.{name}#{steps[name]}"] = torch.stack(frames, 2)
            steps[name] += 1

        module.register_forward_hook(keep)

    watch(part.conv1, "conv1")
    for attribute, stage in STAGES.items():
        for i, block in enumerate(getattr(part, attribute, ())):
            watch(block, f"{stage}{i}")
    return seen


def vae_encode(case: Case) -> dict[str, Tensor]:
    video = video_of(case)
    found = {}
    for stem, vae in (("out.mu", load_vae(case)), ("out.mu_raw", load_vae(case, normalised=False))):
        for name in case.tensors:
            if name == stem:
                found[name] = vae.encode(video)[0]
            elif name.startswith(f"{stem}#"):
                found[name] = vae.encode(video[:, :, : int(name.partition("#")[2])])[0]
    return found


def vae_decode(case: Case) -> dict[str, Tensor]:
    vae, latents = load_vae(case), case.tensors["in.latents"]
    video = torch.cat(list(vae.decoder().decode(latents[None])), 2)[0]
    return recorded(case, {"out.video": video, "out.video_raw": decode_unclamped(vae, latents)})


def vae_encode_stages(case: Case) -> dict[str, Tensor]:
    vae = load_vae(case)
    seen = record_stages(vae.encoder, "mid.enc")
    return recorded(case, {"out.mu": vae.encode(video_of(case))[0], **seen})


def vae_decode_stages(case: Case) -> dict[str, Tensor]:
    vae = load_vae(case)
    seen = record_stages(vae.decoder, "mid.dec")
    raw = decode_unclamped(vae, case.tensors["in.latents"])
    return recorded(case, {"out.video_raw": raw, "out.video": raw.clamp(-1, 1), **seen})


KINDS = {
    "vae_encode": vae_encode,
    "vae_decode": vae_decode,
    "vae_encode_stages": vae_encode_stages,
    "vae_decode_stages": vae_decode_stages,
}

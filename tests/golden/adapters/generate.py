"""The reference's whole loop over clips: kind generate.

Sound features, noise and prompt rows are the recorded ones; reference and pose pixels are made from the recorded
pictures by the reference's own rule, which is written out here and is not ours.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from s2v_core.checkpoints.keymaps import vae_config_from_official
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.geometry import VideoSize
from s2v_core.models.vae import WanVAE
from s2v_core.types import ClipInputs, ClipPlan, ClipSettings, Conditioning, SamplerSettings, StepCallback
from s2v_core.video.generate import generate_clips
from s2v_core.video.memory import memory_from_image

from ..case import Case
from .transformer import recorded, transformer


class Recorded:
    """Something recorded per frame along one axis, handed out as features and pose frames are asked for."""

    def __init__(self, values: Tensor, axis: int) -> None:
        self.values = values
        self.axis = axis

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        return self.values.narrow(self.axis, start_frame, stop_frame - start_frame)


class Listening:
    """A denoiser, and what it was given."""

    def __init__(self, denoiser: TransformerDenoiser) -> None:
        self.denoiser = denoiser
        self.inputs: list[ClipInputs] = []

    def __call__(self, inputs: ClipInputs, noise: Tensor, on_step: StepCallback) -> Tensor:
        self.inputs.append(inputs)
        return self.denoiser(inputs, noise, on_step)


def reference_plans(num_clips: int, settings: ClipSettings, *, seed: int, has_past: bool) -> tuple[ClipPlan, ...]:
    """The reference's timing: clip r hears audio frames r*n to (r+1)*n, and a first clip without a past loses its
    warm-up frames all the same."""
    return tuple(
        ClipPlan(
            index=r,
            start_frame=r * settings.frames,
            stop_frame=(r + 1) * settings.frames,
            seed=seed + r,
            uses_motion=has_past or r > 0,
            trim_start=0 if has_past or r > 0 else settings.warmup_frames,
        )
        for r in range(num_clips)
    )


def reference_frames(picture: Tensor, size: VideoSize) -> Tensor:
    """[h, w, 3] uint8 -> [1, 3, 1, H, W]: scaled as a picture of bytes, cropped, black where it does not reach."""
    image = Image.fromarray(picture.numpy())
    image = image.resize(scaled_size(image.width, image.height, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (centre_crop(pixels, size) * 2 - 1)[None, :, None]


def pose_frames(pictures: Tensor, fps: float, num_frames: int, size: VideoSize) -> Tensor:
    """[N, h, w, 3] uint8 -> [1, 3, num_frames, H, W]: every k-th frame, scaled as floats; -1 past the last."""
    settings = ClipSettings()
    pictures = pictures[:: max(1, round(fps / settings.fps))][:num_frames]
    width, height = scaled_size(pictures.shape[2], pictures.shape[1], size)
    frames = pictures.permute(0, 3, 1, 2) / 255 * 2 - 1
    frames = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False, antialias=True)
    frames = centre_crop(frames, size).transpose(0, 1)[None]
    return F.pad(frames, (0, 0, 0, 0, 0, num_frames - frames.shape[2]), value=-1.0)


def scaled_size(width: int, height: int, size: VideoSize) -> tuple[int, int]:
    """The short side becomes the frame's short side."""
    short, scaled = min(width, height), min(size.width, size.height)
    return (scaled, int(scaled * height / short)) if width <= height else (int(scaled * width / short), scaled)


def centre_crop(pixels: Tensor, size: VideoSize) -> Tensor:
    """The middle of [..., h, w]; zeros where it does not reach."""
    height, width = pixels.shape[-2:]
    missing_w, missing_h = max(0, size.width - width), max(0, size.height - height)
    pixels = F.pad(pixels, (missing_w // 2, (missing_w + 1) // 2, missing_h // 2, (missing_h + 1) // 2))
    top, left = round((pixels.shape[-2] - size.height) / 2), round((pixels.shape[-1] - size.width) / 2)
    return pixels[..., top : top + size.height, left : left + size.width]


def load_vae(case: Case) -> WanVAE:
    vae = WanVAE(vae_config_from_official(case.config["vae"])).eval()
    vae.load_state_dict(case.weights[1])
    return vae


def read_conditioning(case: Case, vae: WanVAE, settings: ClipSettings) -> Conditioning:
    tensors, args = case.tensors, case.args
    height, width = args["gen_size"]
    size = VideoSize(width=width, height=height)
    reference = reference_frames(tensors["in.image"], size)
    pose = None
    if "in.pose_frames" in tensors:
        num_frames = args["clips"] * settings.frames
        pose = Recorded(pose_frames(tensors["in.pose_frames"], args["pose_fps"], num_frames, size), axis=2)
    return Conditioning(
        size=size,
        prompt_embeds=tensors["in.context"][None],
        negative_prompt_embeds=tensors["in.context_null"][None],
        reference_frames=reference,
        reference_latent=vae.encode(reference),
        audio=Recorded(tensors["mid.audio_emb"][None], axis=3),
        pose=pose,
    )


def thinned(pixels: Tensor, like: Tensor | None) -> Tensor:
    """Every k-th pixel, as many as the record has."""
    k = 1 if like is None else pixels.shape[-1] // like.shape[-1]
    return pixels[..., ::k, ::k]


def generate(case: Case) -> dict[str, Tensor]:
    args, tensors = case.args, case.tensors
    settings = ClipSettings(frames=args["infer_frames"])
    vae = load_vae(case)
    conditioning = read_conditioning(case, vae, settings)
    sampler = SamplerSettings(
        steps=args["steps"],
        shift=args["shift"],
        guidance_scale=max(1.0, args["guide_scale"]),   # the reference guides above 1 only
        solver=args["solver"],
    )
    denoiser = Listening(TransformerDenoiser(transformer(case), sampler, audio_prefix_frames=settings.motion_frames))
    plans = reference_plans(args["clips"], settings, seed=args["base_seed"], has_past=args["init_first_frame"])
    clips = list(
        generate_clips(
            plans, conditioning, denoiser, vae, settings,
            on_step=lambda done, total: None,
            noise=lambda plan, shape: tensors[f"in.noise#{plan.index}"][None],
        )  # fmt: skip
    )
    video = torch.cat([clip.frames for clip in clips], dim=2)[0]   # [3, F, H, W]
    seen = {
        "mid.ref_pixels": thinned(conditioning.reference_frames[0], tensors.get("mid.ref_pixels")),
        "mid.ref_latents": conditioning.reference_latent[0],
    }
    if "mid.motion_pixels_init_tail" in tensors:
        tail = tensors["mid.motion_pixels_init_tail"]
        window = memory_from_image(conditioning.reference_frames, settings.motion_frames).frames[0]
        seen["mid.motion_pixels_init_tail"] = thinned(window[:, -tail.shape[1] :], tail)
    for r, (clip, inputs) in enumerate(zip(clips, denoiser.inputs, strict=True)):
        seen[f"mid.window_means#{r}"] = clip.memory.frames[0].mean((0, 2, 3))
        if inputs.motion_latents is not None:
            seen[f"mid.motion_latents#{r}"] = inputs.motion_latents[0]
        if inputs.pose_latents is not None:
            seen[f"mid.pose_latents#{r}"] = inputs.pose_latents[0]
    return recorded(case, seen) | {
        "out.video_sub": video[..., :: args["sub"], :: args["sub"]],
        "out.frame_mean": video.mean((0, 2, 3)),
        "out.frame_absmean": video.abs().mean((0, 2, 3)),
    }


KINDS = {"generate": generate}

"""The training objective: what is drawn for a batch, and what the model's velocity then costs.

Knows tensors and a model; not where batches come from, nor what is done with gradients.
B batch, T latent frames, h w latent cells, L prompt tokens, F frames (4T).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from ..models.dit import WanS2VTransformer
from ..sampling.sigmas import NUM_TRAIN_TIMESTEPS, shift_sigmas
from .config import ObjectiveConfig

MOTION_NOISE = (0.93, 3.79)   # Beta distribution of the noise's std
NEWEST = 3                    # latent frames in the near and the middle motion bucket


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Clips to learn from, all first clips (no motion latents) or all with a past."""

    latents: Tensor                      # [B, 16, T, h, w] clean
    reference_latent: Tensor             # [B, 16, 1, h, w]
    audio_features: Tensor               # [B, layers, C, 4T]; with speakers, what is heard outside their masks
    prompts: tuple[str, ...]
    prompt_embeds: Tensor | None = None      # [B, L, D], zero rows after the last token; None: `prompts` tell
    motion_latents: Tensor | None = None     # [B, 16, Tm, h, w]
    pose_latents: Tensor | None = None       # [B, 16, T, h, w]
    face_mask: Tensor | None = None          # [B, T, h, w], how much of the cell is face, 0..1
    mouth_mask: Tensor | None = None         # [B, T, h, w]
    speaker_features: Tensor | None = None   # [B, S, layers, C, 4T]
    speaker_masks: Tensor | None = None      # [B, S, T, h, w] 0..1

    def with_embeds(self, prompt_embeds: Tensor) -> Batch:
        return replace(self, prompt_embeds=prompt_embeds)

    def to(self, device: torch.device | str) -> Batch:
        here = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: v.to(device, non_blocking=True) for n, v in here.items() if isinstance(v, Tensor)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Everything random about one batch in one step."""

    sigmas: Tensor                 # [B] float32 in (0, 1)
    noise: Tensor                  # [B, 16, T, h, w]
    drops_prompt: Tensor           # [B] bool
    drops_sound: Tensor            # [B] bool
    drops_reference: Tensor        # [B] bool
    num_near: int = 2              # of the near motion buckets, 0..2
    keeps_far: bool = True         # the far motion bucket
    motion_noise: Tensor | None = None   # [B, 16, Tm, h, w], scaled; added to the motion latents


def draw(batch: Batch, config: ObjectiveConfig, rng: np.random.Generator) -> Draw:
    """Draw a step's randomness on the CPU, so that it is the same on every device.

    Args:
        rng: of this step; ranks that share a sample hand in equal ones.
    """
    size = batch.latents.shape[0]
    both = rng.random(size) < config.drop_both
    motion = batch.motion_latents
    return Draw(
        sigmas=draw_sigmas(size, config, rng),
        noise=_gaussian(batch.latents, rng),
        drops_prompt=torch.from_numpy(both | (rng.random(size) < config.drop_prompt)),
        drops_sound=torch.from_numpy(both | (rng.random(size) < config.drop_sound)),
        drops_reference=torch.from_numpy(rng.random(size) < config.drop_reference),
        num_near=int(rng.integers(0, 2)) if rng.random() < config.drop_near else 2,
        keeps_far=bool(rng.random() >= config.drop_far),
        motion_noise=None if motion is None or not config.motion_noise else _motion_noise(motion, rng),
    )


def draw_sigmas(num: int, config: ObjectiveConfig, rng: np.random.Generator) -> Tensor:
    """[num] float32 noise levels: logit-normal or uniform, then shifted.

    Source: Esser et al., arXiv 2403.03206, section 3.1 and eq. 23.
    """
    if config.sigma_sampling == "uniform":
        levels = rng.random(num)
    else:
        levels = 1 / (1 + np.exp(-(config.sigma_mean + config.sigma_std * rng.standard_normal(num))))
    return torch.tensor(shift_sigmas(levels.tolist(), config.shift), dtype=torch.float32)


def _gaussian(like: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)).to(like)


def _motion_noise(motion: Tensor, rng: np.random.Generator) -> Tensor:
    std = torch.from_numpy(rng.beta(*MOTION_NOISE, motion.shape[0])).to(motion).view(-1, 1, 1, 1, 1)
    return std * _gaussian(motion, rng)


def mix(clean: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """`sigma * noise + (1 - sigma) * clean`, sigmas [B]."""
    sigma = sigmas.to(clean).view(-1, 1, 1, 1, 1)
    return sigma * noise + (1 - sigma) * clean


def predict_velocity(model: WanS2VTransformer, batch: Batch, drawn: Draw, negative_embeds: Tensor) -> Tensor:
    """The model's velocity of the noised batch, what was drawn to be dropped left out: [B, 16, T, h, w].

    Args:
        negative_embeds: [1, L, D], in place of prompts that are dropped.
    """
    assert batch.prompt_embeds is not None, "prompts are encoded before the objective"
    device = batch.latents.device
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(swap_prompts(batch.prompt_embeds, negative_embeds, drawn.drops_prompt.to(device))),
        num_latents=batch.latents.shape[2],
        reference_latent=_blank(batch.reference_latent, drawn.drops_reference),
        audio_features=_blank(batch.audio_features, drawn.drops_sound),
        speaker_features=_blank(batch.speaker_features, drawn.drops_sound),
        speaker_masks=batch.speaker_masks,
        motion_latents=_seen_motion(batch.motion_latents, drawn),
        pose_latents=batch.pose_latents,
        num_near=drawn.num_near,
    )
    noisy = mix(batch.latents, drawn.noise.to(device), drawn.sigmas)
    return model(noisy, NUM_TRAIN_TIMESTEPS * drawn.sigmas.to(device), clip)


def swap_prompts(embeds: Tensor, negative: Tensor, dropped: Tensor) -> Tensor:
    """[B, L, D] prompts, those of `dropped` [B] replaced by `negative` [1, L', D]; zero rows fill up."""
    rows = max(embeds.shape[1], negative.shape[1])
    embeds, negative = (torch.nn.functional.pad(x, (0, 0, 0, rows - x.shape[1])) for x in (embeds, negative))
    return torch.where(dropped.view(-1, 1, 1), negative, embeds)


def _blank(x: Tensor | None, dropped: Tensor) -> Tensor | None:
    """Zeros where a sample is dropped."""
    return None if x is None else x * (~dropped).to(x).view(-1, *(1,) * (x.ndim - 1))


def _seen_motion(motion: Tensor | None, drawn: Draw) -> Tensor | None:
    if motion is None:
        return None
    if drawn.motion_noise is not None:
        motion = motion + drawn.motion_noise.to(motion)
    return motion if drawn.keeps_far else motion[:, :, -NEWEST:]


def velocity_loss(velocity: Tensor, batch: Batch, drawn: Draw, config: ObjectiveConfig) -> Tensor:
    """The weighted mean squared error against `noise - clean`, and the mouth box's own mean on top.

    A cell weighs 1, and more by how much of it is face and mouth; the mean is over weights, so that a window with a
    large face does not count for more than another.
    """
    target = drawn.noise.to(batch.latents) - batch.latents
    error = (velocity - target).square().mean(1)             # [B, T, h, w]
    weight = torch.ones_like(error)
    for mask, at_full in ((batch.face_mask, config.face_weight), (batch.mouth_mask, config.mouth_weight)):
        if mask is not None:
            weight = weight * (1 + (at_full - 1) * mask)
    loss = (weight * error).sum() / weight.sum()
    if config.mouth_loss and batch.mouth_mask is not None:
        mouth = batch.mouth_mask.to(error)
        loss = loss + config.mouth_loss * (mouth * error).sum() / mouth.sum().clamp(min=1)
    return loss

"""A small real codec and denoiser for tests of the clip loop: same shapes, strides and causality as the large ones.

Every decoded frame depends on its own latent frame and the two before it in the stream, so a wrong stream shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import avg_pool3d, interpolate

from s2v_core.geometry import VideoSize
from s2v_core.sampling.denoise import denoise
from s2v_core.sampling.sigmas import make_schedule
from s2v_core.sampling.solvers import SOLVER_STEPS
from s2v_core.types import Conditioning

SIZE = VideoSize(width=64, height=80)
CHANNELS = 16
TO_LATENT = torch.randn(CHANNELS, 3, generator=torch.Generator().manual_seed(3))
TO_PIXEL = torch.randn(3, CHANNELS, generator=torch.Generator().manual_seed(4)) / 4
PHASES = torch.tensor([0.7, 0.8, 0.9, 1.0])   # the four frames of a latent frame differ
REACH = 3                                     # latent frames that a decoded frame depends on


class TinyDecoder:
    def __init__(self):
        self.past = torch.zeros(0)

    def decode(self, latents):
        for latent in latents.split(1, dim=2):
            first = not self.past.numel()
            past = torch.zeros_like(latent).repeat(1, 1, 2, 1, 1) if first else self.past
            self.past = torch.cat([past, latent], dim=2)[:, :, -REACH:]
            mixed = (self.past * torch.tensor([0.2, 0.3, 0.5]).view(1, 1, 3, 1, 1)).sum(2, keepdim=True)
            pixels = interpolate(torch.einsum("pc,bcthw->bpthw", TO_PIXEL, mixed), scale_factor=(1, 8, 8))
            yield (pixels * (PHASES[-1:] if first else PHASES).view(1, 1, -1, 1, 1)).clamp(-1, 1)

    def prime(self, latents):
        for _ in self.decode(latents):
            pass


@dataclass
class TinyCodec:
    """Counts what it is asked to do."""

    encoded: list[int] = field(default_factory=list)   # frames of each encode
    streams: int = 0

    def encode(self, frames):
        self.encoded.append(frames.shape[2])
        held = torch.cat([frames[:, :, :1].expand(-1, -1, 3, -1, -1), frames], dim=2)
        return torch.einsum("cp,bpthw->bcthw", TO_LATENT, avg_pool3d(held, (4, 8, 8)))

    def decoder(self):
        self.streams += 1
        return TinyDecoder()


@dataclass
class TinyDenoiser:
    """A real walk over three steps of an analytic model that listens to everything in its inputs."""

    steps: int = 3
    seen: list = field(default_factory=list)

    def __call__(self, inputs, noise, on_step):
        self.seen.append(inputs)
        sound = inputs.audio_features.mean((1, 2)).unflatten(1, (-1, 4)).mean(2).view(1, 1, -1, 1, 1)
        steer = sound + inputs.prompt_embeds.mean() + inputs.reference_latent
        if inputs.motion_latents is not None:
            steer = steer + inputs.motion_latents[:, :, -1:] + 0.1 * inputs.motion_latents.mean(2, keepdim=True)
        if inputs.pose_latents is not None:
            steer = steer + inputs.pose_latents
        schedule = make_schedule("unipc", self.steps, 3.0)
        return denoise(lambda x, t: x - torch.tanh(steer) * t / 1000, noise, schedule, SOLVER_STEPS["unipc"], on_step)


@dataclass
class FrameFeatures:
    """Features whose value is the number of the frame."""

    asked: list = field(default_factory=list)

    def window(self, start_frame, stop_frame):
        self.asked.append((start_frame, stop_frame))
        return torch.arange(start_frame, stop_frame).float().div(100).expand(1, 3, 5, -1)


@dataclass
class FramePoses:
    """A pose video whose frame k is k/1000 everywhere."""

    asked: list = field(default_factory=list)

    def window(self, start_frame, stop_frame):
        self.asked.append((start_frame, stop_frame))
        values = torch.arange(start_frame, stop_frame).float().div(1000).view(1, 1, -1, 1, 1)
        return values.expand(1, 3, -1, SIZE.height, SIZE.width)


def tiny_conditioning(codec, *, pose=None):
    picture = torch.linspace(-0.5, 0.5, SIZE.height * SIZE.width).view(1, 1, 1, SIZE.height, SIZE.width)
    reference_frames = picture.repeat(1, 3, 1, 1, 1)
    return Conditioning(
        size=SIZE,
        prompt_embeds=torch.full((1, 2, 4), 0.1),
        negative_prompt_embeds=torch.zeros(1, 1, 4),
        reference_frames=reference_frames,
        reference_latent=codec.encode(reference_frames),
        audio=FrameFeatures(),
        pose=pose,
    )

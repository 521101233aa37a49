"""Our denoiser: the transformer, guidance and a solver behind the clip loop's Denoiser protocol.

Knows models and sampling, which do not know each other; not where clips come from or go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .models.dit import ClipContext, PromptContext, TimeContext, WanS2VTransformer
from .sampling.caching import StepCache
from .sampling.denoise import Velocity, denoise
from .sampling.guidance import (
    UNGUIDED,
    Branch,
    Combine,
    Guidance,
    ProjectedGuidance,
    guide,
    guided_steps,
    plan_guidance,
)
from .sampling.sigmas import Schedule, make_schedule
from .sampling.solvers import SOLVER_STEPS
from .types import ClipInputs, SamplerSettings, StepCallback


def num_evaluations(settings: SamplerSettings) -> list[int]:
    """Of each step of a clip; a step cache may spare some."""
    branches = len(plan_guidance(*settings.scales()).branches)
    sigmas = make_schedule(settings.solver, settings.steps, settings.shift).sigmas.tolist()
    return [branches if guided else 1 for guided in guided_steps(sigmas, settings.guidance_interval)]


class TransformerDenoiser:
    """Noise to latents with classifier-free guidance over prompt and sound, together or each with its own scale.

    A branch without the prompt takes the negative prompt, one without the sound zero audio features; pose, reference
    and motion are the same in all. Prompt and timesteps are prepared once and serve every clip.

    Args:
        model: the transformer, where it is to run.
        settings: schedule, solver, guidance scales (1: one evaluation a step).
        device: where latents are denoised.
        batch_branches: all branches in one pass (faster where it fits), or one after the other.
    """

    def __init__(
        self,
        model: WanS2VTransformer,
        settings: SamplerSettings,
        *,
        device: torch.device | str = "cpu",
        batch_branches: bool = False,
        audio_prefix_frames: int = 73,
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = torch.device(device)
        self.batch_branches = batch_branches
        self.audio_prefix_frames = audio_prefix_frames
        self.schedule: Schedule = make_schedule(settings.solver, settings.steps, settings.shift)
        self._prompts: list[tuple[Tensor, PromptContext]] = []
        self._times: dict[float, TimeContext] | None = None

    @torch.no_grad()
    def __call__(self, inputs: ClipInputs, noise: Tensor, on_step: StepCallback) -> Tensor:
        """[1, 16, T, h, w] noise -> denoised latents, float32, on the denoiser's device."""
        guidance = plan_guidance(*self.settings.scales(inputs.guidance_scale))
        clips = self._prepare(inputs, guidance.branches, noise.shape[2])
        velocity, step = self._walk(clips, guidance, inputs.pose_steps), SOLVER_STEPS[self.settings.solver]
        source = None if inputs.source is None else inputs.source.to(self.device)
        return denoise(velocity, noise.to(self.device), self.schedule, step, on_step, source)

    def _prepare(self, inputs: ClipInputs, branches: Sequence[Branch], num_latents: int) -> list[ClipContext]:
        """A clip for every branch; they differ in prompt and sound alone."""

        def here(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self.device)

        heard = [self._heard(inputs, branch) for branch in branches]
        first = self.model.prepare_clip(
            num_latents=num_latents,
            reference_latent=here(inputs.reference_latent),
            motion_latents=here(inputs.motion_latents),
            pose_latents=here(inputs.pose_latents),
            **heard[0],
        )
        return [first, *(self.model.with_other(first, **other) for other in heard[1:])]

    def _heard(self, inputs: ClipInputs, branch: Branch) -> dict[str, Any]:
        """Prompt and sound of a branch, as `prepare_clip` takes them."""
        features = inputs.audio_features if branch.sound else torch.zeros_like(inputs.audio_features)
        speakers = inputs.speaker_features if branch.sound else None
        masks = inputs.speaker_masks
        return {
            "prompt": self._prompt(inputs.prompt_embeds if branch.prompt else inputs.negative_prompt_embeds),
            "audio_features": features.to(self.device),
            "speaker_features": None if speakers is None else speakers.to(self.device),
            "speaker_masks": None if masks is None else masks.to(self.device),
            "audio_prefix_frames": self.audio_prefix_frames,
        }

    def _prompt(self, prompt_embeds: Tensor) -> PromptContext:
        """Prepared once per prompt: the two of a video are kept."""
        for known, context in self._prompts:
            if known is prompt_embeds:
                return context
        context = self.model.prepare_prompt(prompt_embeds.to(self.device))
        self._prompts = [*self._prompts[-1:], (prompt_embeds, context)]
        return context

    def _walk(self, clips: list[ClipContext], guidance: Guidance, pose_steps: int | None) -> Velocity:
        """(latents, timestep) -> velocity, guided in the steps that are to be, and posed in the first `pose_steps`."""
        sigmas, timesteps = self.schedule.sigmas.tolist(), self.schedule.timesteps.tolist()
        guided = guided_steps(sigmas, self.settings.guidance_interval)
        posed = [pose_steps is None or i < pose_steps for i in range(len(timesteps))]
        combine: Combine = ProjectedGuidance() if self.settings.apg else guide
        free = clips if all(posed) else self.model.without_pose(clips)
        told = list(zip(posed, guided, strict=True))
        ways = {
            (here, strict): self._velocity(clips if here else free, guidance if strict else UNGUIDED, combine)
            for here, strict in set(told)
        }
        steps = {t: (sigmas[i], told[i]) for i, t in enumerate(timesteps)}
        cache = StepCache(self.settings.step_cache, sigmas) if self.settings.step_cache else None

        def velocity(latents: Tensor, timestep: float) -> Tensor:
            sigma, way = steps[timestep]
            if cache is None:
                return ways[way](latents, timestep)
            return cache.velocity(sigma, way, lambda: ways[way](latents, timestep))

        return velocity

    def _velocity(self, clips: list[ClipContext], guidance: Guidance, combine: Combine) -> Velocity:
        """(latents, timestep) -> guided velocity."""
        times, clips = self._prepared_times(), clips[: len(guidance.branches)]
        joined = clips[0].joined(*clips[1:]) if self.batch_branches and len(clips) > 1 else None

        def velocity(latents: Tensor, timestep: float) -> Tensor:
            if joined is None:
                found = list(self.model.branches(latents, times[timestep], clips))
            else:
                found = list(self.model(latents, times[timestep], joined).split(1))
            return combine(found, guidance.scales)

        return velocity

    def _prepared_times(self) -> dict[float, TimeContext]:
        if self._times is None:
            timesteps = self.schedule.timesteps
            there = timesteps.to(self.device)
            self._times = {t: self.model.embed_time(there[i, None]) for i, t in enumerate(timesteps.tolist())}
        return self._times

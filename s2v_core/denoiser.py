"""Our denoiser: the transformer, guidance and a solver behind the clip loop's Denoiser protocol.

Knows models and sampling, which do not know each other; not where clips come from or go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .models.dit import ClipContext, PromptContext, TimeContext, WanS2VTransformer
from .sampling.denoise import denoise
from .sampling.guidance import Branch, Combine, Guidance, ProjectedGuidance, guide, plan_guidance
from .sampling.sigmas import Schedule, make_schedule
from .sampling.solvers import SOLVER_STEPS
from .types import ClipInputs, SamplerSettings, StepCallback


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
        velocity, step = self._following(clips, guidance, inputs.pose_steps), SOLVER_STEPS[self.settings.solver]
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

    def _following(
        self, clips: list[ClipContext], guidance: Guidance, pose_steps: int | None
    ) -> Callable[[Tensor, float], Tensor]:
        """(latents, timestep) -> guided velocity, without the pose after `pose_steps` steps of the schedule."""
        combine: Combine = ProjectedGuidance() if self.settings.apg else guide
        posed = self._velocity(clips, guidance, combine)
        if pose_steps is None or pose_steps >= self.settings.steps:
            return posed
        free = self._velocity(self.model.without_pose(clips), guidance, combine)
        last = float(self.schedule.timesteps[pose_steps - 1])
        return lambda latents, timestep: (posed if timestep >= last else free)(latents, timestep)

    def _velocity(
        self, clips: list[ClipContext], guidance: Guidance, combine: Combine
    ) -> Callable[[Tensor, float], Tensor]:
        """(latents, timestep) -> guided velocity."""
        times = self._prepared_times()
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
            timesteps = self.schedule.timesteps.to(self.device)
            self._times = {float(t): self.model.embed_time(t[None]) for t in timesteps}
        return self._times

"""Our denoiser: the transformer, guidance and a solver behind the clip loop's Denoiser protocol.

Knows models and sampling, which do not know each other; not where clips come from or go.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .models.dit import ClipContext, PromptContext, TimeContext, WanS2VTransformer
from .sampling.denoise import denoise
from .sampling.guidance import guide
from .sampling.sigmas import Schedule, make_schedule
from .sampling.solvers import SOLVER_STEPS
from .types import ClipInputs, SamplerSettings, StepCallback


class TransformerDenoiser:
    """Noise to latents with classifier-free guidance over prompt and sound together.

    The unconditional branch takes the negative prompt and zero audio features; pose, reference and motion
    are the same in both. Prompt and timesteps are prepared once and serve every clip.

    Args:
        model: the transformer, where it is to run.
        settings: schedule, solver, guidance scale (1: one evaluation a step).
        device: where latents are denoised.
        batch_branches: both branches in one pass (faster where it fits), or one after the other.
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
        clips = [self._prepare(inputs, inputs.prompt_embeds, inputs.audio_features, noise.shape[2])]
        scale = self.settings.guidance_scale if inputs.guidance_scale is None else inputs.guidance_scale
        if scale != 1:
            silence = torch.zeros_like(inputs.audio_features)
            clips.append(self._prepare(inputs, inputs.negative_prompt_embeds, silence, noise.shape[2]))
        velocity, step = self._velocity(clips, scale), SOLVER_STEPS[self.settings.solver]
        source = None if inputs.source is None else inputs.source.to(self.device)
        return denoise(velocity, noise.to(self.device), self.schedule, step, on_step, source)

    def _prepare(self, inputs: ClipInputs, prompt_embeds: Tensor, features: Tensor, num_latents: int) -> ClipContext:
        def here(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self.device)

        return self.model.prepare_clip(
            prompt=self._prompt(prompt_embeds),
            num_latents=num_latents,
            reference_latent=here(inputs.reference_latent),
            audio_features=here(features),
            motion_latents=here(inputs.motion_latents),
            pose_latents=here(inputs.pose_latents),
            audio_prefix_frames=self.audio_prefix_frames,
        )

    def _prompt(self, prompt_embeds: Tensor) -> PromptContext:
        """Prepared once per prompt: the two of a video are kept."""
        for known, context in self._prompts:
            if known is prompt_embeds:
                return context
        context = self.model.prepare_prompt(prompt_embeds.to(self.device))
        self._prompts = [*self._prompts[-1:], (prompt_embeds, context)]
        return context

    def _velocity(self, clips: list[ClipContext], scale: float) -> Callable[[Tensor, float], Tensor]:
        """(latents, timestep) -> velocity, guided when there are two branches."""
        times = self._prepared_times()
        if len(clips) == 1:
            return lambda latents, timestep: self.model(latents, times[timestep], clips[0])
        if self.batch_branches:
            joined = clips[0].joined(clips[1])

            def both(latents: Tensor, timestep: float) -> Tensor:
                cond, uncond = self.model(latents.expand(2, -1, -1, -1, -1), times[timestep], joined).split(1)
                return guide(cond, uncond, scale)

            return both
        return lambda latents, timestep: guide(*(self.model(latents, times[timestep], clip) for clip in clips), scale)

    def _prepared_times(self) -> dict[float, TimeContext]:
        if self._times is None:
            timesteps = self.schedule.timesteps.to(self.device)
            self._times = {float(t): self.model.embed_time(t[None]) for t in timesteps}
        return self._times

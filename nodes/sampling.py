"""The host's sampler and model as the clip loop's Denoiser.

Knows the host's conditioning keys and sampling calls; clips, motion and sound are the loop's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..s2v_core.errors import ConfigError
from ..s2v_core.sampling.guidance import FULL, NEITHER, Combine, Guidance, ProjectedGuidance, guide, plan_guidance
from ..s2v_core.sampling.sigmas import make_schedule
from ..s2v_core.sampling.solvers import SOLVER_STEPS, History
from ..s2v_core.sampling.source import first_step
from ..s2v_core.types import ClipInputs, SamplerSettings, StepCallback
from . import host
from . import model as models
from .transformer import TIMESTEPS

OUR_SAMPLERS = {"wan_unipc": "unipc", "wan_dpm++": "dpm++"}         # the official solvers, as our core computes them
OUR_SCHEDULERS = {"wan": "unipc", "wan_few_step": "few-step"}       # the official noise levels, by solver
SAMPLERS = (*OUR_SAMPLERS, *host.SAMPLERS)
SCHEDULERS = (*OUR_SCHEDULERS, *host.SCHEDULERS)


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """The host lets values through that are on no list. Raises: ConfigError."""
    if value not in known:
        raise ConfigError(f"{name} {value!r} is not known here; choose one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How clips are sampled: the widgets of a node."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    sync_strength: float = 1.0
    audio_guidance: float = 0.0   # 0: cfg times sync_strength
    apg: bool = False

    def __post_init__(self) -> None:
        check_choice("sampler_name", self.sampler, SAMPLERS)
        check_choice("scheduler", self.scheduler, SCHEDULERS)
        self.guidance(None)

    def guidance(self, cfg: float | None) -> Guidance:
        """The evaluations of a step, with `cfg` in place of the widget's for one clip. Raises: ConfigError."""
        settings = SamplerSettings(
            guidance_scale=self.cfg,
            sync_strength=self.sync_strength,
            audio_guidance_scale=self.audio_guidance or None,
            apg=self.apg,
        )
        return plan_guidance(*settings.scales(cfg))


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """The noise levels of a run."""

    sigmas: Tensor                                  # [S+1], ends in 0
    timesteps: tuple[tuple[float, float], ...]      # (1000*sigma, what the model is told); empty: 1000*sigma

    @classmethod
    def of(cls, model: host.ModelPatcher, sampling: Sampling) -> Levels:
        if sampling.scheduler not in OUR_SCHEDULERS:
            return cls(sigmas=host.host_sigmas(model, sampling.scheduler, sampling.steps), timesteps=())
        solver = OUR_SCHEDULERS[sampling.scheduler]
        if solver == "unipc":
            solver = OUR_SAMPLERS.get(sampling.sampler, solver)
        shift = host.sampling_shift(model)
        if shift is None:
            raise ConfigError(
                "a node such as ModelSamplingDiscrete has given the model noise levels that Wan-S2V does not know: "
                "remove it, or take ModelSamplingSD3, which changes the shift"
            )
        schedule = make_schedule(solver, sampling.steps, shift)
        told = tuple(zip((1000 * schedule.sigmas[:-1]).tolist(), schedule.timesteps.tolist(), strict=True))
        return cls(sigmas=schedule.sigmas, timesteps=told)


def clip_keys(inputs: ClipInputs) -> tuple[dict[str, object], dict[str, object]]:
    """What the host's S2V models take from positive and negative conditioning, under the host's names.

    Latents go back to the VAE's own space: the model normalises them. The negative side hears zeros.
    """
    out = host.LATENT_FORMAT.process_out
    shared: dict[str, object] = {"reference_latents": [out(inputs.reference_latent)]}
    if inputs.motion_latents is not None:
        shared["reference_motion"] = out(inputs.motion_latents)
    if inputs.pose_latents is not None:
        shared["control_video"] = out(inputs.pose_latents)
    features = inputs.audio_features
    positive = {**shared, "audio_embed": features, **_speaker_keys(inputs)}
    return positive, {**shared, "audio_embed": torch.zeros_like(features)}


def _speaker_keys(inputs: ClipInputs) -> dict[str, object]:
    """Speakers lie behind the width: what lies third, the host's context windows may cut as if it were frames."""
    if inputs.speaker_features is None:
        return {}
    return {"speaker_features": inputs.speaker_features.movedim(1, 3), "speaker_masks": inputs.speaker_masks}


class HostDenoiser:
    """Noise to latents by the host's sampler and whatever is attached to its model.

    Args:
        model: an S2V MODEL, ours or the host's own.
        positives: conditioning of the prompt of each clip of the video.
        negative: that of all clips.
        on_denoised: shown the clean estimate of every step, in the model's latent space, before the step is counted.
    """

    def __init__(
        self,
        model: host.ModelPatcher,
        positives: Sequence[list],
        negative: list,
        sampling: Sampling,
        on_denoised: Callable[[Tensor], None],
    ) -> None:
        self.levels = Levels.of(model, sampling)
        self.model = _told(model, self.levels)
        self.positives, self.negative = positives, negative
        self.sampling = sampling
        self.sampler = _sampler(sampling.sampler)
        self.on_denoised = on_denoised

    def __call__(self, inputs: ClipInputs, noise: Tensor, on_step: StepCallback) -> Tensor:
        """[1, 16, T, h, w] noise -> normalised latents."""
        models.check_fit(self.model, inputs.audio_features, inputs.prompt_embeds)
        if self._pose_limit(inputs):
            models.check_pose_steps(self.model)
        if inputs.speaker_features is not None:
            models.check_speakers(self.model)

        def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            self.on_denoised(denoised)
            on_step(step + 1, total)

        source, sigmas, kept = inputs.source, self.levels.sigmas, None
        if source is not None:
            sigmas = sigmas[first_step(sigmas.tolist(), source.strength) :]
            kept = (host.LATENT_FORMAT.process_out(source.latents), source.mask)
        latents = host.sample(
            self._guider(inputs),
            self._scaled(noise),
            sampler=self.sampler,
            sigmas=sigmas,
            seed=self.sampling.seed,
            callback=callback,
            kept=kept,
        )
        return host.LATENT_FORMAT.process_in(latents.float())

    def _guider(self, inputs: ClipInputs) -> object:
        """The host's own guidance wherever it does what is asked for: nodes of the host may change it."""
        guidance = self.sampling.guidance(inputs.guidance_scale)
        positive, limit = self.positives[inputs.index], self._pose_limit(inputs)
        heard, unheard = ({**keys, **limit} for keys in clip_keys(inputs))
        if guidance.branches == (FULL,) or (guidance.branches == (FULL, NEITHER) and not self.sampling.apg):
            cfg = self.sampling.cfg if inputs.guidance_scale is None else inputs.guidance_scale
            sides = host.with_values(positive, heard), host.with_values(self.negative, unheard)
            return host.host_guider(self.model, *sides, cfg)
        told = [
            host.with_values(positive if branch.prompt else self.negative, heard if branch.sound else unheard)
            for branch in guidance.branches
        ]
        combine = ProjectedGuidance() if self.sampling.apg else guide
        return host.Guider(self.model, told, guided(guidance.scales, combine))

    def _pose_limit(self, inputs: ClipInputs) -> dict[str, float]:
        """What tells our transformer from which timestep on the pose is left out: nothing where it never is."""
        if inputs.pose_latents is None or inputs.pose_steps is None:
            return {}
        steps, sigmas = inputs.pose_steps, self.levels.sigmas
        if steps >= len(sigmas) - 1:
            return {}
        return {models.POSE_UNTIL: 500 * float(sigmas[steps - 1] + sigmas[steps])}   # halfway, whatever is rounded

    def _scaled(self, noise: Tensor) -> Tensor:
        """The host multiplies noise by the first sigma, which in our schedules is a hair below 1; Wan-S2V does not."""
        return noise / self.levels.sigmas[0] if self.levels.timesteps else noise


def guided(scales: Sequence[float], combine: Combine) -> Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]:
    """`combine`, which guides velocities, for a host that has clean estimates [B, ...] at sigmas [B]."""

    def of_denoised(x: Tensor, sigma: Tensor, denoised: Sequence[Tensor]) -> Tensor:
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        return x - level * combine([(x - clean) / level for clean in denoised], scales)

    return of_denoised


def _told(model: host.ModelPatcher, levels: Levels) -> host.ModelPatcher:
    """The model, knowing what our transformer is told at each level."""
    model = model.clone()
    model.model_options.setdefault("transformer_options", {})[TIMESTEPS] = levels.timesteps
    return model


def _sampler(name: str) -> host.Sampler:
    if name not in OUR_SAMPLERS:
        return host.host_sampler(name)
    step = SOLVER_STEPS[OUR_SAMPLERS[name]]

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict | None = None,
        callback: Callable[[dict], None] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        levels, history = sigmas.tolist(), History()
        for i, sigma in enumerate(levels[:-1]):
            denoised = model(x, sigmas[i] * x.new_ones(x.shape[0]), **(extra_args or {}))
            if callback is not None:
                callback({"i": i, "denoised": denoised, "x": x, "sigma": sigmas[i], "sigma_hat": sigmas[i]})
            x, history = step(levels, i, x, (x - denoised) / sigma, history)
        return x

    return host.function_sampler(sample)

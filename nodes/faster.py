"""S2V Faster Sampling: a MODEL that any sampler evaluates less often, in ways that change the video slightly.

Knows widgets and what is attached to a model; which steps are guided or foretold is the core's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from . import host
from .host import io
from .sockets import CATEGORY

if TYPE_CHECKING:
    from torch import Tensor

    from ..s2v_core.sampling.caching import StepCache
    from ..s2v_core.types import SamplerSettings

SHORTCUTS = "s2v_shortcuts"   # in transformer_options: what tells such a model from others


class FasterSampling(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="S2VFasterSampling",
            display_name="S2V Faster Sampling",
            category=CATEGORY,
            description="Fewer evaluations of the model, for a slightly different video: guidance at some noise levels "
                        "only, and steps that are foretold from those before them. For the S2V nodes and KSampler.",
            search_aliases=["teacache", "magcache", "easycache", "guidance interval", "cfg interval", "step cache"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan2.2-S2V model: ours, or the host's own."),
                io.Float.Input("guidance_from", default=0.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Noise level, 0 (clean) to 1, below which a step is not guided: it takes one "
                                       "evaluation in place of two. 0.2 is a start; 0 guides to the end."),
                io.Float.Input("guidance_to", default=1.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="Noise level above which a step is not guided. 0.8 is a start; 1 guides from "
                                       "the beginning."),
                io.Float.Input("step_cache", default=0.0, min=0.0, max=1.0, step=0.01, round=0.001,
                               tooltip="A step is foretold where no part of the picture is expected to change by more "
                                       "than this share of what is there. 0.2 kept lips as they were; 0 is off. It "
                                       "takes some 16 steps to save any."),
            ],
            outputs=[io.Model.Output("model_out", display_name="model", tooltip="For the sampler.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: object, guidance_from: float, guidance_to: float, step_cache: float) -> io.NodeOutput:
        from ..s2v_core.types import SamplerSettings

        settings = SamplerSettings(guidance_interval=(guidance_from, guidance_to), step_cache=step_cache)
        return io.NodeOutput(with_shortcuts(model, settings))


def with_shortcuts(model: host.ModelPatcher, settings: SamplerSettings) -> host.ModelPatcher:
    """The model, evaluated in the steps that the settings leave."""
    if settings.guidance_interval == (0.0, 1.0) and not settings.step_cache:
        return model
    model, shortcuts = model.clone(), Shortcuts(settings)
    options = model.model_options.setdefault("transformer_options", {})
    options[SHORTCUTS] = (settings.guidance_interval, settings.step_cache)
    host.around_guidance(model, SHORTCUTS, shortcuts)
    host.after_sampling(model, SHORTCUTS, shortcuts.forget)
    return model


class Shortcuts:
    """The steps of one sampling run: guided or not, computed or foretold."""

    def __init__(self, settings: SamplerSettings) -> None:
        self._settings = settings
        self._cache: StepCache | None = None

    def __call__(
        self,
        guided: Callable[[], Tensor],
        alone: Callable[[], Tensor],
        x: Tensor,
        sigma: float,
        sigmas: Sequence[float],
    ) -> Tensor:
        """The clean estimate of a step.

        Args:
            guided, alone: evaluate the model, with guidance and under the positive conditioning alone.
            x: noisy latents [B, C, T, h, w] at noise level `sigma`.
            sigmas: [S+1] of the run.
        """
        from ..s2v_core.sampling.caching import StepCache
        from ..s2v_core.sampling.guidance import guided_steps

        (is_guided,) = guided_steps((sigma, 0.0), self._settings.guidance_interval)
        compute = guided if is_guided else alone
        if not self._settings.step_cache:
            return compute()
        if self._cache is None:
            self._cache = StepCache(self._settings.step_cache, sigmas)
        return x - sigma * self._cache.velocity(sigma, is_guided, lambda: (x - compute()) / sigma)

    def forget(self) -> None:
        """The run is over."""
        self._cache = None

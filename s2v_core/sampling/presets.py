"""Few-step modes by name: the settings that distilled weights were made for, all in one table.

Knows numbers and what they need; reading weights and sampling are others' business.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """Settings that belong together. The LoRA goes in at strength 1."""

    name: str
    steps: int
    shift: float
    guidance_scale: float
    solver: str
    lora: str   # what it is for, in words

    def settings(self) -> dict[str, object]:
        """By their names in a request and in `types.SamplerSettings`."""
        return {
            "steps": self.steps, "shift": self.shift, "guidance_scale": self.guidance_scale, "solver": self.solver,
        }  # fmt: skip

    def check_lora(self, loras: Collection[object], remedy: str) -> None:
        """Raises: ConfigError where there is no LoRA; `remedy` says how one is given."""
        if not loras:
            raise ConfigError(
                f"preset {self.name} needs {self.lora}: without one, {self.steps} steps without guidance give a blur; "
                f"{remedy}"
            )


LIP_SAFE = 0.2   # the step cache's threshold at which mouths moved as without it: `tests/benchmarks/caching.py`
LIGHTX2V = "a LightX2V step-distilled LoRA of Wan 2.1 or 2.2 14B text-to-video"

# LightX2V distils to steps at 1000, 750, 500, 250, shifted by 5, without guidance: `configs/distill` and
# `step_distill/scheduler.py` in ModelTC/LightX2V. Eight steps go by the same rule, at levels that its authors wrote
# out (LightX2V-Wan2.2-Lightning issue 3): the LoRAs were trained for four, and eight work too.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(name="lightning-4", steps=4, shift=5.0, guidance_scale=1.0, solver="few-step", lora=LIGHTX2V),
        Preset(name="lightning-8", steps=8, shift=5.0, guidance_scale=1.0, solver="few-step", lora=LIGHTX2V),
    )
}


def find_preset(name: str) -> Preset:
    """Raises: ConfigError for a name that is in no table."""
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]

"""Few-step presets: their levels, what wins over them, and the LoRA that they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from s2v_core.components import Components
from s2v_core.errors import ConfigError
from s2v_core.request import ClipRequest
from s2v_core.running.plan import sampler_settings
from s2v_core.sampling.presets import PRESETS
from s2v_core.sampling.sigmas import make_schedule

ROOT = Path(__file__).parents[2]
MODEL = {"steps": 40, "shift": 3.0, "guidance_scale": 4.5}
LEVELS = {   # as LightX2V's authors give them
    "lightning-4": (1000.0, 937.5, 833.333, 625.0),
    "lightning-8": (1000.0, 972.222, 937.5, 892.857, 833.333, 750.0, 625.0, 416.667),
}


def test_every_preset_visits_the_levels_that_its_weights_were_distilled_to_without_guidance():
    assert set(PRESETS) == set(LEVELS)
    for name, levels in LEVELS.items():
        settings = ClipRequest(preset=name).sampler_settings(**MODEL)
        schedule = make_schedule(settings.solver, settings.steps, settings.shift)
        torch.testing.assert_close(schedule.timesteps, torch.tensor(levels), atol=2e-3, rtol=0)
        assert settings.scales() == (1.0, 1.0)


def test_what_is_said_wins_over_the_preset_and_the_preset_over_the_model():
    settings = ClipRequest(preset="lightning-4", steps=6, sync_strength=2.0).sampler_settings(**MODEL)
    assert (settings.steps, settings.shift, settings.solver) == (6, 5.0, "few-step")
    assert settings.scales() == (1.0, 2.0)
    plain = ClipRequest().sampler_settings(**MODEL)
    assert (plain.steps, plain.shift, plain.guidance_scale, plain.solver) == (40, 3.0, 4.5, "unipc")


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ConfigError, match="preset must be one of lightning-4, lightning-8; got 'lightning-5'"):
        ClipRequest(preset="lightning-5")


class WithLoras:
    """As much of `Components` as a plan's settings look at."""

    def __init__(self, loras: tuple[object, ...]) -> None:
        self.loras = loras
        self.config = Components.find(
            None, dtype=None, device="cpu", attention="sdpa", offload="none", loras=(), load_weights=False
        ).config


def test_a_preset_without_its_lora_says_so_in_a_sentence():
    request = ClipRequest(preset="lightning-4")
    assert sampler_settings(request, WithLoras(("a file",))).steps == 4
    with pytest.raises(ConfigError) as refused:
        sampler_settings(request, WithLoras(()))
    assert "\n" not in str(refused.value)
    assert "lightning-4 needs a LightX2V step-distilled LoRA" in str(refused.value) and "--lora" in str(refused.value)
    assert sampler_settings(ClipRequest(), WithLoras(())).steps == 8, "the bundled model's own"


def test_the_few_step_workflow_carries_the_presets_values():
    nodes = json.loads((ROOT / "workflows" / "s2v_few_step_lora.json").read_text(encoding="utf-8"))["nodes"]
    widgets = {node["type"]: node["widgets_values"] for node in nodes if "widgets_values" in node}
    preset = PRESETS["lightning-4"]
    _, _, steps, cfg, sampler, scheduler, *_ = widgets["S2VLongVideo"]
    assert (steps, cfg, widgets["ModelSamplingSD3"]) == (preset.steps, preset.guidance_scale, [preset.shift])
    assert (sampler, scheduler, preset.solver) == ("euler", "wan_few_step", "few-step")
    assert widgets["LoraLoaderModelOnly"][1] == 1.0

"""S2V Faster Sampling in a real host: the same clip as the command line's, by the host's own sampler and guidance."""

from __future__ import annotations

import pytest

from .prompts import change
from .test_directing import heard_whole
from .test_model import command_line_clip, latents_of, normalised, short_clip


@pytest.mark.parametrize("widgets, of_the_core", [
    ({"guidance_from": 0.5, "guidance_to": 0.85}, {"guidance_interval": (0.5, 0.85)}),
    ({"step_cache": 1.0}, {"step_cache": 1.0}),
])  # fmt: skip
def test_a_faster_model_in_the_host_gives_the_command_lines_clip(server, tmp_path, widgets, of_the_core):
    prompt, source = short_clip(steps=8, sampler_name="euler", seed=3, cfg=3.0)
    prompt = change(heard_whole(prompt), "S2VSampleClip", model=["faster", 0])
    off = {"model": ["bundled", 0], "guidance_from": 0.0, "guidance_to": 1.0, "step_cache": 0.0}
    prompt["faster"] = {"class_type": "S2VFasterSampling", "inputs": {**off, **widgets}}
    there = latents_of(server, prompt, source)
    alike = {"seed": 3, "guidance_scale": 3.0, "solver": "euler", "steps": 8}
    here = command_line_clip(server, tmp_path / "told", **alike, **of_the_core)
    plain = command_line_clip(server, tmp_path / "plain", **alike)
    assert (normalised(there) - here).abs().max() < 1e-3 < 1e-2 < (plain - here).abs().max()

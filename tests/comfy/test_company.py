"""Nodes of the host that are made for its own models, on ours."""

from __future__ import annotations

import pytest
import torch

from .prompts import change
from .test_model import latents_of, ours, short_clip


def patched(kind, **inputs):
    """A model node of the host between our model and the sampler: whether it changed the clip."""
    prompt, source = short_clip(seed=7, steps=6, sampler_name="euler", scheduler="simple", cfg=3.0)
    moved = change(prompt, "S2VSampleClip", model=["patch", 0])
    moved["patch"] = {"class_type": kind, "inputs": {"model": ["bundled", 0], **inputs}}
    return prompt, moved, source


@pytest.mark.parametrize(
    "kind, inputs",
    [
        ("ModelSamplingSD3", {"shift": 8.0}),
        ("EasyCache", {"reuse_threshold": 0.9, "start_percent": 0.1, "end_percent": 0.95, "verbose": False}),
        ("CFGZeroStar", {}),
        ("CFGNorm", {"strength": 0.5}),
        (
            "SkipLayerGuidanceDiT",
            {"double_layers": "1,2", "single_layers": "", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0,
             "rescaling_scale": 0.0},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_model_node_of_the_host_takes_effect(server, kind, inputs):
    plain, with_patch, source = patched(kind, **inputs)
    expected, found = latents_of(server, plain, source), latents_of(server, with_patch, source)
    assert torch.isfinite(found).all() and (found - expected).abs().max() > 1e-3


def test_two_prompts_and_three_conditions_guide_at_once(server):
    prompt, _ = ours("tiny.safetensors")
    prompt["third"] = {"class_type": "StandInPrompt", "inputs": {"text": "third"}}
    prompt["native2"] = {"class_type": "WanSoundImageToVideo",
                         "inputs": {**prompt["native"]["inputs"], "positive": ["third", 0]}}  # fmt: skip
    sampler = prompt.pop("sampler")["inputs"]
    prompt |= {
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
        "pick": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "levels": {"class_type": "BasicScheduler",
                   "inputs": {"model": ["model", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0}},
        "guider": {"class_type": "DualCFGGuider",
                   "inputs": {"model": ["model", 0], "cond1": ["native", 0], "cond2": ["native2", 0],
                              "negative": ["native", 1], "cfg_conds": 4.0, "cfg_cond2_negative": 2.0,
                              "style": "regular"}},
        "sampler": {"class_type": "SamplerCustomAdvanced",
                    "inputs": {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["pick", 0],
                               "sigmas": ["levels", 0], "latent_image": sampler["latent_image"]}},
    }  # fmt: skip
    assert torch.isfinite(latents_of(server, prompt, ["sampler", 0])).all()


def test_a_batch_of_two_has_the_single_clip_in_it(server):
    prompt, source = ours("tiny.safetensors")
    one = latents_of(server, prompt, source)
    two = latents_of(server, change(prompt, "WanSoundImageToVideo", batch_size=2), source)
    assert two.shape[0] == 2 and (two[:1] - one).abs().max() < 1e-3 and not torch.equal(two[0], two[1])


def test_context_windows_hear_the_whole_sound(server):
    prompt, source = ours("tiny.safetensors")
    prompt = change(prompt, "WanSoundImageToVideo", length=29)
    whole = latents_of(server, prompt, source)
    prompt["windows"] = {
        "class_type": "WanContextWindowsManual",
        "inputs": {"model": ["model", 0], "context_length": 21, "context_overlap": 5,
                   "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
                   "fuse_method": "pyramid"},
    }  # fmt: skip
    pieces = latents_of(server, change(prompt, "KSampler", model=["windows", 0]), source)
    assert pieces.shape == whole.shape and torch.isfinite(pieces).all() and not torch.equal(pieces, whole)

"""Our transformer as the host's MODEL: the same numbers as the command line's, every kind of file, LoRA, both ways in
and out of the host's own S2V graph."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

from s2v_core.components import Components
from s2v_core.config import WAN_LATENT_MEAN, WAN_LATENT_STD
from s2v_core.geometry import VideoSize
from s2v_core.pipeline import WanS2VPipeline
from s2v_core.request import Request

from .prompts import change, node, small, workflow

names = itertools.count()
FP8_SCALED, GGUF, INT8 = ("tiny_fp8_scaled.safetensors",), ("tiny-Q8_0.gguf",), ("tiny.safetensors", "int8")
TRIED = workflow("s2v_try_it")["positive"]["inputs"]["text"]


def latents_of(server, prompt, source):
    """Run the graph and read the latents that come out of `source`."""
    name = f"latents/{next(names)}"
    prompt = {k: spec for k, spec in prompt.items() if spec["class_type"] not in ("SaveVideo", "CreateVideo")}
    prompt["keep"] = {"class_type": "SaveLatent", "inputs": {"samples": source, "filename_prefix": name}}
    server.run(prompt)
    (path,) = (server.base / "output" / "latents").glob(f"{name.split('/')[1]}_*.latent")
    return load_file(path)["latent_tensor"]


def short_clip(*, steps=4, seconds=1.0, **values):
    """The bundled model's first clip, small."""
    prompt = small(workflow("s2v_try_it"), seconds)
    spec = prompt[node(prompt, "S2VLongVideo")]
    spec["class_type"] = "S2VSampleClip"
    del spec["inputs"]["continuity"]
    spec["inputs"].update(steps=steps, **values)
    return prompt, [node(prompt, "S2VSampleClip"), 2]


def tiny(loader, **inputs):
    """The host's own S2V graph on a small model of the big one's layout, with a prompt and ears of its widths."""
    prompt = small(workflow("s2v_existing_graph"), 1.0)
    prompt["model"] = {"class_type": loader, "inputs": inputs}
    prompt["positive"] = {"class_type": "StandInPrompt", "inputs": {"text": "yes"}}
    prompt["negative"] = {"class_type": "StandInPrompt", "inputs": {"text": "no"}}
    prompt["ears"] = {"class_type": "StandInEars", "inputs": {}}
    prompt["vae"] = {"class_type": "S2VLoadBundledModel", "inputs": {}}
    for spec in prompt.values():
        if spec["inputs"].get("vae") == ["vae", 0]:
            spec["inputs"]["vae"] = ["vae", 2]
    del prompt["clip"]
    return prompt, [node(prompt, "KSampler"), 0]


def ours(name, weight_dtype="default"):
    return tiny("S2VLoadModel", model_name=name, weight_dtype=weight_dtype)


def likeness(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("host_sampler, solver", [("euler", "euler"), ("wan_unipc", "unipc"), ("wan_dpm++", "dpm++")])
def test_a_clip_in_the_host_is_the_command_lines_clip(server, tmp_path, host_sampler, solver):
    prompt, source = short_clip(sampler_name=host_sampler, seed=3, cfg=3.0)
    whole_sound = {**prompt, "hear": {**prompt["hear"], "inputs": {**prompt["hear"]["inputs"], "end": 0.0}}}
    there = latents_of(server, whole_sound, source)
    here = command_line_clip(server, tmp_path, seed=3, guidance_scale=3.0, solver=solver)
    assert (normalised(there) - here).abs().max() < 1e-3
    assert here.std() > 0.1


def command_line_clip(server, folder, *, loras=(), steps=4, **settings):
    """Latents of the first clip of the same job, as the command makes it, in float32."""
    request = Request(
        image=server.base / "input" / "drawn.png", audio=server.base / "input" / "speech.wav", prompt=TRIED,
        negative_prompt="", output=folder / "clip.mp4", size=VideoSize(width=64, height=64), num_frames=16, steps=steps,
        take=folder / "take", **settings,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    WanS2VPipeline(
        Components.find(
            None, dtype=torch.float32, device="cpu", attention="sdpa", offload="none", loras=loras, load_weights=True
        )
    ).run(request)
    return load_file(folder / "take" / "latents" / "0000.safetensors")["tensor"]


def normalised(latents):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (WAN_LATENT_MEAN, WAN_LATENT_STD))
    return (latents - mean) / std


@pytest.mark.parametrize("lora", ["bundled_lora.safetensors", "trained_lora.safetensors"])
def test_a_lora_of_the_hosts_loader_changes_the_clip_and_leaves_the_model_as_it_was(server, lora):
    prompt, source = short_clip(seed=4)
    plain = latents_of(server, prompt, source)
    for strength, changes in ((1.0, True), (0.0, False)):
        with_lora = change(prompt, "S2VSampleClip", model=["lora", 0])
        with_lora["lora"] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["bundled", 0], "lora_name": lora, "strength_model": strength},
        }
        moved = (latents_of(server, with_lora, source) - plain).abs().max()
        assert (moved > 1e-2) == changes and (changes or moved == 0)
    again = latents_of(server, change(prompt, "S2VSampleClip", steps=5), source)
    assert torch.isfinite(again).all()
    assert torch.equal(latents_of(server, prompt, source), plain)
    assert "lora key not loaded" not in server.log()


def test_a_trained_lora_moves_the_host_as_it_moves_the_command_line(server, tmp_path):
    prompt, source = short_clip(seed=3, sampler_name="euler", cfg=1.0)
    prompt = {**prompt, "hear": {**prompt["hear"], "inputs": {**prompt["hear"]["inputs"], "end": 0.0}}}
    prompt["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["bundled", 0], "lora_name": "trained_lora.safetensors", "strength_model": 1.0},
    }
    there = latents_of(server, change(prompt, "S2VSampleClip", model=["lora", 0]), source)
    lora = server.base / "models" / "loras" / "trained_lora.safetensors"
    here, plain = (command_line_clip(server, tmp_path / name, loras=loras, seed=3, guidance_scale=1.0, solver="euler")
                   for name, loras in (("with", [(lora, 1.0)]), ("without", [])))  # fmt: skip
    assert (normalised(there) - here).abs().max() < 1e-3 and (here - plain).abs().max() > 1e-2


def test_sample_clip_follows_a_pose_as_its_widgets_say(server):
    """None of a pose is no pose, all of the steps are as many as there are; the rest are clips of their own."""

    def made(**values):
        return latents_of(server, change(posed, "S2VSampleClip", **values), source)

    free, source = short_clip(seed=6, seconds=0.25, steps=2)
    posed = change({**free, "pose": workflow("s2v_pose")["pose"]}, "S2VSampleClip", pose_video=["pose", 0])
    full = made()
    none = made(pose_strength=0.0)
    assert torch.equal(none, latents_of(server, free, source)) and torch.equal(made(pose_steps=2), full)
    part = [{"pose_strength": 0.5}, {"pose_start": 0.1}, {"pose_end": 0.1}, {"pose_steps": 1}, {"pose_skip": 0.1}]
    different = [full, none, *(made(**values) for values in part)]
    assert all(not torch.equal(a, b) for i, a in enumerate(different) for b in different[:i])


def test_conditioning_and_the_hosts_ksampler_give_what_sample_clip_gives(server):
    one, source = short_clip(seed=5, sampler_name="euler", scheduler="simple", cfg=3.0)
    expected = latents_of(server, one, source)
    graph = small(workflow("s2v_any_sampler"), 1.0)
    graph = {k: spec for k, spec in graph.items() if k not in ("model", "clip", "vae", "ears")}
    graph["bundled"] = one["bundled"]
    outputs = {"model": 0, "clip": 1, "vae": 2, "ears": 3}
    for spec in graph.values():
        for name, value in spec["inputs"].items():
            if isinstance(value, list) and value[0] in outputs:
                spec["inputs"][name] = ["bundled", outputs[value[0]]]
    graph["positive"]["inputs"]["text"], graph["negative"]["inputs"]["text"] = TRIED, ""
    graph = change(graph, "LoadImage", image="drawn.png")
    graph = change(graph, "KSampler", seed=5, steps=4, cfg=3.0, sampler_name="euler", scheduler="simple")
    assert (latents_of(server, graph, ["sampler", 0]) - expected).abs().max() < 1e-4   # in and out of the VAE's space
    graph = change(graph, "S2VConditioning", width=0, height=0)
    assert latents_of(server, graph, ["clip_conditioning", 2]).shape[-2:] == (16, 16), "the bundled model's own size"


def test_our_loader_drives_the_hosts_own_graph_and_stays_close_to_the_hosts_model(server):
    """They cannot agree fully: the host leaves out the 73 frames before a clip's sound."""
    ours_graph, source = ours("tiny.safetensors")
    here = latents_of(server, change(ours_graph, "KSampler", cfg=1.0), source)
    theirs, source = tiny("UNETLoader", unet_name="tiny.safetensors", weight_dtype="default")
    theirs["shift"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": ["model", 0], "shift": 3.0}}
    there = latents_of(server, change(theirs, "KSampler", model=["shift", 0], cfg=1.0), source)
    print("likeness", likeness(here, there))
    assert torch.isfinite(here).all() and likeness(here, there) > 0.95


def test_the_hosts_own_model_makes_a_long_video(server):
    prompt, _ = tiny("UNETLoader", unet_name="tiny.safetensors", weight_dtype="default")
    long = small(workflow("s2v_long_video"), 0.5)
    prompt = {**{k: prompt[k] for k in ("model", "positive", "negative", "ears", "vae", "image", "sound", "hear")},
              "video": long["video"], "save": long["save"]}  # fmt: skip
    prompt["video"]["inputs"]["vae"] = ["vae", 2]
    (path,) = server.files(server.run(prompt))
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("kind", [FP8_SCALED, GGUF, INT8, (*FP8_SCALED, "int8")])
def test_quantised_weights_give_nearly_the_same(server, kind):
    exact, packed = latents_of(server, *ours("tiny.safetensors")), latents_of(server, *ours(*kind))
    assert not torch.equal(exact, packed) and likeness(exact, packed) > 0.98
    assert "multiplying in int8" not in server.log(), "numbers were unpacked for each product"


@pytest.mark.parametrize("kind", [("tiny.safetensors",), FP8_SCALED, GGUF, INT8])
def test_a_lora_moves_every_kind_of_weights_alike(server, kind):
    def both(*file):
        prompt, source = ours(*file)
        plain = latents_of(server, prompt, source)
        lora = {"model": ["model", 0], "lora_name": "tiny_lora.safetensors", "strength_model": 1.0}
        prompt["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
        moved = latents_of(server, change(prompt, "KSampler", model=["lora", 0]), source) - plain
        assert torch.equal(latents_of(server, *ours(*file)), plain), "the LoRA stayed"
        return moved

    exact, moved = both("tiny.safetensors"), both(*kind)
    assert exact.abs().max() > 1e-2 and likeness(exact, moved) > 0.8

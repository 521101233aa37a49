"""Several speakers and two guidance scales in a real host: the same clip as the command line's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from s2v_core.speakers import Speaker

from .prompts import change, small, workflow
from .test_long_video import finished_take, long_video, pictures, rendered, with_storyboard
from .test_model import TRIED, command_line_clip, latents_of, normalised, short_clip, tiny


def heard_whole(prompt):
    return change(prompt, "S2VAudioEncode", end=0.0)


def with_speakers(prompt, *speakers):
    """Each of them a box and where its voice, the bundled sample, begins; what is heard stays the sample."""
    prompt = change(prompt, "S2VAudioEncode", speakers=[f"speaker{len(speakers) - 1}", 0])
    for i, (box, start) in enumerate(speakers):
        sides = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        before = {"speakers": [f"speaker{i - 1}", 0]} if i else {}
        prompt[f"speaker{i}"] = {
            "class_type": "S2VSpeaker",
            "inputs": {"audio": prompt["hear"]["inputs"]["audio"], **sides, "start": start, "end": 0.0, **before},
        }
    return prompt


def with_people(prompt, text, *boxes):
    """People called a, b, ... who share the sound out."""
    prompt = change(prompt, "S2VAudioEncode", speakers=["turns", 0])
    for i, box in enumerate(boxes):
        sides = dict(zip(("left", "top", "right", "bottom"), box, strict=True))
        before = {"speakers": [f"person{i - 1}", 0]} if i else {}
        prompt[f"person{i}"] = {"class_type": "S2VPerson", "inputs": {"name": "ab"[i], **sides, **before}}
    turns = {"speakers": [f"person{len(boxes) - 1}", 0], "text": text}
    return {**prompt, "turns": {"class_type": "S2VWhoSpeaks", "inputs": turns}}


def first_latents(server, prompt):
    """Of a long video's first clip."""
    server.run(prompt)
    return load_file(finished_take(server) / "latents" / "0000.safetensors")["tensor"]


@pytest.mark.parametrize("guidance, of_the_core", [
    ({"sync_strength": 1.5}, {"sync_strength": 1.5}),
    ({"audio_guidance": 5.0, "apg": True}, {"audio_guidance_scale": 5.0, "apg": True}),
])  # fmt: skip
def test_two_guidance_scales_in_the_host_give_the_command_lines_clip(server, tmp_path, guidance, of_the_core):
    prompt, source = short_clip(sampler_name="euler", seed=3, cfg=3.0)
    there = latents_of(server, heard_whole(change(prompt, "S2VSampleClip", **guidance)), source)
    here = command_line_clip(server, tmp_path / "told", seed=3, guidance_scale=3.0, solver="euler", **of_the_core)
    plain = command_line_clip(server, tmp_path / "plain", seed=3, guidance_scale=3.0, solver="euler")
    assert (normalised(there) - here).abs().max() < 1e-3 < 1e-2 < (plain - here).abs().max()


def test_two_speakers_in_the_host_give_the_command_lines_clip(server, tmp_path):
    places = (((0.0, 0.0, 0.5, 1.0), 0.0), ((0.5, 0.25, 1.0, 1.0), 0.25))
    prompt, source = short_clip(sampler_name="euler", seed=3, cfg=3.0)
    there = latents_of(server, heard_whole(with_speakers(prompt, *places)), source)
    speech = server.base / "input" / "speech.wav"
    speakers = tuple(Speaker(region=box, audio=speech, start=start) for box, start in places)
    here = command_line_clip(server, tmp_path, seed=3, guidance_scale=3.0, solver="euler", speakers=speakers)
    assert (normalised(there) - here).abs().max() < 1e-3
    assert (latents_of(server, heard_whole(prompt), source) - there).abs().max() > 1e-2


def test_people_who_share_a_sound_in_the_host_give_the_command_lines_clip(server, tmp_path):
    boxes, text = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 1.0)), "0,0.5,a\n0:00.5,2,b"
    prompt, source = short_clip(sampler_name="euler", seed=3, cfg=3.0)
    there = latents_of(server, heard_whole(with_people(prompt, text, *boxes)), source)
    turns = tmp_path / "turns.csv"
    turns.write_text(text, encoding="utf-8")
    people = tuple(Speaker(region=box, name=name) for name, box in zip("ab", boxes, strict=True))
    here = command_line_clip(
        server, tmp_path / "told", seed=3, guidance_scale=3.0, solver="euler", speakers=people, who_speaks=turns
    )
    assert (normalised(there) - here).abs().max() < 1e-3
    assert (latents_of(server, heard_whole(prompt), source) - there).abs().max() > 1e-2


def test_a_storyboard_says_whose_the_sound_is_as_the_command_line_does(server, tmp_path):
    boxes, text = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.25, 1.0, 1.0)), f"[speaker b] {TRIED}\n0:05 [speaker a]"
    prompt = with_people(heard_whole(long_video(seed=3, steps=4, cfg=3.0, sampler_name="euler")), "", *boxes)
    del prompt["turns"]
    prompt = change(with_storyboard(prompt, text), "S2VAudioEncode", speakers=["person1", 0])
    there = first_latents(server, prompt)
    board = tmp_path / "board.txt"
    board.write_text(text, encoding="utf-8")
    people = tuple(Speaker(region=box, name=name) for name, box in zip("ab", boxes, strict=True))
    told = {"speakers": people, "storyboard": board}
    here = command_line_clip(server, tmp_path / "told", seed=3, guidance_scale=3.0, solver="euler", **told)
    assert (there - here).abs().max() < 1e-3
    board.write_text(text.replace("speaker b", "speaker a"), encoding="utf-8")
    other = command_line_clip(server, tmp_path / "other", seed=3, guidance_scale=3.0, solver="euler", **told)
    assert (there - other).abs().max() > 1e-2


@pytest.mark.parametrize("values, of_the_core", [
    ({"pose_steps": 2, "pose_skip": 0.1, "pose_video": True}, {"pose_steps": 2, "pose_skip": 0.1}),
    ({"start_from_image": True, "first_window": "image"}, {"start_from_image": True, "first_window": "image"}),
])  # fmt: skip
def test_directions_in_the_host_give_the_command_lines_clip(server, tmp_path, values, of_the_core):
    prompt = heard_whole(long_video(seed=3, steps=4, cfg=3.0, sampler_name="euler", **values))
    plain = dict.fromkeys(values.keys() - {"pose_video", "start_from_image"}, 0) | {"first_window": "grey"}
    if "pose_video" in values:
        prompt["pose"] = {"class_type": "LoadVideo", "inputs": {"file": "pose.mp4"}}
        prompt = change(prompt, "S2VLongVideo", pose_video=["pose", 0])
        of_the_core = {**of_the_core, "pose_video": server.base / "input" / "pose.mp4"}
    there = first_latents(server, prompt)
    here = command_line_clip(server, tmp_path, seed=3, guidance_scale=3.0, solver="euler", **of_the_core)
    assert (there - here).abs().max() < 1e-3
    assert (first_latents(server, change(prompt, "S2VLongVideo", **plain)) - there).abs().max() > 1e-2


def test_one_speaker_all_over_the_picture_changes_nothing(server):
    """To the bit, where the host makes one evaluation; of two it puts those into a batch that hear alike."""
    prompt, source = short_clip(sampler_name="euler", seed=3, cfg=1.0)
    alone = with_speakers(prompt, ((0.0, 0.0, 1.0, 1.0), 0.0))
    found = latents_of(server, heard_whole(alone), source)
    assert torch.equal(found, latents_of(server, heard_whole(prompt), source))


def test_a_voice_that_moves_renders_only_the_clips_again_that_hear_it(server):
    def video(start):
        return with_speakers(long_video(0.0), ((0.0, 0.0, 0.5, 1.0), 0.0), ((0.5, 0.0, 1.0, 1.0), start))

    first, path = rendered(server, video(5.0))
    again, moved = rendered(server, video(5.1))
    assert (first, again) == ([0, 1], [1]) and len(pictures(path)) == len(pictures(moved)) > 80


def test_speakers_of_the_hosts_own_model_are_refused_in_the_red_box(server):
    prompt, _ = tiny("UNETLoader", unet_name="tiny.safetensors", weight_dtype="default")
    long = small(workflow("s2v_long_video"), 0.5)
    prompt = {**{k: prompt[k] for k in ("model", "positive", "negative", "ears", "vae", "image", "sound", "hear")},
              "video": long["video"], "save": long["save"]}  # fmt: skip
    prompt["video"]["inputs"]["vae"] = ["vae", 2]
    prompt = with_speakers(prompt, ((0.0, 0.0, 0.5, 1.0), 0.0))
    assert "load the model with S2V Load Model" in server.failure(server.wait(server.submit(prompt)))

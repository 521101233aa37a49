"""The bundled workflows, on the bundled model at small sizes, to a finished file."""

from __future__ import annotations

import math
import wave

import av
import pytest

from .conftest import FOOTAGE_RATE
from .prompts import API, STAND_INS, change, small, with_bundled, workflow
from .server import ROOT

NODES = (
    "S2VLoadModel", "S2VLoadBundledModel", "S2VAudioEncode", "S2VConditioning", "S2VSampleClip", "S2VDecodeClip",
    "S2VStoryboard", "S2VLongVideo", "S2VSpeaker", "S2VDubVideo", "S2VSay", "S2VPerson", "S2VWhoSpeaks",
    "S2VPoseFromFootage",
)  # fmt: skip
SECONDS = 0.75
FRAMES = {   # of other lengths than the sound's at 16 fps
    "s2v_existing_graph": 13,
    "s2v_dub": math.ceil(SECONDS * FOOTAGE_RATE),
    "s2v_continuity": math.ceil(SECONDS * 25),
}


def video_frames(path):
    with av.open(str(path)) as container:
        assert container.streams.audio, "no sound"
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="session")
def info(server):
    return server.get("/object_info")


@pytest.mark.parametrize("node", NODES)
def test_every_node_is_there_with_words_for_every_input(info, node):
    inputs = {**info[node]["input"].get("required", {}), **info[node]["input"].get("optional", {})}
    assert info[node]["category"] == "Wan S2V" and info[node]["description"]
    assert [name for name, spec in inputs.items() if not (len(spec) > 1 and spec[1].get("tooltip"))] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in API.glob("*.json")))
def test_a_bundled_workflow_runs_to_a_finished_mp4(server, name):
    prompt = small(with_bundled(workflow(name)), SECONDS)
    if "LoraLoaderModelOnly" in {spec["class_type"] for spec in prompt.values()}:
        prompt = change(prompt, "LoraLoaderModelOnly", lora_name="bundled_lora.safetensors")
    (path,) = server.files(server.run(prompt))
    assert video_frames(path) == FRAMES.get(name, math.ceil(SECONDS * 16))


def test_the_first_workflow_needs_nothing_but_the_pack(server):
    kinds = {spec["class_type"] for spec in workflow("s2v_try_it").values()}
    assert not kinds & set(STAND_INS)


def test_a_whole_sound_gives_a_video_of_its_length_over_several_clips(server):
    prompt = small(workflow("s2v_try_it"), 0.0)
    (path,) = server.files(server.run(prompt))
    with wave.open(str(ROOT / "samples" / "speech.wav")) as sound:
        expected = math.ceil(sound.getnframes() * 16 / sound.getframerate())
    assert expected > 80 and video_frames(path) == expected

"""S2V Dub Video in a real host: footage in, the same footage out but for the mask."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from .prompts import node
from .test_long_video import pictures


@pytest.fixture
def shot(server):
    """The frames of the footage in the host's input folder."""
    return pictures(server.base / "input" / "shot.mp4").astype(int)


def dub(**values):
    """The node on the bundled model, with the footage and the first 0.6 s of the bundled sound."""
    return {
        "bundled": {"class_type": "S2VLoadBundledModel", "inputs": {}},
        "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["bundled", 1], "text": "a face talks"}},
        "shot": {"class_type": "LoadVideo", "inputs": {"file": "shot.mp4"}},
        "mask": {"class_type": "LoadImageMask", "inputs": {"image": "mouth.png", "channel": "red"}},
        "hear": {
            "class_type": "S2VAudioEncode",
            "inputs": {
                "audio": ["bundled", 5], "audio_encoder": ["bundled", 3], "start": 0.0, "end": 0.6, "offset": 0.0,
            },
        },
        "dub": {
            "class_type": "S2VDubVideo",
            "inputs": {
                "model": ["bundled", 0], "positive": ["words", 0], "negative": ["words", 0], "vae": ["bundled", 2],
                "video": ["shot", 0], "audio": ["hear", 0], "mask": ["mask", 0], "seed": 3, "steps": 2, "cfg": 1.0,
                "sampler_name": "wan_unipc", "scheduler": "wan", "length": "hold", "strength": 1.0,
                "mask_padding": 0.0, "face": 0, "start": 0.0, "end": 0.0, "draw_every": 0, "side": 64, **values,
            },
        },
        "save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["dub", 0], "filename_prefix": "dub", "format": "auto", "codec": "auto"},
        },
    }  # fmt: skip


@pytest.mark.parametrize("sampler, scheduler", [("wan_unipc", "wan"), ("euler", "simple")])
def test_the_mouth_is_new_and_the_rest_is_the_footages(server, shot, sampler, scheduler):
    (path,) = server.files(server.run(dub(sampler_name=sampler, scheduler=scheduler)))
    made = pictures(path).astype(int)
    assert len(made) == 15   # 0.6 s at 25 fps: the last frame is held
    off = np.abs(made[:10] - shot).mean(-1)
    assert off[:, :30].mean() < 6 < 20 < off[:, 40:48, 26:40].mean()


def test_frames_that_a_node_made_a_video_of_are_dubbed_too(server, shot):
    prompt = dub(video=["made", 0])
    prompt["parts"] = {"class_type": "GetVideoComponents", "inputs": {"video": ["shot", 0]}}
    prompt["made"] = {"class_type": "CreateVideo", "inputs": {"images": ["parts", 0], "fps": 25.0}}
    (path,) = server.files(server.run(prompt))
    assert np.abs(pictures(path)[:10, :30].astype(int) - shot[:, :30]).mean() < 12


def test_weaker_dubs_keep_more(server, shot):
    def change(strength):
        (path,) = server.files(server.run(dub(strength=strength, steps=6)))
        return np.abs(pictures(path)[:10].astype(int) - shot)[:, 36:50, 24:42].mean()

    assert change(0.2) < 0.7 * change(1.0)


def test_a_mask_of_another_shape_is_told_in_the_red_box(server):
    Image.new("RGB", (96, 64), "white").save(server.base / "input" / "wide.png")
    prompt = dub()
    prompt[node(prompt, "LoadImageMask")]["inputs"]["image"] = "wide.png"
    assert "the mask input is 96x64 and the footage 64x64: give a mask of that shape" in server.failure(
        server.wait(server.submit(prompt))
    )

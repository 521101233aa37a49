"""The bundled model elsewhere: on a pretended GPU, which refuses what a real one refuses, videos are those of a CPU."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from s2v_core import WanS2VPipeline
from s2v_core.dub.request import DubRequest
from s2v_core.dub.run import Dubber
from s2v_core.geometry import VideoSize
from s2v_core.ops.rope import apply_rope
from s2v_core.parallel import together
from s2v_core.placement import choose_device
from s2v_core.planning import Way
from s2v_core.request import Request
from s2v_core.speakers import Speaker
from s2v_core.types import SamplerSettings

from .. import pretended_gpu as gpu
from .dub_footage import FACE, noise_pictures, swell, write_video

SAMPLES = Path(__file__).parents[2] / "samples"
SIZE = VideoSize(width=64, height=64)
CLOSE = 0.001   # of 255, on average over a video: float32 sums in another order


def request(folder: Path, **settings) -> Request:
    usual = {
        "image": SAMPLES / "drawn.png", "audio": SAMPLES / "speech.wav", "prompt": "a man nods", "size": SIZE,
        "steps": 2, "num_frames": 10, "clip_frames": 8, "output": folder / "video.mp4",
    }  # fmt: skip
    return Request(**{**usual, **settings})


def made(device: str, wanted: Request, written: list[np.ndarray], **settings) -> tuple[np.ndarray, Counter[str]]:
    """[F, H, W, 3] float, and the traffic."""
    written.clear()
    pipe = WanS2VPipeline.from_pretrained(device_map=device, torch_dtype=torch.float32, **settings)
    pipe.run(wanted)
    return np.stack(written).astype(float), Counter(gpu.traffic)


def both(folder: Path, written: list[np.ndarray], offload: str, **settings) -> tuple[np.ndarray, np.ndarray]:
    wanted = request(folder, **settings)
    on_cpu, _ = made("cpu", replace(wanted, take=folder / "cpu"), written)
    free = 1 << 20 if offload == "blocks" else 20 << 30   # so little that no block stays
    with gpu.pretended_gpu(free):
        on_gpu, _ = made("cuda", replace(wanted, take=folder / "gpu"), written, offload=offload)
    return on_cpu, on_gpu


# ---- the pretence itself ---------------------------------------------------------------------------------------------


def test_what_a_gpu_refuses_is_refused():
    with gpu.pretended_gpu() as traffic:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == torch.device("cuda", 0) and choose_device("auto").type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises((RuntimeError, TypeError), match="numpy"):
            there.numpy()
        assert torch.equal((there + here.to("cuda") + 1).cpu(), torch.full((3,), 3.0))
        assert +traffic == Counter(over=1, back=1)
    assert not torch.cuda.is_available() or torch.ones(1).cuda().is_cuda


def test_a_copy_of_a_second_stream_is_nothing_until_it_is_waited_for():
    with gpu.pretended_gpu():
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(stream):
            copy = torch.ones(2).to("cuda", non_blocking=True)
            event.record(stream)
        assert copy.cpu().isnan().all()
        torch.cuda.current_stream().wait_event(event)
        assert copy.cpu().eq(1).all()


# ---- videos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offload", ["none", "model", "blocks"])
def test_a_video_is_the_one_that_a_cpu_makes(written, tmp_path, offload):
    on_cpu, on_gpu = both(tmp_path, written, offload)
    assert np.abs(on_gpu - on_cpu).mean() < CLOSE


def test_streamed_blocks_that_nobody_waits_for_spoil_the_video(written, tmp_path, monkeypatch):
    """So that the test above can fail."""
    monkeypatch.setattr(gpu.Stream, "wait_event", lambda self, event: None)
    on_cpu, on_gpu = both(tmp_path, written, "blocks")
    assert np.abs(on_gpu - on_cpu).mean() > 10


def test_two_speakers_with_a_guidance_of_their_own_are_those_of_a_cpu(written, tmp_path):
    voices = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for voice in voices:
        swell(voice, 1.25)
    speakers = [Speaker(audio=v, region=box) for v, box in zip(voices, [(0, 0, 30, 64), (34, 0, 64, 64)], strict=True)]
    on_cpu, on_gpu = both(
        tmp_path, written, "none", audio=None, speakers=tuple(speakers), audio_guidance_scale=2.0, match_colour="lab"
    )
    assert np.abs(on_gpu - on_cpu).mean() < CLOSE


def test_a_video_with_poses_and_every_shortcut_is_the_one_that_a_cpu_makes(written, tmp_path):
    write_video(tmp_path / "pose.mp4", noise_pictures(20), 16)
    on_cpu, on_gpu = both(
        tmp_path, written, "none", pose_video=tmp_path / "pose.mp4", pose_strength=0.5, pose_steps=2, steps=3, apg=True,
        start_from_image=True, first_window="image", continuity="carry", guidance_interval=(0.3, 1.0), step_cache=0.05,
    )  # fmt: skip
    assert np.abs(on_gpu - on_cpu).mean() < CLOSE


def test_a_dub_is_the_one_that_a_cpu_makes(written, tmp_path):
    write_video(tmp_path / "shot.mp4", noise_pictures(10), 25)
    swell(tmp_path / "new.wav", 0.4)
    wanted = DubRequest(
        video=tmp_path / "shot.mp4", audio=tmp_path / "new.wav", output=tmp_path / "out.mp4", face_box=FACE, size=SIZE,
        steps=2, clip_frames=16,
    )  # fmt: skip
    found = []
    for device in ("cpu", "cuda"):
        written.clear()
        with gpu.pretended_gpu():
            pipe = WanS2VPipeline.from_pretrained(device_map=device, torch_dtype=torch.float32, offload="none")
            Dubber(pipe.components).run(replace(wanted, take=tmp_path / device))
        found.append(np.stack(written).astype(float))
    assert np.abs(found[1] - found[0]).mean() < CLOSE


def test_a_text_encoder_for_which_there_is_no_room_beside_the_last_videos_transformer_gets_its_place(written, tmp_path):
    with gpu.pretended_gpu():
        pipe = WanS2VPipeline.from_pretrained(device_map="cuda", torch_dtype=torch.float32, offload="none")
        pipe.run(request(tmp_path, num_frames=4))
        transformer = weakref.ref(pipe.components._transformer)
        known = pipe.components.encode_prompts(["a man nods"])
        assert next(transformer().parameters()).is_cuda
        with mock.patch.object(torch.cuda, "mem_get_info", lambda device: (1 << 12, 1 << 30)):
            again = pipe.components.encode_prompts(["a man nods"])
        assert transformer() is None
        assert torch.equal(known[0], again[0])


def test_a_process_that_follows_goes_the_leaders_way(monkeypatch):
    told = []
    monkeypatch.setattr(together, "_tell", told.append)
    settings, way = SamplerSettings(steps=2), Way(dtype=torch.float32, offload="blocks", resident_blocks=1)
    with gpu.pretended_gpu():
        leader, follower = (
            WanS2VPipeline.from_pretrained(device_map="cuda", torch_dtype=torch.float32).components for _ in range(2)
        )
        leader.lead = together.Lead()
        leader._go(way)
        with leader.denoising(settings):
            pass
        what, *about = told[0]
        assert (what, follower.offload) == ("video", "none")
        with follower._following(*about):
            blocks = follower._transformer.blocks
            assert [next(block.parameters()).device.type for block in blocks[:2]] == ["cuda", "cpu"]


def test_no_step_sends_anything_over_or_waits_for_an_answer(written, tmp_path):
    """All that a step needs is there before the first: more steps, the same traffic."""
    counted = []
    for steps in (4, 8):
        wanted = request(tmp_path, steps=steps, take=tmp_path / str(steps))
        with gpu.pretended_gpu():
            _, traffic = made("cuda", wanted, written, offload="none")
        counted.append(traffic)
    assert counted[0] == counted[1]


def test_rope_for_training_sends_nothing_over():
    with gpu.pretended_gpu() as traffic:
        apply_rope(torch.ones(1, 2, 2, 8, device="cuda"), torch.ones(2, 1, 4, 2, device="cuda"))
        assert not traffic.total()

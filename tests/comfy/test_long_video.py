"""S2V Long Video in a real host: caching, Cancel, going on, and what stands in the red box."""

from __future__ import annotations

import contextlib
import time

import av
import numpy as np

from .conftest import furnish
from .prompts import change, node, small, with_bundled, workflow
from .server import Server


def long_video(seconds=6.0, **values):
    """Two clips of the bundled model."""
    prompt = small(workflow("s2v_try_it"), seconds)
    return change(prompt, "S2VLongVideo", **values) if values else prompt


def pictures(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def takes(server):
    return sorted((server.base / "output" / "wan_s2v").glob("*/take.json"))


def wait_for_clip(server, number):
    began = time.monotonic()
    while time.monotonic() - began < 300:
        if list((server.base / "output" / "wan_s2v").glob(f"*/motion/{number:04d}.safetensors")):
            return
        time.sleep(0.05)
    raise AssertionError("no clip was finished")


def test_running_twice_computes_nothing_the_second_time(server):
    prompt = long_video(1.0, seed=11)
    server.run(prompt)
    assert server.computed(server.run(prompt)) <= {node(prompt, "SaveVideo")}


def test_cancel_keeps_the_finished_clip_and_a_second_run_goes_on_to_the_same_video(server):
    prompt = long_video(seed=5, steps=8)
    running = server.submit(prompt)
    wait_for_clip(server, 0)
    server.interrupt()
    stopped = server.wait(running)
    assert stopped["status"]["status_str"] == "error"
    assert dict(stopped["status"]["messages"]).keys() & {"execution_interrupted"}
    (take,) = takes(server)
    segment = take.parent / "clips" / "0000.mp4"
    written = segment.stat().st_mtime_ns, segment.read_bytes()
    resumed = server.submit(prompt)
    began = time.monotonic()
    while segment.exists() and time.monotonic() - began < 300:
        with contextlib.suppress(FileNotFoundError):   # a finished take goes
            assert (segment.stat().st_mtime_ns, segment.read_bytes()) == written
        time.sleep(0.02)
    (continued,) = server.files(server.wait(resumed))
    assert not takes(server)
    assert np.array_equal(pictures(continued), pictures(in_one_go(server, prompt)))


def in_one_go(server, prompt):
    """The same job without anything that is left of it: the same picture comes from elsewhere, the video is gone."""
    for finished in (server.base / "temp").glob("wan_s2v_*.mp4"):
        finished.unlink()
    prompt = {**prompt, "image": {"class_type": "LoadImage", "inputs": {"image": "face.png"}}}
    (path,) = server.files(server.run(change(prompt, "S2VLongVideo", image=["image", 0])))
    assert list((server.base / "temp").glob("wan_s2v_*.mp4")), "it was not made again"
    return path


def test_a_bad_size_is_refused_in_a_sentence_that_names_it(server):
    entry = server.wait(server.submit(long_video(1.0, width=64, height=0)))
    assert "set both width and height" in server.failure(entry)


def test_a_model_of_another_kind_is_refused_by_name(server):
    prompt = small(with_bundled(workflow("s2v_long_video")), 1.0)
    prompt["other"] = {"class_type": "StandInPrompt", "inputs": {"text": "wide"}}
    prompt = change(prompt, "S2VLongVideo", positive=["other", 0])
    entry = server.wait(server.submit(prompt))
    assert "umt5_xxl" in server.failure(entry)


def test_a_missing_model_file_says_where_it_comes_from_and_where_it_goes(server):
    prompt = change(workflow("s2v_long_video"), "S2VLoadModel", model_name="not_there.safetensors")
    answer = str(server.post("/prompt", {"prompt": prompt}))
    assert "not_there.safetensors" in answer and "huggingface.co" in answer and "diffusion_models" in answer


def test_after_a_crash_another_server_goes_on(comfy, tmp_path):
    furnish(tmp_path)
    prompt = long_video(seed=6, steps=6)
    with Server(comfy, tmp_path) as first:
        first.submit(prompt)
        wait_for_clip(first, 0)
        first.kill()
    (take,) = takes(first)
    written = (take.parent / "clips" / "0000.mp4").stat().st_mtime_ns
    with Server(comfy, tmp_path) as second:
        running = second.submit(prompt)
        wait_for_clip(second, 0)
        assert (take.parent / "clips" / "0000.mp4").stat().st_mtime_ns == written
        (path,) = second.files(second.wait(running))
    assert len(pictures(path)) == 84

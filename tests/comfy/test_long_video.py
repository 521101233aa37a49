"""S2V Long Video in a real host: caching, re-use, Cancel, going on, storyboards, and what stands in the red box."""

from __future__ import annotations

import contextlib
import shutil
import time

import av
import numpy as np
from PIL import Image
from safetensors.torch import load_file

from .conftest import furnish
from .prompts import change, node, small, with_bundled, workflow
from .server import Server


def long_video(seconds=6.0, **values):
    """Two clips of the bundled model."""
    prompt = small(workflow("s2v_try_it"), seconds)
    return change(prompt, "S2VLongVideo", **values) if values else prompt


def through(prompt, class_type, **inputs):
    """The same graph with a node of the host's between the model and the video."""
    inputs = {"model": prompt["video"]["inputs"]["model"], **inputs}
    return {**change(prompt, "S2VLongVideo", model=[class_type, 0]),
            class_type: {"class_type": class_type, "inputs": inputs}}  # fmt: skip


def pictures(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def takes(server):
    return sorted((server.base / "output" / "wan_s2v").glob("*/take.json"))


def finished_take(server):
    """The take of the newest finished video."""
    return max((server.base / "temp" / "wan_s2v").iterdir(), key=lambda take: (take / "take.json").stat().st_mtime)


def rendered(server, prompt):
    """Run; which clips of the finished video's take were written in it, and its file."""
    began = time.time_ns()
    (path,) = server.files(server.run(prompt))
    clips = sorted((finished_take(server) / "clips").iterdir())
    return [int(clip.stem) for clip in clips if clip.stat().st_mtime_ns > began], path


def with_storyboard(prompt, text, **inputs):
    prompt = change(prompt, "S2VLongVideo", storyboard=["board", 0])
    inputs = {"clip": ["bundled", 1], "text": text, **inputs}
    return {**prompt, "board": {"class_type": "S2VStoryboard", "inputs": inputs}}


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


def test_a_changed_value_of_a_guidance_node_makes_another_video(server):
    """And the first value again gives the first video, without a clip being made."""
    prompt = long_video(0.5, seed=12, cfg=4.0)
    files = [server.files(server.run(through(prompt, "RescaleCFG", multiplier=m)))[0] for m in (0.0, 1.0, 0.0)]
    one, other, again = (pictures(path) for path in files)
    assert not np.array_equal(one, other) and np.array_equal(one, again)
    made = [path.name for path in (server.base / "temp").glob("wan_s2v_*.mp4")]
    assert rendered(server, through(prompt, "RescaleCFG", multiplier=1.0))[0] == []
    assert [path.name for path in (server.base / "temp").glob("wan_s2v_*.mp4")] == made


def test_a_later_end_renders_only_the_clips_that_are_missing(server):
    """The first 5 seconds are 80 frames, of which the second clip has three; the whole sound is 84."""
    assert rendered(server, small(long_video(seed=21), 5.0))[0] == [0, 1]
    made, path = rendered(server, small(long_video(seed=21), 0.0))
    assert made == [1] and len(pictures(path)) == 84


def test_a_storyboard_reaches_its_clips_and_a_changed_line_renders_from_there(server):
    prompt = long_video(seed=22)
    plain = prompt["positive"]["inputs"]["text"]
    made, _ = rendered(server, with_storyboard(prompt, f"{plain}\n0:05 a face laughs"))
    before = clips_of(server)
    assert made == [0, 1]
    made, _ = rendered(server, with_storyboard(prompt, f"{plain}\n0:05 [seed 99] it frowns"))
    after = clips_of(server)
    assert made == [1] and (after[0] == before[0]).all() and not np.allclose(after[1], before[1])
    alone, _ = rendered(server, prompt)
    assert alone == [1], "the first clip is that of the plain prompt"


def clips_of(server):
    """Latents of the newest finished video's clips."""
    files = sorted((finished_take(server) / "latents").iterdir())
    return [load_file(file)["tensor"].numpy() for file in files]


def test_a_storyboard_that_is_wrong_is_refused_before_anything_runs(server):
    wrong = with_storyboard(long_video(1.0), "0:05 she talks\n0:75 she laughs")
    answer = str(server.post("/prompt", {"prompt": wrong}))
    assert "line 2: '0:75' is no time, such as 0:12.5" in answer
    entry = server.wait(server.submit(with_storyboard(long_video(1.0), "[image 3] she talks")))
    assert "the storyboard asks for image 3, and its images input holds 0" in server.failure(entry)


def test_frames_are_given_on_request_and_are_those_of_the_video(server):
    prompt = long_video(seed=23)
    prompt["frames"] = {"class_type": "SaveImage", "inputs": {"images": ["video", 1], "filename_prefix": "frames"}}
    (path,) = server.files(server.run(prompt))
    assert path.suffix == ".mp4", "without the request there is nothing to save"
    saved = server.files(server.run(change(prompt, "S2VLongVideo", with_images=True)))
    (path,) = [path for path in saved if path.suffix == ".mp4"]
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(saved) if path.suffix == ".png"])
    video = pictures(path)
    assert images.shape == video.shape == (84, 64, 64, 3)
    brightness, filmed = (pixels @ np.array([0.299, 0.587, 0.114]) for pixels in (images, video))
    assert np.abs(brightness - filmed).mean() < 3, "a compressed file of the same frames"


def test_cancel_keeps_the_finished_clip_and_a_second_run_goes_on_to_the_same_video(server):
    prompt, before = long_video(seed=5, steps=12), set(takes(server))
    running = server.submit(prompt)
    wait_for_clip(server, 0)
    server.interrupt()
    stopped = server.wait(running)
    assert stopped["status"]["status_str"] == "error"
    assert dict(stopped["status"]["messages"]).keys() & {"execution_interrupted"}
    (take,) = set(takes(server)) - before
    segment = take.parent / "clips" / "0000.mp4"
    written = segment.stat().st_mtime_ns, segment.read_bytes()
    resumed = server.submit(prompt)
    began = time.monotonic()
    while segment.exists() and time.monotonic() - began < 300:
        with contextlib.suppress(FileNotFoundError):   # a finished take goes
            assert (segment.stat().st_mtime_ns, segment.read_bytes()) == written
        time.sleep(0.02)
    (continued,) = server.files(server.wait(resumed))
    assert set(takes(server)) <= before
    assert np.array_equal(pictures(continued), pictures(in_one_go(server, prompt)))


def in_one_go(server, prompt):
    """The same job without anything that is left of it: the same picture comes from elsewhere, the video is gone."""
    for finished in (server.base / "temp").glob("wan_s2v_*.mp4"):
        finished.unlink()
    shutil.rmtree(server.base / "temp" / "wan_s2v", ignore_errors=True)
    prompt = {**prompt, "image": {"class_type": "LoadImage", "inputs": {"image": "drawn.png"}}}
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
    """With a LoRA, and guidance that keeps numbers of the run that it is in."""
    furnish(tmp_path)
    prompt = long_video(seed=6, steps=6)
    prompt = through(prompt, "LoraLoaderModelOnly", lora_name="bundled_lora.safetensors", strength_model=0.1)
    prompt = through(prompt, "APG", eta=0.5, norm_threshold=5.0, momentum=-0.5)
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


def test_a_pose_has_a_strength_and_colours_are_the_pictures(server):
    """None of a pose is no pose; a weak one is neither."""

    def made(**values):
        (path,) = server.files(server.run(change(posed, "S2VLongVideo", **values)))
        return pictures(path)

    posed = small(with_bundled(workflow("s2v_pose")), 0.5)
    full, weak, none, early = made(), made(pose_strength=0.5), made(pose_strength=0.0), made(pose_end=0.2)
    matched = made(match_colour="lab")
    for spec in posed.values():
        spec["inputs"].pop("pose_video", None)
    assert np.array_equal(none, made())
    different = [full, weak, none, early, matched]
    assert all(not np.array_equal(a, b) for i, a in enumerate(different) for b in different[:i])

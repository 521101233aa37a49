"""The pipeline from Python: plan, call, save."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from s2v_core import WanS2VPipeline, components
from s2v_core.errors import ConfigError, OutputError, ShapeError
from s2v_core.geometry import VideoSize
from s2v_core.media.video_io import probe_video, read_frames
from s2v_core.models.tiles import TiledVAE
from s2v_core.pipeline import RunResult
from s2v_core.planning import Way
from s2v_core.request import Request
from s2v_core.types import ClipSettings, Denoiser, SamplerSettings

from ..cli.media import picture, silent_video, tone


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    picture(folder / "face.png", 96, 64)
    tone(folder / "speech.wav", seconds=0.5)
    return folder


@pytest.fixture(scope="module")
def pipe() -> WanS2VPipeline:
    return WanS2VPipeline.from_pretrained(device_map="cpu")


def arguments(media: Path) -> dict:
    return {
        "audio_path": media / "speech.wav",
        "image_path": media / "face.png",
        "prompt": "a person",
        "height": 64,
        "width": 64,
        "num_inference_steps": 1,
    }


def test_calling_gives_a_video_to_save(pipe: WanS2VPipeline, media: Path, tmp_path: Path) -> None:
    result = pipe(**arguments(media))
    info = probe_video(result.save(tmp_path / "out.mp4"))
    assert (info.num_frames, info.width, info.height, info.fps) == (8, 64, 64, 16.0)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")


def test_the_generators_seed_is_the_videos(pipe: WanS2VPipeline, media: Path, tmp_path: Path) -> None:
    def frames(generator: torch.Generator) -> np.ndarray:
        path = pipe(**arguments(media), generator=generator).save(tmp_path / "seeded.mp4")
        return np.stack(list(read_frames(path)))

    one, again, other = (frames(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_any_generators_seed_will_do(pipe: WanS2VPipeline, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of those that `Generator.seed()` draws are 2**63 or more."""
    seen: list[Request] = []
    monkeypatch.setattr(pipe, "run", lambda request, progress: seen.append(request) or RunResult(
        path=media, num_frames=8, seconds=0.5))  # fmt: skip
    pipe(**arguments(media), generator=torch.Generator().manual_seed(2**64 - 3))
    assert seen[0].seed == 2**63 - 3


def test_fewer_frames_on_request_and_never_more_than_the_sound(pipe: WanS2VPipeline, media: Path) -> None:
    assert pipe(**arguments(media), num_frames=3).num_frames == 3
    request = Request(image=media / "face.png", audio=media / "speech.wav", num_frames=99)
    plan = pipe.plan(request)
    assert plan.num_frames == 8 and "the video ends with it" in plan.remarks[0]


def test_half_a_size_and_wrong_sizes_are_refused(pipe: WanS2VPipeline, media: Path) -> None:
    with pytest.raises(ConfigError, match="both height and width"):
        pipe(**arguments(media) | {"width": None})
    with pytest.raises(ShapeError, match="multiples of 16.*833x481"):
        VideoSize(width=833, height=481)


def test_files_may_be_named_by_text_and_the_output_is_for_save_to_say(pipe: WanS2VPipeline, media: Path) -> None:
    request = Request(image=str(media / "face.png"), audio="~/speech.wav", take="take", pose_video="pose.mp4")
    assert (request.image, request.audio) == (media / "face.png", Path.home() / "speech.wav")
    assert (request.take, request.pose_video, request.storyboard) == (Path("take"), Path("pose.mp4"), None)
    with pytest.raises(ConfigError, match=r"leave output out and name the file to its save\(\)"):
        pipe(**arguments(media), output="talk.mp4")


def test_a_plan_needs_no_weights_and_a_run_does(media: Path, tmp_path: Path) -> None:
    planner = WanS2VPipeline.from_pretrained(device_map="cpu", load_weights=False)
    request = Request(image=media / "face.png", audio=media / "speech.wav", output=tmp_path / "out.mp4")
    plan = planner.plan(request)
    assert plan.size == VideoSize(width=128, height=64) and len(plan.clips) == 1 and "128x64, 8 frames" in str(plan)
    with pytest.raises(ConfigError, match="plan only"):
        planner.run(request)


def test_a_saved_video_in_an_impossible_place_is_one_sentence(pipe: WanS2VPipeline, media: Path) -> None:
    result = pipe(**arguments(media))
    with pytest.raises(OutputError, match="cannot write .*nowhere"):
        result.save(media / "nowhere" / "out.mp4")


def test_the_estimate_grows_with_the_picture_not_with_the_sound(pipe: WanS2VPipeline) -> None:
    small, medium, large = (
        pipe.components.estimate(VideoSize(width=side, height=side), ClipSettings()) for side in (64, 128, 256)
    )
    assert small.weights == large.weights
    assert small.decoding < large.decoding < 16 * small.decoding   # its kernels do not grow
    assert large.host - medium.host == 4 * (medium.host - small.host) > 0   # beside frames there is the sound encoder


def test_where_memory_is_short_a_job_is_cut_smaller_and_the_dtype_asked_for_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = WanS2VPipeline.from_pretrained(torch_dtype=torch.float32, device_map="cpu", load_weights=False)
    size = VideoSize(width=512, height=128)
    ample = pipe.components.estimate(size, ClipSettings())
    assert pipe.components.way == Way(dtype=torch.float32, offload="none")
    monkeypatch.setattr("s2v_core.components.free_memory", lambda device: 0)
    short = pipe.components.estimate(size, ClipSettings())
    assert short.denoising < ample.denoising and short.decoding < ample.decoding
    assert pipe.components.way.dtype == torch.float32 and pipe.components.way.chunk_tokens is not None
    assert pipe.components.way.vae_tiles > 1
    monkeypatch.undo()
    pipe.components.estimate(size, ClipSettings())
    assert pipe.components.way == Way(dtype=torch.float32, offload="none")


def test_the_autoencoder_works_in_the_tiles_that_were_planned(
    pipe: WanS2VPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.components, "way", Way(dtype=torch.float32, offload="none", vae_tiles=2))
    codec = pipe.components.codec
    assert isinstance(codec, TiledVAE) and codec.num_tiles == 2


def test_the_text_encoder_is_gone_before_denoising_begins_and_the_sound_encoder_is_at_home(
    pipe: WanS2VPipeline, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, here, seen = [], [], []
    build, denoising, visiting = components.build_text_encoder, pipe.components.denoising, pipe.components._visiting

    def noted(config: object) -> torch.nn.Module:
        encoder = build(config)
        built.append(weakref.ref(encoder))
        return encoder

    @contextmanager
    def visit(module: torch.nn.Module) -> Iterator[None]:
        with visiting(module):
            here.append(type(module).__name__)
            yield
        here.remove(type(module).__name__)

    @contextmanager
    def watched(settings: SamplerSettings) -> Iterator[Denoiser]:
        with denoising(settings) as denoiser:
            yield lambda *inputs: (seen.append(([encoder() for encoder in built], list(here))), denoiser(*inputs))[1]

    monkeypatch.setattr(components, "build_text_encoder", noted)
    monkeypatch.setattr(pipe.components, "_visiting", visit)
    monkeypatch.setattr(pipe.components, "denoising", watched)
    pipe(**arguments(media))
    assert seen == [([None], [])]


def test_starting_from_the_image_and_following_a_pose_run_through(pipe: WanS2VPipeline, media: Path) -> None:
    plain = pipe(**arguments(media))
    posed = pipe(**arguments(media), pose_video=silent_video(media / "pose.mp4", frames=6), start_from_image=True)
    one, other = (np.stack(list(read_frames(r._video))) for r in (plain, posed))
    assert len(one) == len(other) == 8 and not np.array_equal(one, other)

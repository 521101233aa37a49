"""The recorded tables of schedules, clip counts and clip traces, where they state what we keep.

A trace is the reference's loop run with a codec whose pixels are numbers: frame i of clip r's decode is
1000 * (r + 1) + i, the reference picture is 1. Ours is run with such a codec on plans with the reference's own
timing (clip r hears audio frames r*n to (r+1)*n), and must encode the very same windows.
"""

from __future__ import annotations

import json

import pytest
import torch

from s2v_core.geometry import VideoSize, num_frames_of
from s2v_core.sampling.sigmas import make_schedule
from s2v_core.types import ClipSettings, Conditioning
from s2v_core.video.generate import generate_clips
from s2v_core.video.timeline import plan_clips

from .adapters.generate import reference_plans
from .case import ROOT

SIZE = VideoSize(width=64, height=64)
TRACES = sorted(ROOT.glob("**/trace_*.json"))


def read_table(name):
    paths = sorted(ROOT.glob(f"**/{name}"))
    assert paths, f"{ROOT} has no {name}"
    return [row for path in paths for row in json.loads(path.read_text(encoding="utf-8"))]


def name_of_schedule(row):
    return f"{row['solver']}-{row['steps']}-{row['shift']}"


@pytest.mark.parametrize("row", read_table("sigmas.json"), ids=name_of_schedule)
def test_schedules(row):
    schedule = make_schedule(row["solver"], row["steps"], row["shift"])
    assert schedule.timesteps.tolist() == row["timesteps"]
    assert schedule.sigmas.tolist() == pytest.approx(row["sigmas"], abs=2e-6)


@pytest.mark.parametrize("row", read_table("clip_table.json"), ids=lambda row: f"{row['infer_frames']}-frames")
def test_clip_counts(row):
    settings = ClipSettings(frames=row["infer_frames"], motion_frames=row["motion_frames"])
    assert settings.num_motion_latents == row["lat_motion_frames"]
    assert settings.num_latents == row["lat_target_frames"]
    for clips, frames in row["total_frames"].items():
        plans = plan_clips(frames, settings, seed=0, start_from_image=False)
        assert [plan.num_kept for plan in plans] == [
            row["first_clip_frames"],
            *[row["later_clip_frames"]] * (int(clips) - 1),
        ]
        assert len(plan_clips(frames + 1, settings, seed=0, start_from_image=False)) == int(clips) + 1


class NumberedCodec:
    """Pixels say which frame of which decode they are; every encoded window is kept, every decoded latent counted."""

    def __init__(self, num_frames):
        self.num_frames = num_frames      # of a motion window
        self.windows = []
        self.decoded = []                 # latent frames of each stream

    def encode(self, frames):
        if frames.shape[2] == self.num_frames:
            self.windows.append(frames[0, 0, :, 0, 0].tolist())
        return torch.zeros(1, 16, 1 + (frames.shape[2] - 1) // 4, SIZE.height // 8, SIZE.width // 8)

    def decoder(self):
        self.decoded.append(0)
        return self

    def prime(self, latents):
        self.decoded[-1] += latents.shape[2]

    def decode(self, latents):
        for _ in range(latents.shape[2]):
            start = num_frames_of(self.decoded[-1]) if self.decoded[-1] else 0
            self.decoded[-1] += 1
            numbers = torch.arange(start, num_frames_of(self.decoded[-1])) + 1000.0 * len(self.decoded)
            yield numbers.view(1, 1, -1, 1, 1).expand(1, 3, -1, SIZE.height, SIZE.width)


class Features:
    def __init__(self):
        self.asked = []

    def window(self, start_frame, stop_frame):
        self.asked.append([start_frame, stop_frame])
        return torch.zeros(1, 1, 1, stop_frame - start_frame)


def window_of(trace, clip, num_frames):
    """The recorded window of a clip as frame numbers."""
    if isinstance(clip["motion_window_used"], str):   # described in words: the numbers of its end are all there is
        tail = clip["motion_window_raw_tail"]
        return [0.0] * (num_frames - len(tail)) + tail
    window = []
    for part in clip["motion_window_used"]:
        if "zeros" in part:
            window += [0.0] * part["zeros"]
        else:
            first, last = part["decoded_frames"]
            window += [1000.0 * (part["clip"] + 1) + i for i in range(first, last + 1)]
    return window


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_traces(path):
    trace = json.loads(path.read_text(encoding="utf-8"))
    settings = ClipSettings(frames=trace["infer_frames"])
    codec, sound, seeds = NumberedCodec(settings.motion_frames), Features(), []
    conditioning = Conditioning(
        size=SIZE,
        prompt_embeds=torch.zeros(1, 1, 1),
        negative_prompt_embeds=torch.zeros(1, 1, 1),
        reference_frames=torch.ones(1, 3, 1, SIZE.height, SIZE.width),
        reference_latent=torch.zeros(1, 16, 1, SIZE.height // 8, SIZE.width // 8),
        audio=sound,
    )
    first_seed = trace["clips"][0]["seed"]
    plans = reference_plans(len(trace["clips"]), settings, seed=first_seed, has_past=trace["init_first_frame"])
    clips = list(
        generate_clips(
            plans, conditioning, lambda inputs, noise, on_step: noise, codec, settings,
            on_step=lambda done, total: None,
            noise=lambda plan, shape: seeds.append(plan.seed) or torch.zeros(shape),
        )  # fmt: skip
    )
    recorded = trace["clips"]
    assert sound.asked == [clip["audio_slice"] for clip in recorded]
    assert seeds == [clip["seed"] for clip in recorded]
    assert codec.decoded == [clip["decode_latents"] for clip in recorded]
    assert [num_frames_of(count) for count in codec.decoded] == [clip["decoded_frames"] for clip in recorded]
    for r, (clip, theirs) in enumerate(zip(clips, recorded, strict=True)):
        first, last = theirs["kept_decoded_frames"]
        assert clip.latents.shape[2] == theirs["lat_target_frames"]
        assert clip.frames[0, 0, :, 0, 0].tolist() == [1000.0 * (r + 1) + i for i in range(first, last + 1)]
        assert clip.frames.shape[2] == theirs["kept"]
    seen = [clip for clip in recorded if not clip["drop_motion_frames"]]
    assert codec.windows == [window_of(trace, clip, settings.motion_frames) for clip in seen]
    for window, clip in zip(codec.windows, seen, strict=True):
        assert window[-len(clip["motion_window_raw_tail"]) :] == clip["motion_window_raw_tail"]
    assert sum(clip.frames.shape[2] for clip in clips) == trace["output_frames"]
    assert [clip.plan.uses_motion for clip in clips] == [not clip["drop_motion_frames"] for clip in recorded]


def test_there_are_traces():
    assert TRACES, f"{ROOT} has no trace_*.json"

"""The plan of a video: every frame once, in order, on the sound's clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from s2v_core.errors import ConfigError
from s2v_core.geometry import LatentGrid
from s2v_core.models.positions import reference_positions, video_positions
from s2v_core.request import Request
from s2v_core.types import ClipSettings
from s2v_core.video.timeline import plan_clips


@pytest.mark.parametrize("start_from_image", [False, True])
@pytest.mark.parametrize("frames", [4, 8, 12, 48, 80])
def test_every_length_is_covered_once_in_order_by_the_fewest_clips(frames, start_from_image):
    settings = ClipSettings(frames=frames)
    warmup = 0 if start_from_image else settings.warmup_frames
    for num_frames in range(1, 401):
        plans = plan_clips(num_frames, settings, seed=7, start_from_image=start_from_image)
        heard = [k for plan in plans for k in range(plan.first_kept, plan.first_kept + plan.num_kept)]
        assert heard == list(range(num_frames))
        assert all(plan.num_kept > 0 and plan.stop_frame - plan.start_frame == frames for plan in plans)
        assert frames * (len(plans) - 1) - warmup < num_frames


def test_a_video_without_a_past_warms_up_before_the_sound():
    first, second, last = plan_clips(200, ClipSettings(), seed=42, start_from_image=False)
    assert (first.start_frame, first.stop_frame, first.trim_start, first.num_kept) == (-3, 77, 3, 77)
    assert (second.start_frame, second.stop_frame, second.trim_start, second.num_kept) == (77, 157, 0, 80)
    assert (last.start_frame, last.trim_end, last.num_kept) == (157, 37, 43)
    assert [plan.uses_motion for plan in (first, second, last)] == [False, True, True]


def test_a_video_from_the_picture_starts_with_the_sound_and_has_a_past():
    first, second = plan_clips(81, ClipSettings(), seed=0, start_from_image=True)
    assert (first.start_frame, first.trim_start, first.num_kept, first.uses_motion) == (0, 0, 80, True)
    assert (second.start_frame, second.num_kept) == (80, 1)


def test_each_clip_has_its_own_seed():
    assert [plan.seed for plan in plan_clips(500, ClipSettings(), seed=40, start_from_image=False)] == [*range(40, 47)]


def test_no_frames_is_refused():
    with pytest.raises(ConfigError, match="got 0"):
        plan_clips(0, ClipSettings(), seed=0, start_from_image=False)


def test_no_frame_of_a_clip_stands_where_the_reference_picture_does():
    longest = replace(Request(image="face.png", audio="speech.wav"), clip_frames=120)
    grid = LatentGrid(frames=longest.clip_settings().num_latents, height=2, width=2)
    assert video_positions(grid)[:, 0].max() == reference_positions(grid)[0, 0] - 1
    with pytest.raises(ConfigError, match="clip_frames must be at most 120, got 124"):
        replace(longest, clip_frames=124)

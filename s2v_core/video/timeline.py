"""Which clips make a video of a given length, and which sound drives each of their frames.

Knows no tensors: pure arithmetic on frame counts.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..types import ClipPlan, ClipSettings


def plan_clips(num_frames: int, settings: ClipSettings, *, seed: int, start_from_image: bool) -> tuple[ClipPlan, ...]:
    """The fewest clips whose kept frames are exactly frames 0 to num_frames - 1, frame k driven by audio frame k.

    A first clip without a past opens with `warmup_frames` frames that are decoded badly and dropped, so it starts
    that much before the sound and its first *kept* frame meets audio frame 0. (The reference starts it at audio
    frame 0 and drops the head all the same, which puts the picture ahead of the sound for the whole video.)

    Args:
        num_frames: of the video, 1 or more.
        seed: clip r draws its noise from seed + r.
        start_from_image: the video continues from the reference picture, so clip 0 has a past and no warm-up.
    """
    if num_frames < 1:
        raise ConfigError(f"a video needs at least 1 frame, got {num_frames}")
    warmup = 0 if start_from_image else settings.warmup_frames
    num_clips = -(-(num_frames + warmup) // settings.frames)
    return tuple(
        ClipPlan(
            index=r,
            start_frame=r * settings.frames - warmup,
            stop_frame=(r + 1) * settings.frames - warmup,
            seed=seed + r,
            uses_motion=start_from_image or r > 0,
            trim_start=warmup if r == 0 else 0,
            trim_end=max(0, (r + 1) * settings.frames - warmup - num_frames),
        )
        for r in range(num_clips)
    )

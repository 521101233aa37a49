"""What a clip is shown of the frames before it: a sliding window of decoded frames, in float.

Knows no model and no files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import VideoSize
from ..types import STILL_FRAMES, MotionMemory


def blank_memory(size: VideoSize, num_frames: int) -> MotionMemory:
    """Nothing seen yet: [1, 3, num_frames, H, W] of grey."""
    return MotionMemory(frames=torch.zeros(1, 3, num_frames, size.height, size.width))


def memory_from_image(reference_frames: Tensor, num_frames: int, still_frames: int = STILL_FRAMES) -> MotionMemory:
    """As if the video had stood on the reference picture for its last moments, and nothing had been seen before.

    Args:
        reference_frames: [1, 3, 1, H, W] in [-1, 1].
        num_frames: of the memory.
        still_frames: of the picture, the last ones; as many as `num_frames` leave no grey.

    Source: the reference's `init_first_frame`.
    """
    _, channels, _, height, width = reference_frames.shape
    frames = torch.zeros(1, channels, num_frames, height, width)
    frames[:, :, -still_frames:] = reference_frames.float().cpu()
    return MotionMemory(frames=frames)


def after(memory: MotionMemory, kept_frames: Tensor) -> MotionMemory:
    """The memory once `kept_frames` [1, 3, F, H, W] have been seen: as long as before, the oldest frames forgotten."""
    num_frames = memory.frames.shape[2]
    seen = torch.cat([memory.frames[:, :, kept_frames.shape[2]:], kept_frames[:, :, -num_frames:]], dim=2)
    return MotionMemory(frames=seen)

"""All pixel, latent-frame and token arithmetic, once.

Knows no tensors, no files and no settings but the numbers it is handed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ShapeError

SPATIAL_STRIDE = 8    # pixels to a latent cell, both ways
TEMPORAL_STRIDE = 4   # frames to a latent frame, after the first of a stream
PATCH = 2             # latent cells to a token, both ways
REFERENCE_TIME = 30   # latent frame at which the reference picture's tokens stand: beyond the 20 of a clip
SIZE_MULTIPLE = 64    # the reference rounds a video's sides to this: whole tokens in the 4x motion bucket too


def num_latent_frames(num_frames: int) -> int:
    """Latent frames of a stream of `num_frames` frames: the first stands alone, then four to one."""
    if num_frames < 1:
        raise ShapeError(f"a video needs at least 1 frame, got {num_frames}")
    return 1 + (num_frames - 1) // TEMPORAL_STRIDE


def num_frames_of(num_latents: int) -> int:
    """Frames that a stream of `num_latents` latent frames decodes to."""
    if num_latents < 1:
        raise ShapeError(f"a stream needs at least 1 latent frame, got {num_latents}")
    return 1 + (num_latents - 1) * TEMPORAL_STRIDE


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSize:
    """A video's size in pixels; both sides are multiples of 16 (one token)."""

    width: int
    height: int

    def __post_init__(self) -> None:
        step = SPATIAL_STRIDE * PATCH
        if self.width < SIZE_MULTIPLE or self.height < SIZE_MULTIPLE or self.width % step or self.height % step:
            raise ShapeError(
                f"a video's width and height must be multiples of {step} and at least {SIZE_MULTIPLE}, "
                f"got {self.width}x{self.height}; try {_nearest(self.width)}x{_nearest(self.height)}"
            )

    def latent_grid(self, num_latents: int) -> LatentGrid:
        return LatentGrid(frames=num_latents, height=self.height // SPATIAL_STRIDE, width=self.width // SPATIAL_STRIDE)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def _nearest(side: int) -> int:
    step = SPATIAL_STRIDE * PATCH
    return max(SIZE_MULTIPLE, round(side / step) * step)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentGrid:
    """Latents of one stretch of video: `frames` latent frames of `height` x `width` cells."""

    frames: int
    height: int
    width: int

    @property
    def tokens_per_frame(self) -> int:
        return (self.height // PATCH) * (self.width // PATCH)

    @property
    def num_tokens(self) -> int:
        return self.frames * self.tokens_per_frame


def fit_size(width: int, height: int, max_area: int) -> VideoSize:
    """The video size for a picture: its shape, an area of at most about `max_area` pixels, sides in 64s.

    A picture that is already small enough keeps its size, rounded up to 64.

    Args:
        width, height: of the picture, pixels.
        max_area: pixels; Wan-S2V ships with 832*480 and 1280*720.

    Raises: ShapeError for a side below 1 pixel or an area below 64*64.
    Source: the reference's `get_size_less_than_area`; it can return 0 for extreme shapes, this never does.
    """
    if width < 1 or height < 1:
        raise ShapeError(f"a picture needs at least 1x1 pixels, got {width}x{height}")
    if max_area < SIZE_MULTIPLE**2:
        raise ShapeError(f"max_area must be at least {SIZE_MULTIPLE**2} pixels, got {max_area}")
    for scale in _scales(width, height, max_area):
        w, h = _round_up(int(width * scale)), _round_up(int(height * scale))
        if w * h <= max_area:
            return VideoSize(width=w, height=h)
    return _thin_size(width, height, max_area)


def _scales(width: int, height: int, max_area: int) -> list[float]:
    """A hundred scales, falling: from the one that fills the area to one that fits it whatever the rounding adds."""
    area = width * height
    if area <= max_area:
        largest, smallest = 1.0, 0.1
    else:
        slack = SIZE_MULTIPLE - 1
        b = slack * (width + height)
        largest = math.sqrt(max_area / area)
        smallest = (math.sqrt(b * b - 2 * area * (slack * slack - max_area)) - b) / (2 * area)
    return [largest - (largest - smallest) * i / 100 for i in range(100)]


def _round_up(side: int) -> int:
    return max(SIZE_MULTIPLE, math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def _thin_size(width: int, height: int, max_area: int) -> VideoSize:
    """For pictures so thin that no scale fits: the shape of the area itself, sides in 64s."""
    ratio = width / height
    w, h = (int(math.sqrt(max_area * r) // SIZE_MULTIPLE) * SIZE_MULTIPLE for r in (ratio, 1 / ratio))
    if w >= width or h >= height:
        w, h = width // SIZE_MULTIPLE * SIZE_MULTIPLE, height // SIZE_MULTIPLE * SIZE_MULTIPLE
    longest = max_area // SIZE_MULTIPLE // SIZE_MULTIPLE * SIZE_MULTIPLE
    return VideoSize(width=min(max(w, SIZE_MULTIPLE), longest), height=min(max(h, SIZE_MULTIPLE), longest))


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """Which tokens of a sequence are what: video, then reference, then motion."""

    num_video: int
    num_reference: int
    num_motion: int
    tokens_per_frame: int

    @property
    def total(self) -> int:
        return self.num_video + self.num_reference + self.num_motion

    @property
    def num_frames(self) -> int:
        return self.num_video // self.tokens_per_frame

    @property
    def video(self) -> slice:
        return slice(0, self.num_video)

    @property
    def reference(self) -> slice:
        return slice(self.num_video, self.num_video + self.num_reference)

    @property
    def motion(self) -> slice:
        return slice(self.num_video + self.num_reference, self.total)


def motion_token_counts(height: int, width: int, buckets: tuple[int, int, int] = (1, 2, 16)) -> tuple[int, int, int]:
    """Tokens of the near, middle and far motion buckets for latents of `height` x `width` cells.

    Floor division, as in the reference: rows and columns that do not fill a patch are lost.
    """
    if height < 8 or width < 8:
        raise ShapeError(f"motion latents need at least 8x8 cells (64x64 pixels), got {height}x{width}")
    near, middle, far = buckets
    return (
        near * (height // 2) * (width // 2),
        (middle // 2) * (height // 4) * (width // 4),
        (far // 4) * (height // 8) * (width // 8),
    )


def token_layout(grid: LatentGrid, *, has_motion: bool) -> TokenLayout:
    """The sequence of one forward; without a past there are no motion tokens."""
    return TokenLayout(
        num_video=grid.num_tokens,
        num_reference=grid.tokens_per_frame,
        num_motion=sum(motion_token_counts(grid.height, grid.width)) if has_motion else 0,
        tokens_per_frame=grid.tokens_per_frame,
    )

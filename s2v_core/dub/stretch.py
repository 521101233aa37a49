"""A stretch of footage without a break in the face: its frames, crops and masks, as the clip loop takes them.

Knows how frames are cut out and described to the loop; not how stretches are found or what becomes of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..conditioning.audio import SoundFeatures
from ..config import FEATURE_VIDEO_RATE
from ..geometry import TEMPORAL_STRIDE, VideoSize
from ..types import ClipPlan, SourceLatents, VideoCodec
from .crop import Rect, inner_rect, latent_mask, put_back, take_crop
from .masks import Region, feathered
from .paste import paste
from .request import Box
from .shot import FrameReader
from .timeline import Timeline

# Frames before a clip that the autoencoder sees first, so that the clip's own latents are those of a running stream.
LEAD_LATENTS = 3
LEAD_FRAMES = 1 + (LEAD_LATENTS - 1) * TEMPORAL_STRIDE


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Consecutive frames of the result that show the face. Of every `draw_every` frames the model draws the first."""

    first: int               # of the result's frames
    faces: tuple[Box, ...]   # of each frame, pixels
    crops: np.ndarray        # [F, 4]
    draw_every: int
    plans: tuple[ClipPlan, ...]

    @property
    def num_frames(self) -> int:
        return len(self.faces)

    @property
    def stop(self) -> int:
        return self.first + self.num_frames


def num_drawn(num_frames: int, draw_every: int) -> int:
    """Frames that the model draws of so many."""
    return -(-num_frames // draw_every)


@dataclass(frozen=True, kw_only=True, slots=True)
class Editor:
    """Cuts frames of the result out of the footage, and puts what was drawn back."""

    timeline: Timeline
    region: Region
    size: VideoSize
    mask_padding: float

    def alpha(self, stretch: Stretch, frame: int) -> tuple[np.ndarray, Rect]:
        """[rh, rw] how much of each pixel is made anew in a frame of the stretch, and the pixels it is about."""
        face, rect = stretch.faces[frame], inner_rect(tuple(stretch.crops[frame]))
        number, seconds = self._shown(stretch, frame)
        hard = self.region.hard(number, seconds, face, rect)
        return feathered(hard, face[3] - face[1], self.mask_padding), rect

    def crop(self, reader: FrameReader, stretch: Stretch, frame: int) -> Tensor:
        """[3, h, w] in [-1, 1] of a frame of the stretch, at the model's size."""
        picture = reader.picture(self._shown(stretch, frame)[0])
        return take_crop(picture, tuple(stretch.crops[frame]), self.size)

    def paste(self, picture: np.ndarray, stretch: Stretch, frame: int, drawn: Tensor) -> np.ndarray:
        """The picture of a frame of the stretch with what the model drew, [3, h, w] in [-1, 1], in it."""
        alpha, rect = self.alpha(stretch, frame)
        return paste(picture, put_back(drawn, tuple(stretch.crops[frame]), rect), alpha, rect)

    def _shown(self, stretch: Stretch, frame: int) -> tuple[int, float]:
        """Number and time of the frame of the footage."""
        at = stretch.first + frame
        return self.timeline.numbers[at], self.timeline.times[self.timeline.numbers[at]]


class StretchFootage:
    """A stretch as the `SourceFootage` of the clip loop: frame k is the k-th that the model draws."""

    def __init__(self, editor: Editor, stretch: Stretch, reader: FrameReader, strength: float) -> None:
        self._editor, self._stretch, self._reader, self._strength = editor, stretch, reader, strength

    def picture(self, frame: int) -> Tensor:
        """[3, h, w] in [-1, 1]."""
        return self._editor.crop(self._reader, self._stretch, self._of(frame))

    def clip(self, start_frame: int, stop_frame: int, codec: VideoCodec) -> SourceLatents:
        pictures = [self.picture(k) for k in range(start_frame - LEAD_FRAMES, stop_frame)]
        latents = codec.encode(torch.stack(pictures, dim=1)[None])[:, :, LEAD_LATENTS:]
        masks = [self._mask(k) for k in range(start_frame, stop_frame, TEMPORAL_STRIDE)]
        return SourceLatents(latents=latents, mask=torch.stack(masks)[None, None], strength=self._strength)

    def _mask(self, first: int) -> Tensor:
        """[h, w] of the latent frame that begins with frame `first`."""
        frames = sorted({self._of(k) for k in range(first, first + TEMPORAL_STRIDE)})
        alphas = [self._editor.alpha(self._stretch, frame)[0] for frame in frames]
        return latent_mask(alphas, [tuple(self._stretch.crops[frame]) for frame in frames], self._editor.size)

    def _of(self, drawn: int) -> int:
        """The frame of the stretch; before its first and past its last the model is shown these."""
        return min(max(drawn * self._stretch.draw_every, 0), self._stretch.num_frames - 1)


class StretchSound:
    """The features of what is heard when each drawn frame shows: the `AudioFeatures` of the clip loop.

    Taken from the features at 30 a second, the nearest in time, which is how the model was taught at its own rate:
    so any frame rate, also a varying one, is heard in time.
    """

    def __init__(self, features: SoundFeatures, timeline: Timeline, stretch: Stretch, duration: Fraction) -> None:
        """`features` at 30 a second, of sound that lasts `duration` seconds."""
        self._features, self._timeline, self._stretch = features, timeline, stretch
        self._seconds = float(duration)
        self._last = math.ceil(duration * FEATURE_VIDEO_RATE) - 1

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        indices = torch.tensor([self._index(k) for k in range(start_frame, stop_frame)])
        first = int(indices.min())
        return self._features.window(first, int(indices.max()) + 1)[..., indices - first]

    def _index(self, drawn: int) -> int:
        seconds = self._timeline.seconds_at(self._stretch.first + drawn * self._stretch.draw_every)
        index = round(seconds * FEATURE_VIDEO_RATE)
        return min(index, self._last) if seconds < self._seconds else max(index, self._last + 1)

"""What one dubbing job asks for, in one frozen object that is checked when it is made.

Knows no files' contents and no models; `run.py` turns a request into a video.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError
from ..request import ClipRequest

LENGTHS = ("hold", "loop", "trim")

Box = tuple[float, float, float, float]
"""left, top, right, bottom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DubRequest(ClipRequest):
    """One job. None means: what the model ships with, or what the footage suggests (a square of the model's area)."""

    video: Path                          # the footage
    audio: Path                          # the new sound, from the footage's first frame on
    output: Path
    mask: Path | None = None             # picture or video, white where the mouth is made anew; None: the lower face
    face_box: Box | Path | None = None   # shares of the picture's sides; a CSV file: one box a frame; None: found
    face: int | None = None              # which face is dubbed, counted from the left; None: the largest
    mask_padding: float = 0.0            # how far the mask grows, in heights of the face
    strength: float = 1.0                # noise that the mouth is made from; below 1 something of the old one stays
    length: str = "hold"                 # what happens when sound and footage are not equally long
    start: float = 0.0                   # seconds of the footage: nothing is changed before
    end: float | None = None             # and after; None: the footage's end
    draw_every: int | None = None        # the model draws every n-th frame; None: so that it draws 30 a second at most

    def __post_init__(self) -> None:
        ClipRequest.__post_init__(self)   # a frozen class with slots has no super() of its own
        if not 0 < self.strength <= 1:
            raise ConfigError(f"strength must be above 0 and at most 1, got {self.strength:g}")
        if not -0.5 <= self.mask_padding <= 2:
            raise ConfigError(f"mask padding must be -0.5 to 2 heights of the face, got {self.mask_padding:g}")
        if self.length not in LENGTHS:
            raise ConfigError(f"length must be one of {', '.join(LENGTHS)}; got {self.length!r}")
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ConfigError(f"start must be 0 or more and end after it; got {self.start:g} and {self.end}")
        if self.draw_every is not None and self.draw_every < 1:
            raise ConfigError(f"draw-every must be 1 or more, got {self.draw_every}")
        if self.face is not None and self.face < 1:
            raise ConfigError(f"faces are counted from 1, from left to right; got {self.face}")
        if self.face is not None and (self.face_box is not None or self.mask is not None):
            raise ConfigError(f"face {self.face} is one of the found ones: leave it out beside a face box or mask")
        if not isinstance(self.face_box, Path | None):
            check_box(self.face_box, "face box")


def check_box(box: Box, name: str) -> None:
    """Raises: ConfigError unless it is a box in shares of a picture's sides."""
    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        told = ",".join(f"{side:g}" for side in box)
        raise ConfigError(
            f"{name} {told} is no box: give left,top,right,bottom as shares of the picture's sides, such as "
            "0.3,0.2,0.6,0.7"
        )

"""Every option of `wan-s2v dub`: those of `generate` that mean the same, and its own; and the request they make.

Knows how options are written; not what is done with them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..options import (
    COMMAND,
    JOB,
    OPTIONS,
    PICTURE,
    WHAT,
    Option,
    file,
    number,
    request_fields,
    seconds,
    size,
    text,
    whole,
)

if TYPE_CHECKING:  # imports torch, which nobody who asks for --help should wait for
    from .request import DubRequest

FACE = "where the mouth is"
INPUTS = ("video", "audio", "mask", "face-box")   # files that the output must not overwrite


def face_box(name: str, value: object) -> tuple[float, ...] | Path:
    """left,top,right,bottom, or a file."""
    sides = str(value).split(",")
    if len(sides) == 4 and all(re.fullmatch(r"\s*[-+.\d]+\s*", side) for side in sides):
        return tuple(number(name, side) for side in sides)
    return file(name, value)


OWN = (
    Option(name="video", group=WHAT, metavar="FILE", parse=file,
           help="the footage: size, frame rate and everything outside the mouth stay as they are"),
    Option(name="audio", group=WHAT, metavar="FILE", parse=file,
           help="the new sound, which begins with the footage's first frame: any sound file, or a video with sound"),
    Option(name="mask", group=FACE, metavar="FILE", parse=file,
           help="picture or video of the footage's shape, white where the mouth is made anew (default: the lower half "
                "of the face)"),
    Option(name="face-box", group=FACE, metavar="L,T,R,B", parse=face_box,
           help="the face, hairline to chin, as shares of the picture's width and height: 0.3,0.2,0.6,0.7; or a CSV "
                "file with the columns frame,left,top,right,bottom, where frames that are left out stay as they are "
                "(default: from the mask, or found, which needs: pip install 'opencv-python-headless<5')"),
    Option(name="face", group=FACE, metavar="N", parse=whole,
           help="which of several people is dubbed, counted from the left (default: the one who fills most)"),
    Option(name="mask-padding", group=FACE, metavar="X", parse=number,
           help="grow the region by X heights of the face, or shrink it below 0 (default: 0)"),
    Option(name="strength", group=FACE, metavar="X", parse=number,
           help="above 0 to 1: how much of the old mouth is given up; below 1 its old movement shines through "
                "(default: 1)"),
    Option(name="size", group=FACE, metavar="SIZE", parse=size,
           help="WIDTHxHEIGHT in pixels at which the model draws the face; or 480p, 720p: a square of that area "
                "(default: a square of the model's area)"),
    Option(name="length", group=PICTURE, metavar="HOW", parse=text,
           help="hold or loop: the video ends with the longer of footage and sound; after the footage its last frame "
                "stands still, or its last second goes back and forth. trim: it ends with the shorter (default: hold)"),
    Option(name="start", group=PICTURE, metavar="TIME", parse=seconds,
           help="change nothing before this moment of the footage; seconds, or minutes:seconds (default: 0)"),
    Option(name="end", group=PICTURE, metavar="TIME", parse=seconds,
           help="change nothing from this moment on (default: the end)"),
    Option(name="draw-every", group=PICTURE, metavar="N", parse=whole,
           help="the model draws every Nth frame, those between are blended. 24 to 30 drawn frames a second cost 1.5 "
                "to 1.9 times what 16 do, which Wan-S2V was trained at; all 60 of a 60 fps shot cost 3.75 times "
                "(default: 1 up to 30 fps, 2 up to 60)"),
)  # fmt: skip
SHARED = (
    "output", "prompt", "negative-prompt", "seed", "preset", "steps", "guidance", "sync-strength", "audio-guidance",
    "apg", "guidance-interval", "step-cache", "shift", "solver", "continuity", "model", "lora", "dtype", "matmul",
    "vae-dtype", "device", "attention", "offload", "take", "dry-run", "quiet", "debug",
)  # fmt: skip
DUB_OPTIONS: dict[str, Option] = {option.name: option for option in (*OWN, *(OPTIONS[name] for name in SHARED))}


def read_dub_values(arguments: argparse.Namespace) -> dict[str, object]:
    """Checked values by option name. Raises: ConfigError for a value of the wrong kind."""
    said = {name: getattr(arguments, name.replace("-", "_")) for name in DUB_OPTIONS}
    return {name: DUB_OPTIONS[name].parse(name, value) for name, value in said.items() if value is not None}


def make_dub_request(values: Mapping[str, object]) -> DubRequest:
    """The job of checked option values.

    Raises: ConfigError when footage, sound or output is missing, or the output is no .mp4 or one of the inputs.
    """
    from .request import DubRequest

    said = {name: value for name, value in values.items() if DUB_OPTIONS[name].scope == JOB}
    read = [(name, said.get(name)) for name in INPUTS]
    return DubRequest(**request_fields(said, DUB_OPTIONS, needed=("video", "audio", "output"), read=read))


def shared_values(values: Mapping[str, object]) -> dict[str, object]:
    """The part of checked values that `generate` knows too."""
    return {name: value for name, value in values.items() if name in SHARED and OPTIONS[name].scope != COMMAND}

"""What tells a run from another: everything that changes a pixel of all clips, and of each clip alone.

Knows which settings and files count; a take on disk is continued, and its clips kept, only where these are alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..cast import Cast
from ..conditioning.driving import Driving
from ..request import Request
from ..video.fill import sound_digest
from ..video.storyboard import Script
from ..video.take import file_digest
from .plan import JobPlan


def run_identity(request: Request, plan: JobPlan, cast: Cast, models: Mapping[str, object]) -> dict[str, object]:
    """Everything that changes a pixel of every clip: a take is continued only by a job that is alike in it.

    Args:
        models: what tells the models and their arithmetic from others.
    """
    return {
        "speakers": cast.fingerprint(),
        "pose": _pose_identity(request),
        "match_colour": request.match_colour,
        "negative_prompt": request.negative_prompt,
        "size": str(plan.size),
        "sampler": asdict(plan.settings),
        "clip": asdict(request.clip_settings()),
        "start_from_image": request.start_from_image,
        "continuity": request.continuity,
        "model": models,
    }


def clip_identities(
    request: Request, plan: JobPlan, *, scripts: Sequence[Script], images: Collection[str], cast: Cast, driving: Driving
) -> list[dict[str, object]]:
    """What changes the pixels of each clip, beyond what changes all: frames, seed, script, and the sound up to its end.

    Sound that comes later is left out, though the encoder's normalisation has heard it: a longer sound keeps clips.

    Args:
        images: files of the scripts' pictures.
    """
    pictures = {None: file_digest(request.image), **{name: file_digest(Path(name)) for name in images}}
    return [
        {
            "frames": [clip.start_frame, clip.stop_frame, clip.trim_start, clip.trim_end],
            "seed": clip.seed,
            "prompt": request.prompt if script.prompt is None else script.prompt,
            "guidance_scale": script.guidance_scale,
            "image": pictures[script.image],
            "audio": sound_digest(driving.sound, clip, plan.fps),
            "speakers": cast.said_in(clip, plan.fps),
        }
        for clip, script in zip(plan.clips, scripts, strict=True)
    ]


def _pose_identity(request: Request) -> dict[str, object] | None:
    path = request.pose_video or request.pose_footage
    if path is None:
        return None
    is_drawn = request.pose_footage is None
    return {"file": file_digest(path), "drawn": is_drawn, "skip": request.pose_skip, **asdict(request.pose_control())}

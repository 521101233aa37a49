"""What one job asks for: every setting of a video in one frozen object, checked when it is made.

Knows no files' contents and no models; `pipeline.py` turns a request into a video.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .geometry import VideoSize
from .speakers import Speaker, check_speakers
from .types import CONTINUITIES, SOLVERS, ClipSettings, SamplerSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One job. None means: what the model ships with, or what the media suggest."""

    image: Path                          # the reference picture
    audio: Path | None = None            # what is heard: any sound or video file that has sound;
                                         # None: the speakers' own voices together
    speakers: tuple[Speaker, ...] = ()   # who speaks, and where; none: everybody in the picture hears `audio`
    who_speaks: Path | None = None       # a file that shares `audio` out to speakers: `speakers.py` says how
    prompt: str = ""
    negative_prompt: str | None = None   # None: the model's own
    output: Path | None = None           # the mp4; None: the caller takes the frames
    size: VideoSize | None = None        # None: the picture's shape at `max_area`
    max_area: int | None = None          # pixels; None: the model's
    num_frames: int | None = None        # None: ceil(duration * fps), the whole sound
    fps: float = 16.0
    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    audio_guidance_scale: float | None = None   # of the sound alone; None: `guidance_scale` times `sync_strength`
    sync_strength: float = 1.0
    apg: bool = False
    solver: str = "unipc"
    seed: int = 0                        # clip r draws its noise from seed + r
    clip_frames: int = 80                # new frames per clip, a multiple of 4
    pose_video: Path | None = None
    storyboard: Path | None = None       # a file of prompts by their times: `video/storyboard.py` says how
    start_from_image: bool = False       # the video continues from the picture, instead of only keeping its identity
    continuity: str = "exact"            # "exact": the reference's decode; "carry": cheaper, slightly different
    take: Path | None = None             # folder of finished clips; None: beside the output

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if self.num_frames is not None and self.num_frames < 1:
            raise ConfigError(f"num_frames must be 1 or more, got {self.num_frames}")
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver must be one of {', '.join(SOLVERS)}; got {self.solver!r}")
        if self.continuity not in CONTINUITIES:
            raise ConfigError(f"continuity must be one of {', '.join(CONTINUITIES)}; got {self.continuity!r}")
        check_speakers(self.speakers, self.audio, self.who_speaks)
        self.clip_settings()
        self.sampler_settings(steps=1, shift=1.0, guidance_scale=1.0)

    def clip_settings(self) -> ClipSettings:
        return ClipSettings(frames=self.clip_frames, fps=self.fps)

    def sampler_settings(self, *, steps: int, shift: float, guidance_scale: float) -> SamplerSettings:
        """The sampler's settings, with the model's defaults where the request is silent."""
        return SamplerSettings(
            steps=steps if self.steps is None else self.steps,
            shift=shift if self.shift is None else self.shift,
            guidance_scale=guidance_scale if self.guidance_scale is None else self.guidance_scale,
            audio_guidance_scale=self.audio_guidance_scale,
            sync_strength=self.sync_strength,
            apg=self.apg,
            solver=self.solver,
        )

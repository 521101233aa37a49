"""What one job asks for: every setting of a video in one frozen object, checked when it is made.

Knows no files' contents and no models; `pipeline.py` turns a request into a video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from .errors import ConfigError
from .geometry import REFERENCE_TIME, TEMPORAL_STRIDE, VideoSize
from .sampling.presets import find_preset
from .speakers import Speaker, check_speakers
from .types import (
    COLOR_MATCHES,
    CONTINUITIES,
    FIRST_WINDOWS,
    ClipSettings,
    DrivingSettings,
    PoseControl,
    SamplerSettings,
)


def with_first_window(settings: ClipSettings, first_window: str, *, start_from_image: bool) -> ClipSettings:
    """Settings of a video that opens after "grey", or where it starts from the image, after the "image" all along.

    Raises: ConfigError.
    """
    if first_window not in FIRST_WINDOWS:
        raise ConfigError(f"first_window must be one of {', '.join(FIRST_WINDOWS)}; got {first_window!r}")
    if first_window == "grey":
        return settings
    if not start_from_image:
        raise ConfigError("first_window image is for videos that start from the image: give start_from_image too")
    return replace(settings, still_frames=settings.motion_frames)


def check_output_fps(output_fps: float, fps: float) -> None:
    """Whether a video that is made at `fps` can be brought to `output_fps`. Raises: ConfigError."""
    if not fps < output_fps <= 120:
        raise ConfigError(f"output_fps must be above fps ({fps:g}) and at most 120, got {output_fps:g}")


def changed(request: ClipRequest, names: Sequence[str]) -> list[str]:
    """Those of a request's settings that are not what they are when nobody says them."""
    usual = {field.name: field.default for field in fields(request)}
    return [name for name in names if getattr(request, name) != usual[name]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRequest:
    """What every job that makes clips asks for. Files may be given as text."""

    prompt: str = ""
    negative_prompt: str | None = None   # None: the model's own
    output: Path | None = None           # the mp4; None: the caller takes the frames
    size: VideoSize | None = None        # that the model draws; None: what the media suggest at `max_area`
    max_area: int | None = None          # pixels; None: the model's
    preset: str | None = None            # of `sampling.presets`: steps, shift, guidance and solver unless they are said
    steps: int | None = None
    shift: float | None = None
    guidance_scale: float | None = None
    audio_guidance_scale: float | None = None   # of the sound alone; None: `guidance_scale` times `sync_strength`
    sync_strength: float = 1.0
    apg: bool = False
    guidance_interval: tuple[float, float] | None = None   # noise levels that are guided; None: all
    step_cache: float = 0.0              # largest change of a step that is foretold in place of computed; 0: off
    solver: str | None = None            # None: "unipc"
    seed: int = 0                        # clip r draws its noise from seed + r
    clip_frames: int = 80                # new frames per clip, a multiple of 4, at most 120
    continuity: str = "exact"            # "exact": the reference's decode; "carry": cheaper, slightly different
    take: Path | None = None             # folder of finished clips; None: beside the output

    def __post_init__(self) -> None:
        for field in fields(self):
            if "Path" in field.type and isinstance(said := getattr(self, field.name), str):
                object.__setattr__(self, field.name, Path(said).expanduser())
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if self.continuity not in CONTINUITIES:
            raise ConfigError(f"continuity must be one of {', '.join(CONTINUITIES)}; got {self.continuity!r}")
        if self.clip_frames > TEMPORAL_STRIDE * REFERENCE_TIME:
            raise ConfigError(
                f"clip_frames must be at most {TEMPORAL_STRIDE * REFERENCE_TIME}, got {self.clip_frames}: frames after "
                "these would stand where the reference picture does"
            )
        self.clip_settings()
        self.sampler_settings(steps=1, shift=1.0, guidance_scale=1.0)

    @property
    def take_folder(self) -> Path:
        if self.take is not None:
            return self.take
        return Path("video.take") if self.output is None else self.output.with_name(self.output.name + ".take")

    def clip_settings(self) -> ClipSettings:
        return ClipSettings(frames=self.clip_frames)

    def sampler_settings(self, *, steps: int, shift: float, guidance_scale: float) -> SamplerSettings:
        """The sampler's settings; where the request is silent the preset's, and without one the model's defaults."""
        usual = {"steps": steps, "shift": shift, "guidance_scale": guidance_scale, "solver": "unipc"}
        if self.preset is not None:
            usual = find_preset(self.preset).settings()
        said = {name: value for name in usual if (value := getattr(self, name)) is not None}
        return SamplerSettings(
            **{**usual, **said},
            audio_guidance_scale=self.audio_guidance_scale,
            sync_strength=self.sync_strength,
            apg=self.apg,
            guidance_interval=self.guidance_interval,
            step_cache=self.step_cache,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(ClipRequest):
    """One job. None means: what the model ships with, or what the media suggest."""

    image: Path                          # the reference picture
    audio: Path | None = None            # what is heard: any sound or video file that has sound;
                                         # None: `say`, or the speakers' own voices together
    say: str | None = None               # words to speak in place of `audio`; the wav is written beside the output
    voice: str | None = None             # espeak-ng's name of who says them; None: "en-us"
    speech_speed: int | None = None      # words a minute; None: 175
    driving_audio: Path | None = None    # what moves the mouth, on the clock of `audio`; None: what is heard
    audio_start: float = 0.0             # seconds of the sound: the video begins there
    audio_end: float | None = None       # None: the sound's end
    audio_offset: float = 0.0            # milliseconds that the picture moves later than the sound
    loudness: float | None = None        # LUFS that the driving sound is brought to; None: as it is
    noise_gate: float | None = None      # dB below which the driving sound is silence; None: never
    isolate_voice: bool = False          # take the music out of the driving sound
    speakers: tuple[Speaker, ...] = ()   # who speaks, and where; none: everybody in the picture hears `audio`
    who_speaks: Path | None = None       # a file that shares `audio` out to speakers: `speakers.py` says how
    diarize: int | None = None           # or so many voices are told from each other in it, and shared out
    num_frames: int | None = None        # None: ceil(duration * fps), the whole sound
    fps: float = 16.0
    output_fps: float | None = None      # of the file, by interpolation; None: `fps`
    pose_video: Path | None = None       # drawn poses
    pose_footage: Path | None = None     # or footage of a person, to draw them from
    pose_strength: float = 1.0           # 0 to 2
    pose_start: float = 0.0              # seconds of the video between which the pose is followed
    pose_end: float | None = None        # None: to the end
    pose_skip: float = 0.0               # seconds left out at the beginning of the pose video or footage
    pose_steps: int | None = None        # only in the first denoising steps of each clip; None: in all
    storyboard: Path | None = None       # a file of prompts by their times: `video/storyboard.py` says how
    start_from_image: bool = False       # the video continues from the picture, instead of only keeping its identity
    first_window: str = "grey"           # before the picture's last moments, where the video starts from it; or "image"
    match_colour: str = "off"            # "lab", "mkl": each clip is given the reference picture's colours

    def __post_init__(self) -> None:
        ClipRequest.__post_init__(self)   # a frozen class with slots has no super() of its own
        if self.num_frames is not None and self.num_frames < 1:
            raise ConfigError(f"num_frames must be 1 or more, got {self.num_frames}")
        if self.match_colour not in COLOR_MATCHES:
            raise ConfigError(f"match_colour must be one of {', '.join(COLOR_MATCHES)}; got {self.match_colour!r}")
        if self.output_fps is not None:
            check_output_fps(self.output_fps, self.fps)
        self._check_sound()
        self._check_pose()

    def _check_sound(self) -> None:
        if self.say is not None and self.audio is not None:
            raise ConfigError("give either audio or words to say, not both")
        sound = Path("speech.wav") if self.say is not None else self.audio
        told = self.who_speaks
        if told is None and self.diarize is None and any(speaker.audio is None for speaker in self.speakers):
            told = self.storyboard
        check_speakers(self.speakers, sound, told, self.diarize)
        is_plain = self.driving_audio is None and self.driving_settings().is_plain
        if any(speaker.audio is not None for speaker in self.speakers) and not is_plain:
            raise ConfigError(
                "speakers who have audio of their own are driven by it as it is: leave out driving_audio, audio_start, "
                "audio_end, audio_offset, loudness, noise_gate and isolate_voice, or share one audio out (who_speaks, "
                "diarize)"
            )

    def _check_pose(self) -> None:
        if self.pose_video is not None and self.pose_footage is not None:
            raise ConfigError("give either a pose video or footage to draw poses from, not both")
        if not self.pose_start >= 0 or not self.pose_skip >= 0:
            got = f"{self.pose_start:g} and {self.pose_skip:g}"
            raise ConfigError(f"pose_start and pose_skip must be 0 or more, got {got}")
        if self.pose_end is not None and not self.pose_end > self.pose_start:
            raise ConfigError(f"pose_end must come after pose_start ({self.pose_start:g} s), got {self.pose_end:g}")
        self.pose_control()

    def clip_settings(self) -> ClipSettings:
        settings = ClipSettings(frames=self.clip_frames, fps=self.fps)
        return with_first_window(settings, self.first_window, start_from_image=self.start_from_image)

    def driving_settings(self) -> DrivingSettings:
        return DrivingSettings(
            start=self.audio_start,
            end=self.audio_end,
            offset=self.audio_offset,
            loudness=self.loudness,
            gate=self.noise_gate,
            isolate_voice=self.isolate_voice,
        )

    def unheeded(self) -> tuple[str, ...]:
        """A line about settings that change nothing, as what they are about was not asked for."""
        pose = self.pose_video or self.pose_footage
        about = {
            "there are no words to say": (self.say, ("voice", "speech_speed")),
            "no pose is followed": (pose, ("pose_strength", "pose_start", "pose_end", "pose_skip", "pose_steps")),
        }
        return tuple(
            f"without effect, as {reason}: {', '.join(names)}"
            for reason, (given, settings) in about.items()
            if given is None and (names := changed(self, settings))
        )

    def pose_control(self) -> PoseControl:
        """The pose's share of the settings, in frames of the video."""
        return PoseControl(
            strength=self.pose_strength,
            start_frame=round(self.pose_start * self.fps),
            stop_frame=None if self.pose_end is None else round(self.pose_end * self.fps),
            steps=self.pose_steps,
        )

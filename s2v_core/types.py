"""What travels between the rooms, and the Protocols of what is lent to the clip loop.

Knows shapes and units only. B batch, F frames, T latent frames, H W pixels, h w latent cells (H/8, W/8), D width.
Everything is frozen: hosts cache these objects and hand them to the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor, device

from .errors import ConfigError, ShapeError
from .geometry import VideoSize

SOLVERS = ("unipc", "dpm++", "euler", "few-step")
CONTINUITIES = ("exact", "carry")
COLOR_MATCHES = ("off", "lab", "mkl")
FIRST_WINDOWS = ("grey", "image")
STILL_FRAMES = 6   # of the reference picture in the memory of a video that starts from it, as in the reference

StepCallback = Callable[[int, int], None]
"""Called as `on_step(steps done, steps in all)`; it may raise `Interrupted`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSettings:
    """How one clip is denoised."""

    steps: int = 40
    shift: float = 3.0
    guidance_scale: float = 4.5   # of prompt and sound; 1 = off: one evaluation a step
    audio_guidance_scale: float | None = None   # of the sound alone; None: the other one times `sync_strength`
    sync_strength: float = 1.0    # the sound's guidance over the prompt's: other than 1, three evaluations a step
    apg: bool = False             # adaptive projected guidance: less oversaturated at high scales
    solver: str = "unipc"
    guidance_interval: tuple[float, float] | None = None   # noise levels, 0 to 1, that are guided; None: all
    step_cache: float = 0.0       # largest change of a velocity that is foretold in place of an evaluation; 0: off

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps must be 1 or more, got {self.steps}")
        if not self.shift > 0:
            raise ConfigError(f"shift must be above 0, got {self.shift}")
        if not self.guidance_scale >= 1:
            raise ConfigError(f"guidance must be 1 or more (1 switches it off), got {self.guidance_scale:g}")
        if self.audio_guidance_scale is not None and not self.audio_guidance_scale >= 1:
            raise ConfigError(
                f"the sound's guidance must be 1 or more (1 switches it off), got {self.audio_guidance_scale:g}"
            )
        if not self.sync_strength >= 0:
            raise ConfigError(f"sync strength must be 0 or more (1 is as trained), got {self.sync_strength:g}")
        if self.audio_guidance_scale is not None and self.sync_strength != 1:
            raise ConfigError(
                f"sync strength {self.sync_strength:g} and audio guidance {self.audio_guidance_scale:g} say the same "
                "thing in two ways; give one of them"
            )
        if self.solver not in SOLVERS:
            raise ConfigError(f"solver must be one of {', '.join(SOLVERS)}; got {self.solver!r}")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high <= 1:
                raise ConfigError(
                    "a guidance interval goes from a lower to a higher noise level, both 0 to 1; "
                    f"got {low:g} to {high:g}"
                )
        if not 0 <= self.step_cache <= 1:
            raise ConfigError(f"the step cache's threshold must be 0 (off) to 1, got {self.step_cache:g}")

    def scales(self, guidance_scale: float | None = None) -> tuple[float, float]:
        """Guidance of the prompt and of the sound; the latter never falls below 1.

        Args:
            guidance_scale: in place of the settings' own, for one clip.
        """
        text = self.guidance_scale if guidance_scale is None else guidance_scale
        if self.audio_guidance_scale is not None:
            return text, self.audio_guidance_scale
        return text, max(1.0, text * self.sync_strength)

    def __str__(self) -> str:
        text, audio = self.scales()
        guidance = f"{text:g}" if text == audio else f"{text:g}, of the sound {audio:g}"
        if self.guidance_interval is not None:
            guidance += " at noise levels {:g} to {:g}".format(*self.guidance_interval)
        cache = f", step cache {self.step_cache:g}" if self.step_cache else ""
        return f"{self.steps} of {self.solver}, shift {self.shift:g}, guidance {guidance}{cache}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """How one clip is cut. Counts are pixel frames."""

    frames: int = 80          # new per clip, 4 to a latent frame
    motion_frames: int = 73   # of the past: 1 + 4*18, so 19 latent frames
    warmup_frames: int = 3    # head of clip 0, decoded without a past and dropped
    still_frames: int = STILL_FRAMES   # of the picture in the first memory, where a video starts from the picture
    fps: float = 16.0

    def __post_init__(self) -> None:
        if self.frames < 4 or self.frames % 4 or self.motion_frames < 1 or self.motion_frames % 4 != 1:
            raise ShapeError(
                f"a clip has 4n frames and 4n+1 motion frames; got {self.frames} frames and {self.motion_frames}"
            )
        if not 0 <= self.warmup_frames < self.frames:
            raise ShapeError(f"warmup_frames must be 0 to {self.frames - 1}, got {self.warmup_frames}")
        if self.still_frames < 1:
            raise ShapeError(f"still_frames must be 1 or more, got {self.still_frames}")
        if not 1 <= self.fps <= 120:
            raise ConfigError(f"fps must be 1 to 120, got {self.fps:g}; Wan-S2V was trained at 16")

    @property
    def num_latents(self) -> int:
        return self.frames // 4

    @property
    def num_motion_latents(self) -> int:
        return 1 + (self.motion_frames - 1) // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipPlan:
    """One clip of a video, on the audio's clock.

    Of the `stop_frame - start_frame` frames that are denoised, `trim_start` go at the head (warm-up) and
    `trim_end` at the tail (past the end of the sound); the rest are the video's next frames.
    """

    index: int
    start_frame: int     # audio frame that drives the first denoised frame; negative in a warm-up
    stop_frame: int      # one past the last
    seed: int
    uses_motion: bool    # False: no motion tokens, and the reference latent opens the decode
    trim_start: int = 0
    trim_end: int = 0

    @property
    def num_kept(self) -> int:
        return self.stop_frame - self.start_frame - self.trim_start - self.trim_end

    @property
    def first_kept(self) -> int:
        """Index in the video of this clip's first kept frame, when plans follow the audio's clock."""
        return self.start_frame + self.trim_start


class AudioFeatures(Protocol):
    """Sound features on the video's clock, made as they are asked for."""

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        """[1, L, C, stop-start] features of the frames; before and past the sound, the features of silence."""
        ...


class PoseFrames(Protocol):
    """A pose video on the video's clock, read as it is asked for."""

    def window(self, start_frame: int, stop_frame: int) -> Tensor:
        """[1, 3, stop-start, H, W] frames in [-1, 1]: the first one before 0, -1 (black) past the end."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class DrivingSettings:
    """Which stretch of a sound is heard, and how it drives the picture."""

    start: float = 0.0              # seconds: what lies before is left out
    end: float | None = None        # seconds; None: the sound's end
    offset: float = 0.0             # milliseconds that the picture moves later than the sound
    loudness: float | None = None   # LUFS that the driving sound is brought to; None: as it is
    gate: float | None = None       # dB below which the driving sound is silence; None: never
    isolate_voice: bool = False     # take the music out of the driving sound, before the two above

    def __post_init__(self) -> None:
        if not self.start >= 0:
            raise ConfigError(f"the sound's start must be 0 seconds or more, got {self.start:g}")
        if self.end is not None and not self.end > self.start:
            raise ConfigError(f"the sound's end must come after its start, got {self.start:g} s to {self.end:g} s")
        if not abs(self.offset) <= 10_000:
            raise ConfigError(f"the sound's offset must be within 10 seconds (10000 milliseconds), got {self.offset:g}")
        if self.loudness is not None and not -70 < self.loudness <= 0:
            raise ConfigError(f"loudness must be above -70 LUFS and at most 0 (speech: -23), got {self.loudness:g}")
        if self.gate is not None and not -90 <= self.gate < 0:
            raise ConfigError(f"a noise gate must be at -90 dB or more and below 0 (try -45), got {self.gate:g}")

    @property
    def is_plain(self) -> bool:
        """The whole sound as it is."""
        return self == DrivingSettings()


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseControl:
    """How closely, where in a video and how long in a clip's denoising its pose video is followed."""

    strength: float = 1.0          # 0 to 2: what the pose adds is multiplied by it
    start_frame: int = 0           # of the video: before it, movement is free
    stop_frame: int | None = None  # one past the last; None: to the end
    steps: int | None = None       # only the first ones of each clip; None: all

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 2:
            raise ConfigError(f"pose strength must be 0 (no pose) to 2, got {self.strength:g}")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"a pose is followed for 1 denoising step or more, got {self.steps}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLatents:
    """Footage that a clip keeps outside a mask."""

    latents: Tensor         # [1, 16, T, h, w] of the footage, clean
    mask: Tensor            # [1, 1, T, h, w] in 0..1: 1 is made anew, 0 stays
    strength: float = 1.0   # 0 (exclusive) to 1: how much noise the footage is given inside the mask; 1: nothing stays

    def to(self, where: device) -> SourceLatents:
        return replace(self, latents=self.latents.to(where), mask=self.mask.to(where))


class SourceFootage(Protocol):
    """Footage on the video's clock, read as it is asked for."""

    def clip(self, start_frame: int, stop_frame: int, codec: VideoCodec) -> SourceLatents:
        """The latents and the mask of frames start to stop; before and past the footage its first and last frame."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """What may change from clip to clip."""

    prompt_embeds: Tensor                  # [1, L, 4096]
    reference_latent: Tensor               # [1, 16, 1, h, w]
    guidance_scale: float | None = None    # None: the sampler's


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerTrack:
    """What somebody says over a whole video, and where in the picture it is heard."""

    audio: AudioFeatures
    mask: Tensor   # [h, w] in 0..1


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """What directs a whole video. Made once per video."""

    size: VideoSize
    prompt_embeds: Tensor             # [1, L, 4096], L <= 512 real tokens
    negative_prompt_embeds: Tensor    # [1, L', 4096]
    reference_frames: Tensor          # [1, 3, 1, H, W] in [-1, 1]
    reference_latent: Tensor          # [1, 16, 1, h, w]
    audio: AudioFeatures              # with speakers, what is heard outside their masks: silence
    speakers: tuple[SpeakerTrack, ...] = ()   # none: everybody hears `audio`
    pose: PoseFrames | None = None
    pose_control: PoseControl = PoseControl()
    source: SourceFootage | None = None   # footage that is kept outside a mask
    directions: tuple[Direction, ...] = ()   # one per clip, in order; empty: all clips are directed alike

    def direction(self, plan: ClipPlan) -> Direction:
        """What directs the clip of `plan`, where clips may differ."""
        if self.directions:
            return self.directions[plan.index]
        return Direction(prompt_embeds=self.prompt_embeds, reference_latent=self.reference_latent)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipInputs:
    """What directs one clip."""

    prompt_embeds: Tensor             # [1, L, 4096]
    negative_prompt_embeds: Tensor    # [1, L', 4096]
    reference_latent: Tensor          # [1, 16, 1, h, w]
    motion_latents: Tensor | None     # [1, 16, 19, h, w]; None: no motion tokens
    audio_features: Tensor            # [1, 25, 1024, F]
    pose_latents: Tensor | None       # [1, 16, T, h, w]; None: no pose
    pose_steps: int | None = None     # the pose is left out after so many steps; None: never
    speaker_features: Tensor | None = None   # [1, S, 25, 1024, F]; None: everybody hears `audio_features`
    speaker_masks: Tensor | None = None      # [1, S, T, h, w] in 0..1; `audio_features` is heard in the rest
    index: int = 0                    # of the clip in its video
    guidance_scale: float | None = None   # None: the sampler's
    source: SourceLatents | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionMemory:
    """The frames before a clip, in float: never through a compressed file."""

    frames: Tensor   # [1, 3, 73, H, W] in [-1, 1], CPU; 0 (grey) where nothing has been seen


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedClip:
    """A finished clip."""

    plan: ClipPlan
    frames: Tensor          # [1, 3, F, H, W] in [-1, 1], float32 on the CPU: the kept frames only
    latents: Tensor         # [1, 16, T, h, w] float32 on the CPU: as sampled, what `carry` continues from
    memory: MotionMemory    # what the next clip sees


class Denoiser(Protocol):
    """Noise to latents for one clip: our sampler and transformer, or a host's."""

    def __call__(self, inputs: ClipInputs, noise: Tensor, on_step: StepCallback) -> Tensor:
        """[1, 16, T, h, w] noise -> latents of the same shape, float32."""
        ...


class VideoDecoder(Protocol):
    """A decode in progress: causal state carried between calls."""

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """[1, 16, T, h, w] latents -> [1, 3, f, H, W] frames in [-1, 1], yielded as they are ready.

        The stream's very first latent frame gives 1 frame, every later one 4.
        """
        ...

    def prime(self, latents: Tensor) -> None:
        """Take latents in for the sake of what follows: as `decode`, but nobody wants their frames."""
        ...


class VideoCodec(Protocol):
    """Pixels to latents and back: our VAE, or a host's."""

    def encode(self, frames: Tensor) -> Tensor:
        """[1, 3, F, H, W] frames in [-1, 1] -> [1, 16, 1+(F-1)//4, h, w] normalised latents, float32."""
        ...

    def decoder(self) -> VideoDecoder:
        """A fresh stream."""
        ...

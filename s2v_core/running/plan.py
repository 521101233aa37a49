"""What a run will do, worked out before any weight is read: frames, clips, settings, and what they will take.

Knows requests and the lengths of their media; no weights, no pixels and no samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..components import Components
from ..conditioning.audio import num_video_frames
from ..conditioning.driving import Driving, exact
from ..conditioning.pose import PoseVideo
from ..geometry import VideoSize
from ..pace import ClipTime
from ..placement import MemoryEstimate
from ..planning import Way
from ..request import ClipRequest, Request, changed
from ..sampling.presets import find_preset
from ..times import duration
from ..types import ClipPlan, SamplerSettings
from ..video.storyboard import PlacedScene, Scene, place_scenes, unseen
from ..video.timeline import plan_clips


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """What is known before of any run that makes clips."""

    settings: SamplerSettings
    take: Path
    finished_clips: int
    estimate: MemoryEstimate
    way: Way                 # how the models are run
    time: ClipTime | None    # of a clip; None where it is not foretold

    def lines(self, num_clips: int) -> list[str]:
        """As people read it."""
        done = f", {self.finished_clips} already finished in {self.take}" if self.finished_clips else ""
        lines = [f"clips   {num_clips}{done}", f"steps   {self.settings}", f"models  {self.way}"]
        if self.time is not None:
            num_left = num_clips - self.finished_clips
            step, parts = self.time.step, (self.time.denoising, self.time.codec)
            denoising, codec = (duration(num_left * seconds) for seconds in parts)
            lines.append(
                f"time    {step:.2g} s a step; {denoising} of denoising and {codec} of the autoencoder, by parts that "
                "were timed here; encoders and files beside"
            )
        return [*lines, f"memory  {self.estimate}"]


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPlan(RunPlan):
    """What a run will do, known before any weight is read."""

    size: VideoSize
    num_frames: int          # that are made, at `fps`
    fps: float
    output_frames: int       # of the file, at `output_fps`: other than made where frames are interpolated
    output_fps: float
    clips: tuple[ClipPlan, ...]
    scenes: tuple[PlacedScene, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_interpolated(self) -> bool:
        return self.output_fps != self.fps

    def __str__(self) -> str:
        lines = [
            f"video   {self.size}, {self.num_frames} frames at {self.fps:g} fps, {self.num_frames / self.fps:.2f} s",
            *([f"file    {self.output_frames} frames at {self.output_fps:g} fps"] if self.is_interpolated else []),
            *self.lines(len(self.clips)),
            *(f"scene   {scene}" for scene in self.scenes),
            *(f"note    {remark}" for remark in self.remarks),
        ]
        return "\n".join(lines)


def plan_job(
    request: Request,
    components: Components,
    size: VideoSize,
    driving: Driving,
    pose: PoseVideo | None,
    scenes: Sequence[Scene],
) -> JobPlan:
    """The plan of opened media; what the scenes change of the clips, and what is finished, is not in it yet."""
    settings = sampler_settings(request, components)
    whole = num_video_frames(driving.sound, request.fps)
    num_frames = whole if request.num_frames is None else min(request.num_frames, whole)
    clips = plan_clips(
        num_frames, request.clip_settings(), seed=request.seed, start_from_image=request.start_from_image
    )
    placed = place_scenes(scenes, clips, request.fps)
    is_guided = any((scene.guidance_scale or 1) > 1 for scene in scenes)
    return JobPlan(
        size=size,
        num_frames=num_frames,
        fps=request.fps,
        output_frames=_output_frames(request, num_frames, whole, driving),
        output_fps=request.output_fps or request.fps,
        clips=clips,
        settings=settings,
        take=request.take_folder,
        finished_clips=0,
        **foretold(components, size, request, settings),
        scenes=placed,
        remarks=(
            *driving.remarks,
            *_remarks(request, whole, num_frames, pose),
            *unseen(scenes, placed),
            *(() if is_guided else unguided(request, settings)),
        ),
    )


def foretold(
    components: Components, size: VideoSize, request: ClipRequest, settings: SamplerSettings
) -> dict[str, object]:
    """How a `RunPlan` runs the models, and what that takes."""
    clip = request.clip_settings()
    estimate = components.estimate(size, clip, step_cache=settings.step_cache > 0)
    return {"estimate": estimate, "way": components.way, "time": components.clip_time(size, clip, settings)}


def sampler_settings(request: ClipRequest, components: Components) -> SamplerSettings:
    """A request's settings, with the model's where it is silent.

    Raises: ConfigError for a preset without the LoRA that it is for.
    """
    if request.preset is not None:
        remedy = "give one with --lora FILE, or leave the preset out"
        find_preset(request.preset).check_lora(components.loras, remedy)
    config = components.config
    return request.sampler_settings(
        steps=config.default_steps, shift=config.default_shift, guidance_scale=config.default_guidance
    )


def unguided(request: ClipRequest, settings: SamplerSettings) -> tuple[str, ...]:
    """A line about settings that guidance alone heeds, where there is none."""
    names = changed(request, ("negative_prompt", "sync_strength", "apg", "guidance_interval"))
    if not names or settings.scales() != (1, 1):
        return ()
    return (f"without effect, as nothing is guided (guidance 1): {', '.join(names)}",)


def _output_frames(request: Request, num_frames: int, whole: int, driving: Driving) -> int:
    """Frames of the file: as many as cover the sound, or what is made of it."""
    if request.output_fps is None:
        return num_frames
    seconds = driving.seconds if num_frames == whole else num_frames / exact(request.fps)
    return max(1, math.ceil(seconds * exact(request.output_fps)))


def _remarks(request: Request, whole: int, num_frames: int, pose: PoseVideo | None) -> tuple[str, ...]:
    remarks = []
    if request.num_frames is not None and request.num_frames > whole:
        remarks.append(f"{request.num_frames} frames were asked for, the sound has {whole}: the video ends with it")
    seconds = num_frames / request.fps
    if pose is not None and request.pose_start >= seconds:
        remarks.append(f"the pose is to be followed from {request.pose_start:g} s on, the video lasts {seconds:.2f} s")
    if pose is not None:
        remarks += pose.ends_early(min(seconds, request.pose_end or math.inf))
    return tuple(remarks)

"""From a node's inputs to what the clip loop takes: size, plans, conditioning; and what clips hand on to each other.

Knows the host's IMAGE, VIDEO and CONDITIONING; computes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
import torch
from PIL import Image
from torch import Tensor

from ..s2v_core.cast import Cast
from ..s2v_core.conditioning.image import fit_picture
from ..s2v_core.conditioning.pose import PoseVideo
from ..s2v_core.errors import ConfigError, MediaError, ShapeError
from ..s2v_core.geometry import VideoSize, fit_size
from ..s2v_core.media.video_io import probe_video, read_timed_frames
from ..s2v_core.request import with_first_window
from ..s2v_core.types import ClipInputs, ClipPlan, ClipSettings, Conditioning, Direction, MotionMemory, PoseControl
from ..s2v_core.video.color import ColourMatch, Grade
from ..s2v_core.video.generate import clip_inputs, kept_frames, open_stream
from ..s2v_core.video.memory import after, blank_memory, memory_from_image
from ..s2v_core.video.storyboard import Scene, Script, direct, place_scenes, unseen
from ..s2v_core.video.take import file_digest
from ..s2v_core.video.timeline import plan_clips
from . import host
from .codec import HostCodec, codec_of
from .pictures import picture_of
from .sound import DrivingSound


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """What one clip hands to the next (S2V_MOTION)."""

    num_clips: int   # finished before the next one
    memory: MotionMemory
    size: VideoSize
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """What decoding a sampled clip needs (S2V_CLIP)."""

    plan: ClipPlan
    opening: Tensor        # [1, 16, T, h, w] latents that the decode opens with: the reference's or the motion's
    before: MotionMemory
    size: VideoSize
    fps: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """A storyboard with its prompts encoded (S2V_STORYBOARD)."""

    scenes: tuple[Scene, ...] = ()
    prompts: Mapping[str, list] = field(default_factory=dict)   # CONDITIONING of each prompt, once
    images: Tensor | None = None                                # the host's IMAGE; scenes name them by number, from 1

    def picture(self, number: str) -> Image.Image:
        """Raises: ConfigError for what is no number of a picture."""
        count = 0 if self.images is None else self.images.shape[0]
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise ConfigError(
                f"the storyboard asks for image {number}, and its images input holds {count}: connect a batch of "
                "pictures there and name them by their numbers, from 1"
            )
        return picture_of(self.images[int(number) - 1 :])


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A video that is asked for: everything but the sampler."""

    conditioning: Conditioning
    cast: Cast                       # who speaks in it
    positives: tuple[list, ...]      # CONDITIONING of each clip
    negative: list
    plans: tuple[ClipPlan, ...]
    scripts: tuple[Script, ...]      # what the storyboard tells each clip
    pictures: tuple[Tensor, ...]     # reference frames of each clip, [1, 3, 1, H, W] in [-1, 1]
    remarks: tuple[str, ...]         # where its scenes begin, and what of it is not seen
    settings: ClipSettings
    codec: HostCodec
    start_from_image: bool
    match_colour: str

    @classmethod
    def of(
        cls,
        *,
        model_area: int,
        positive: list,
        negative: list,
        vae: host.VAE,
        image: Tensor,
        sound: DrivingSound,
        width: int,
        height: int,
        fps: float,
        seed: int,
        start_from_image: bool,
        pose_video: object | None,
        storyboard: Board | None = None,
        pose_control: PoseControl | None = None,
        pose_skip: float = 0.0,
        match_colour: str = "off",
        first_window: str = "grey",
    ) -> Job:
        """Open, fit and encode what the inputs hold.

        Args:
            model_area: pixels of a video whose width and height are both 0.
            image: the host's [B, H, W, 3] in 0..1; the first picture is the reference.
            pose_skip: seconds of the pose video's beginning that are left out.

        Raises: ConfigError, ShapeError, MediaError.
        """
        picture = picture_of(image)
        size = video_size(picture, width, height, model_area)
        settings = with_first_window(ClipSettings(fps=fps), first_window, start_from_image=start_from_image)
        control = pose_control or PoseControl()
        pose = None if pose_video is None else open_pose(pose_video, size, fps, pose_skip)
        codec = codec_of(vae)
        board = storyboard or Board()
        plans = plan_clips(sound.num_frames(fps), settings, seed=seed, start_from_image=start_from_image)
        scenes = place_scenes(board.scenes, plans, fps)
        plans, scripts = direct(plans, scenes)
        positives = tuple(positive if script.prompt is None else board.prompts[script.prompt] for script in scripts)
        names = dict.fromkeys(script.image for script in scripts)
        pictures = {n: fit_picture(picture if n is None else board.picture(n), size) for n in names}
        latents = {name: codec.encode(frames) for name, frames in pictures.items()}
        cast = sound.cast(picture, size).directed(plans, [script.speaker for script in scripts], fps)
        features, speakers = sound.shared_out(cast, fps)
        conditioning = Conditioning(
            size=size,
            prompt_embeds=prompt_embeds(positives[0]),
            negative_prompt_embeds=prompt_embeds(negative),
            reference_frames=pictures[scripts[0].image],
            reference_latent=latents[scripts[0].image],
            directions=tuple(
                Direction(
                    prompt_embeds=prompt_embeds(one),
                    reference_latent=latents[script.image],
                    guidance_scale=script.guidance_scale,
                )
                for one, script in zip(positives, scripts, strict=True)
            ),
            audio=features,
            speakers=speakers,
            pose=pose,
            pose_control=control,
        )
        return cls(
            conditioning=conditioning,
            cast=cast,
            positives=positives,
            negative=negative,
            plans=plans,
            scripts=scripts,
            pictures=tuple(pictures[script.image] for script in scripts),
            remarks=(
                *cast.remarks(), *(f"scene {scene}" for scene in scenes), *unseen(board.scenes, scenes),
                *_unposed(pose, control, sound.num_frames(fps), fps),
            ),
            settings=settings,
            codec=codec,
            start_from_image=start_from_image,
            match_colour=match_colour,
        )

    def grade(self) -> Grade | None:
        """Each clip's frames to the colours of its reference picture."""
        if self.match_colour == "off":
            return None
        matches = {id(picture): ColourMatch(picture, self.match_colour) for picture in self.pictures}
        return lambda plan, frames: matches[id(self.pictures[plan.index])](frames)

    def next_plan(self, motion: Motion | None) -> ClipPlan:
        """The clip that follows `motion`; without one, the first. Raises: ConfigError past the sound's end."""
        index = 0 if motion is None else motion.num_clips
        if index >= len(self.plans):
            raise ConfigError(
                f"the sound ends with clip {len(self.plans)}, and the motion input comes from that clip: "
                "remove this node, or use longer sound"
            )
        if motion is not None and (motion.size, motion.fps) != (self.conditioning.size, self.settings.fps):
            raise ConfigError(
                f"the clip before was {motion.size} at {motion.fps:g} fps, this one is {self.conditioning.size} at "
                f"{self.settings.fps:g}; give both the same width, height and fps"
            )
        return self.plans[index]

    def memory_before(self, motion: Motion | None) -> MotionMemory:
        if motion is not None:
            return motion.memory
        if self.start_from_image:
            settings = self.settings
            return memory_from_image(self.conditioning.reference_frames, settings.motion_frames, settings.still_frames)
        return blank_memory(self.conditioning.size, self.settings.motion_frames)

    def inputs(self, plan: ClipPlan, memory: MotionMemory) -> tuple[ClipInputs, Tensor]:
        """What directs a clip, and the latents that its decode opens with."""
        motion_latents = self.codec.encode(memory.frames) if plan.uses_motion else None
        inputs = clip_inputs(plan, self.conditioning, self.codec, motion_latents)
        return inputs, inputs.reference_latent if motion_latents is None else motion_latents

    def empty_latents(self) -> Tensor:
        """[1, 16, T, h, w] of a clip."""
        _, channels, _, height, width = self.conditioning.reference_latent.shape
        return torch.zeros(1, channels, self.settings.num_latents, height, width)


def decode(clip: Clip, samples: Tensor, vae: host.VAE) -> tuple[Tensor, Motion]:
    """Sampled latents in the VAE's own space -> the clip's frames [1, 3, F, H, W], and what the next clip sees.

    Raises: ShapeError when the latents are not of the clip's size.
    """
    expected = (16, (clip.plan.stop_frame - clip.plan.start_frame) // 4, *clip.opening.shape[-2:])
    if tuple(samples.shape[1:]) != expected:
        raise ShapeError(
            f"the latent input is {list(samples.shape)}, the clip's is {[1, *expected]}: "
            "connect the sampler that used the latent of the same S2V Conditioning node"
        )
    codec = codec_of(vae)
    latents = host.LATENT_FORMAT.process_in(samples[:1].float())
    frames = kept_frames(open_stream(codec, clip.opening), clip.plan, latents, clip.size)
    memory = after(clip.before, frames)
    return frames, Motion(num_clips=clip.plan.index + 1, memory=memory, size=clip.size, fps=clip.fps)


def prompt_embeds(conditioning: list) -> Tensor:
    return conditioning[0][0]


def video_size(picture: Image.Image, width: int, height: int, area: int) -> VideoSize:
    """The size asked for; the picture's shape at `area` pixels where both sides are 0."""
    if (width == 0) != (height == 0):
        raise ConfigError(f"set both width and height, or leave both at 0; got {width}x{height}")
    return VideoSize(width=width, height=height) if width else fit_size(*picture.size, area)


def pose_control(strength: float, start: float, end: float, steps: int, fps: float) -> PoseControl:
    """How a node's widgets say that the pose video is followed: from `start` to `end` seconds; 0 is no end or limit."""
    return PoseControl(
        strength=strength,
        start_frame=round(start * fps),
        stop_frame=round(end * fps) if end else None,
        steps=steps or None,
    )


def open_pose(video: host.Video, size: VideoSize, fps: float, skip: float = 0.0) -> PoseVideo:
    """A host VIDEO as pose frames by their time, whatever its frame rate; read from disk as it is needed.

    Raises: MediaError; ConfigError where nothing is left behind its first `skip` seconds.
    """
    path = video_path(video)
    duration = probe_video(path).duration
    return PoseVideo(lambda: read_timed_frames(path), duration=duration, size=size, fps=fps, start=skip)


def _unposed(pose: PoseVideo | None, control: PoseControl, num_frames: int, fps: float) -> tuple[str, ...]:
    """A remark where the pose video ends before it is to be followed no longer."""
    if pose is None:
        return ()
    return pose.ends_early(min(num_frames, control.stop_frame or num_frames) / fps)


def video_path(video: host.Video) -> Path:
    """The file of a VIDEO; one that is only in memory, trimmed or cropped goes into the host's temporary folder.

    Raises: MediaError when it cannot be written there.
    """
    source = host.whole_source(video)
    if isinstance(source, str):
        return Path(source)
    host.temp_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wan_s2v_", dir=host.temp_folder()) as folder:
        path = Path(folder) / "video.mp4"
        try:
            if source is None:
                host.save_video(video, path)
            else:
                path.write_bytes(source.getvalue())
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise MediaError(
                f"what is left of the video input cannot be written to a file ({error}): save it with Save Video, and "
                "load that file"
            ) from error
        kept = host.temp_folder() / f"wan_s2v_{file_digest(path)[:16]}.mp4"
        return kept if kept.is_file() else path.replace(kept)

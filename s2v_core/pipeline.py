"""Load once, run(request) -> mp4: every room put together, nothing computed here.

Knows the order of things: read, condition, plan, generate clip by clip onto disk, join with the sound.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from .cast import Cast, open_cast
from .components import Components
from .conditioning.audio import SoundFeatures, num_video_frames
from .conditioning.driving import Driving, drive, exact
from .conditioning.image import fit_picture
from .conditioning.pose import PoseVideo
from .conditioning.pose_footage import drawn_poses, skeleton_finder
from .errors import ConfigError, OutputError
from .geometry import VideoSize, fit_size
from .media.audio_io import open_sound
from .media.image_io import read_picture
from .media.interpolate import write_interpolated
from .media.speech import VOICE, speech_file
from .media.video_io import TimedFrame, join_segments, probe_video, read_timed_frames, require_writable
from .models.vae import decoder_receptive_field
from .placement import MemoryEstimate
from .request import Request
from .types import ClipPlan, Conditioning, DecodedClip, Direction, SamplerSettings
from .video.color import ColourMatch, Grade
from .video.fill import fill_take, sound_digest
from .video.storyboard import PlacedScene, Scene, Script, direct, place_scenes, read_storyboard, unseen
from .video.take import Take
from .video.timeline import plan_clips

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Who is told what a run will do, and how far it is."""

    def planned(self, plan: JobPlan) -> None: ...
    def clip_started(self, index: int, total: int, steps: int) -> None: ...
    def step(self, index: int, step: int, steps: int) -> None: ...
    def clip_finished(self, index: int, total: int) -> None: ...
    def finished(self, path: Path) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def planned(self, plan: JobPlan) -> None:
        pass

    def clip_started(self, index: int, total: int, steps: int) -> None:
        pass

    def step(self, index: int, step: int, steps: int) -> None:
        pass

    def clip_finished(self, index: int, total: int) -> None:
        pass

    def finished(self, path: Path) -> None:
        pass


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPlan:
    """What a run will do, known before any weight is read."""

    size: VideoSize
    num_frames: int          # that are made, at `fps`
    fps: float
    output_frames: int       # of the file, at `output_fps`: other than made where frames are interpolated
    output_fps: float
    clips: tuple[ClipPlan, ...]
    settings: SamplerSettings
    take: Path
    finished_clips: int
    estimate: MemoryEstimate
    scenes: tuple[PlacedScene, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def is_interpolated(self) -> bool:
        return self.output_fps != self.fps

    def __str__(self) -> str:
        s = self.settings
        done = f", {self.finished_clips} already finished in {self.take}" if self.finished_clips else ""
        lines = [
            f"video   {self.size}, {self.num_frames} frames at {self.fps:g} fps, {self.num_frames / self.fps:.2f} s",
            *([f"file    {self.output_frames} frames at {self.output_fps:g} fps"] if self.is_interpolated else []),
            f"clips   {len(self.clips)}{done}",
            f"steps   {s.steps} of {s.solver}, shift {s.shift:g}, guidance {_guidance(s)}",
            f"memory  {self.estimate}",
            *(f"scene   {scene}" for scene in self.scenes),
            *(f"note    {remark}" for remark in self.remarks),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A finished video."""

    path: Path
    num_frames: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A request with its media opened and its plan made."""

    request: Request
    picture: Image.Image
    cast: Cast
    driving: Driving
    pose: PoseVideo | None
    scripts: tuple[Script, ...]              # one per clip
    pictures: dict[str, Image.Image]         # of the scenes, by the names in their scripts
    plan: JobPlan


class Told:
    """A take's watch that tells a run's progress."""

    def __init__(self, progress: Progress, *, clips: int, steps: int) -> None:
        self.progress = progress
        self.total, self.steps = clips, steps
        self.index = 0

    def clip_started(self, plan: ClipPlan) -> None:
        self.index = plan.index
        self.progress.clip_started(self.index, self.total, self.steps)

    def step(self, done: int, total: int) -> None:
        self.progress.step(self.index, done, total)

    def clip_finished(self, clip: DecodedClip) -> None:
        self.progress.clip_finished(self.index, self.total)


class WanS2VPipeline:
    """From one picture, a sound track and a prompt to a video of the sound's length.

    Make one with `from_pretrained`; `run` makes a file from a `Request`, calling the pipeline takes plain arguments.
    """

    def __init__(self, components: Components) -> None:
        self.components = components

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        device_map: str | torch.device | None = None,
        attention: str = "auto",
        offload: str = "auto",
        loras: Sequence[tuple[Path, float]] = (),
        load_weights: bool = True,
    ) -> WanS2VPipeline:
        """Find a model's weights and get ready to use them; each is read when it is first needed.

        Args:
            model: folder of the official release, of single-file repackagings, or of our own layout;
                None: the small bundled model.
            torch_dtype: what the transformer computes in; None: bf16 on a GPU, what suits the size on a CPU.
            device_map: "cuda", "cuda:1", "mps", "cpu"; None: the best there is.
            attention: "auto", "sdpa", "flash" or "sage".
            offload: "none", "model" (models take turns on the device), "blocks" (the transformer's blocks are
                streamed too), or "auto": as little as fits.
            loras: files and strengths, added to the transformer in order.
            load_weights: False: only plan; `run` is then refused.

        Raises: CheckpointError for missing or unfit weights, ConfigError for impossible settings.
        """
        return cls(
            Components.find(
                None if model is None else Path(model),
                dtype=torch_dtype,
                device=device_map,
                attention=attention,
                offload=offload,
                loras=tuple(loras),
                load_weights=load_weights,
            )
        )

    def together(self) -> AbstractContextManager[bool]:
        """With the other processes of a torchrun launch: see `Components.together`."""
        return self.components.together()

    def enable_cpu_offload(self, what: str = "model") -> None:
        """Let models ("model") or also the transformer's blocks ("blocks") wait in main memory."""
        self.components.set_offload(what)

    def plan(self, request: Request) -> JobPlan:
        """What `run` would do, checked as far as it can be without weights.

        Raises: MediaError, ShapeError, ConfigError; OutputError for a place that cannot be written.
        """
        with self._opened(request) as job:
            return job.plan

    def run(self, request: Request, progress: Progress | None = None) -> RunResult:
        """Make the video, or continue one that was stopped: finished clips are kept in the take.

        Raises: S2VError; MediaError and its like before work starts, OutputError when the disk gives out.
        """
        if request.output is None:
            raise ConfigError("a run needs an output file; call the pipeline itself to decide later where to save")
        progress = progress or Silent()
        with self._opened(request) as job:
            progress.planned(job.plan)
            with Take.open(job.plan.take, self._fingerprint(job), _made_from(job)) as take:
                self._fill(take, job, progress)
                self._join(take, job, request.output)
            if request.take is None:
                shutil.rmtree(job.plan.take, ignore_errors=True)
        progress.finished(request.output)
        plan = job.plan
        return RunResult(
            path=request.output, num_frames=plan.output_frames, seconds=plan.output_frames / plan.output_fps
        )

    def __call__(
        self,
        *,
        image_path: str | Path,
        audio_path: str | Path | None = None,
        prompt: str = "",
        negative_prompt: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        **settings: object,
    ) -> PipelineResult:
        """Generate now, save later: `pipe(audio_path=..., image_path=..., prompt=...).save("out.mp4")`.

        Args:
            audio_path: None: `speakers` have voices of their own, or there are words to `say`.
            num_frames: None: the whole sound.
            height, width: pixels, both or neither; None: the picture's shape at the model's area.
            generator: its initial seed is the video's seed; None: 0.
            settings: any other field of `Request`.
        """
        if (height is None) != (width is None):
            raise ConfigError(f"give both height and width or neither; got height {height}, width {width}")
        request = Request(
            image=Path(image_path),
            audio=None if audio_path is None else Path(audio_path),
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            size=None if height is None else VideoSize(width=width, height=height),
            guidance_scale=guidance_scale,
            steps=num_inference_steps,
            seed=generator.initial_seed() if generator is not None else 0,
            **settings,
        )
        folder = tempfile.TemporaryDirectory(prefix="wan-s2v-")
        video = Path(folder.name) / "video.mp4"
        result = self.run(replace(request, output=video), progress)
        return PipelineResult(folder, video, result.num_frames, request.output_fps or request.fps)

    # ---- the parts of a run ---------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, request: Request) -> Iterator[_Job]:
        """The request's media, opened and checked, and the plan that follows from them."""
        with ExitStack() as stack:
            if request.output is not None:
                require_writable(request.output)
            picture = read_picture(request.image)
            size = request.size or fit_size(*picture.size, request.max_area or self.components.config.default_area)
            if request.say is not None:
                request = replace(request, say=None, audio=_say(request))
            cast = stack.enter_context(open_cast(request, picture, size))
            heard, separate = stack.enter_context(open_sound(cast.heard)), None
            if request.driving_audio is not None:
                separate = stack.enter_context(open_sound(request.driving_audio))
            driving = drive(heard, separate, request.driving_settings())
            pose = _open_pose(request, size)
            scenes = () if request.storyboard is None else read_storyboard(request.storyboard)
            pictures = {scene.image: read_picture(Path(scene.image)) for scene in scenes if scene.image is not None}
            plan = self._plan(request, size, driving, pose, scenes)
            clips, scripts = direct(plan.clips, plan.scenes)
            job = _Job(
                request=request, picture=picture, cast=cast, driving=driving, pose=pose, scripts=scripts,
                pictures=pictures, plan=replace(plan, clips=clips, remarks=(*cast.remarks(), *plan.remarks)),
            )  # fmt: skip
            finished = Take.count_finished(plan.take, _made_from(job))
            yield replace(job, plan=replace(job.plan, finished_clips=finished))

    def _plan(
        self, request: Request, size: VideoSize, driving: Driving, pose: PoseVideo | None, scenes: Sequence[Scene]
    ) -> JobPlan:
        config = self.components.config
        whole = num_video_frames(driving.sound, request.fps)
        num_frames = whole if request.num_frames is None else min(request.num_frames, whole)
        clips = plan_clips(
            num_frames, request.clip_settings(), seed=request.seed, start_from_image=request.start_from_image
        )
        settings = request.sampler_settings(
            steps=config.default_steps, shift=config.default_shift, guidance_scale=config.default_guidance
        )
        placed = place_scenes(scenes, clips, request.fps)
        return JobPlan(
            size=size,
            num_frames=num_frames,
            fps=request.fps,
            output_frames=_output_frames(request, num_frames, whole, driving),
            output_fps=request.output_fps or request.fps,
            clips=clips,
            settings=settings,
            take=request.take or _take_beside(request.output),
            finished_clips=0,
            estimate=self.components.estimate(size, request.clip_settings()),
            scenes=placed,
            remarks=(*driving.remarks, *_remarks(request, whole, num_frames, pose), *unseen(scenes, placed)),
        )

    def _fill(self, take: Take, job: _Job, progress: Progress) -> None:
        """Generate the clips that the take lacks."""
        if take.num_finished == len(job.plan.clips):
            return
        conditioning = self._condition(job)
        with self.components.denoising(job.plan.settings) as denoiser:
            fill_take(
                take, job.plan.clips, conditioning, denoiser, self.components.codec, job.request.clip_settings(),
                continuity=job.request.continuity,
                decoder_reach=decoder_receptive_field(self.components.config.vae),
                watch=Told(progress, clips=len(job.plan.clips), steps=job.plan.settings.steps),
                grade=_grade(job),
            )  # fmt: skip

    def _condition(self, job: _Job) -> Conditioning:
        request, size = job.request, job.plan.size
        negative = request.negative_prompt
        if negative is None:
            negative = self.components.config.negative_prompt
        prompts = [request.prompt if script.prompt is None else script.prompt for script in job.scripts]
        texts = list(dict.fromkeys([*prompts, negative]))   # each is encoded once
        embeds = dict(zip(texts, self.components.encode_prompts(texts), strict=True))
        pictures = _fitted_pictures(job)
        latents = {name: self.components.codec.encode(picture) for name, picture in pictures.items()}
        directions = tuple(
            Direction(
                prompt_embeds=embeds[prompt],
                reference_latent=latents[script.image],
                guidance_scale=script.guidance_scale,
            )
            for prompt, script in zip(prompts, job.scripts, strict=True)
        )
        first = directions[0]
        hidden_states = self.components.hidden_states
        track = SoundFeatures(job.driving.sound, hidden_states, fps=request.fps)
        audio, speakers = job.cast.features(track, hidden_states, request.fps)
        return Conditioning(
            size=size,
            prompt_embeds=first.prompt_embeds,
            negative_prompt_embeds=embeds[negative],
            reference_frames=pictures[job.scripts[0].image],
            reference_latent=first.reference_latent,
            directions=directions,
            audio=audio,
            speakers=speakers,
            pose=job.pose,
            pose_control=request.pose_control(),
        )

    def _join(self, take: Take, job: _Job, output: Path) -> None:
        plan, segments = job.plan, take.segments
        smooth = take.folder / "interpolated.mp4"
        try:
            if plan.is_interpolated:
                write_interpolated(
                    segments, smooth, fps=plan.fps, to_fps=plan.output_fps, num_frames=plan.output_frames
                )
                segments = (smooth,)
            join_segments(
                segments, output, audio=job.cast.heard, fps=plan.output_fps, num_frames=plan.output_frames,
                audio_start=job.driving.start, audio_seconds=job.driving.seconds,
            )  # fmt: skip
        finally:
            smooth.unlink(missing_ok=True)

    def _fingerprint(self, job: _Job) -> dict[str, object]:
        """Everything that changes a pixel of every clip: a take is continued only by a job that is alike in it."""
        request, plan = job.request, job.plan
        return {
            "speakers": job.cast.fingerprint(),
            "pose": _pose_fingerprint(request),
            "match_colour": request.match_colour,
            "negative_prompt": request.negative_prompt,
            "size": str(plan.size),
            "sampler": asdict(plan.settings),
            "clip": asdict(request.clip_settings()),
            "start_from_image": request.start_from_image,
            "continuity": request.continuity,
            "model": self.components.identity(),
        }


class PipelineResult:
    """A video in a temporary folder, until it is saved or forgotten."""

    def __init__(self, folder: tempfile.TemporaryDirectory, video: Path, num_frames: int, fps: float) -> None:
        self._folder = folder
        self._video = video
        self.num_frames = num_frames
        self.fps = fps

    def save(self, path: str | Path) -> Path:
        """Copy the mp4 to `path`. Raises: OutputError where it cannot be written."""
        target = Path(path)
        try:
            shutil.copyfile(self._video, target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror}") from error
        return target


def _guidance(settings: SamplerSettings) -> str:
    text, audio = settings.scales()
    return f"{text:g}" if text == audio else f"{text:g}, of the sound {audio:g}"


def _say(request: Request) -> Path:
    """The words of a request, spoken; beside its output."""
    assert request.say is not None
    return speech_file(request.say, request.voice or VOICE, request.output or Path("video.mp4"))


def _open_pose(request: Request, size: VideoSize) -> PoseVideo | None:
    path = request.pose_video or request.pose_footage
    if path is None:
        return None
    duration = probe_video(path).duration
    if request.pose_skip >= duration:
        raise ConfigError(f"{path} lasts {duration:.2f} s: leaving out {request.pose_skip:g} s leaves nothing of it")
    find = None if request.pose_footage is None else skeleton_finder()

    def read() -> Iterator[TimedFrame]:
        frames = read_timed_frames(path)
        return frames if find is None else drawn_poses(frames, find)

    return PoseVideo(read, duration=duration, size=size, fps=request.fps, start=request.pose_skip)


def _pose_fingerprint(request: Request) -> dict[str, object] | None:
    path = request.pose_video or request.pose_footage
    if path is None:
        return None
    is_drawn = request.pose_footage is None
    return {"file": _sha256(path), "drawn": is_drawn, "skip": request.pose_skip, **asdict(request.pose_control())}


def _fitted_pictures(job: _Job) -> dict[str | None, Tensor]:
    """The reference pictures of the clips, by the names in their scripts."""
    names = dict.fromkeys(script.image for script in job.scripts)
    return {n: fit_picture(job.picture if n is None else job.pictures[n], job.plan.size) for n in names}


def _grade(job: _Job) -> Grade | None:
    """Each clip's frames to the colours of its reference picture."""
    method = job.request.match_colour
    if method == "off":
        return None
    matches = {name: ColourMatch(picture, method) for name, picture in _fitted_pictures(job).items()}
    return lambda plan, frames: matches[job.scripts[plan.index].image](frames)


def _output_frames(request: Request, num_frames: int, whole: int, driving: Driving) -> int:
    """Frames of the file: as many as cover the sound, or what is made of it."""
    if request.output_fps is None:
        return num_frames
    seconds = driving.seconds if num_frames == whole else num_frames / exact(request.fps)
    return max(1, math.ceil(seconds * exact(request.output_fps)))


def _take_beside(output: Path | None) -> Path:
    return Path("video.take") if output is None else output.with_name(output.name + ".take")


def _remarks(request: Request, whole: int, num_frames: int, pose: PoseVideo | None) -> tuple[str, ...]:
    remarks = []
    if request.num_frames is not None and request.num_frames > whole:
        remarks.append(f"{request.num_frames} frames were asked for, the sound has {whole}: the video ends with it")
    seconds = min(num_frames / request.fps, request.pose_end or math.inf)
    if pose is not None and pose.duration < seconds:
        remarks.append(f"the pose video lasts {pose.duration:.2f} s of {seconds:.2f} s: the rest moves freely")
    return tuple(remarks)


def _made_from(job: _Job) -> list[dict[str, object]]:
    """What changes the pixels of each clip, beyond what changes all: frames, seed, script, and the sound up to its end.

    Sound that comes later is left out, though the encoder's normalisation has heard it: a longer sound keeps clips.
    """
    pictures = {None: _sha256(job.request.image), **{name: _sha256(Path(name)) for name in job.pictures}}
    return [
        {
            "frames": [plan.start_frame, plan.stop_frame, plan.trim_start, plan.trim_end],
            "seed": plan.seed,
            "prompt": job.request.prompt if script.prompt is None else script.prompt,
            "guidance_scale": script.guidance_scale,
            "image": pictures[script.image],
            "audio": sound_digest(job.driving.sound, plan, job.plan.fps),
            "speakers": job.cast.said_in(plan, job.plan.fps),
        }
        for plan, script in zip(job.plan.clips, job.scripts, strict=True)
    ]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

"""Load once, run(request) -> mp4: every room put together, nothing computed here.

Knows the order of things: open the media, condition, generate clip by clip onto disk, join with the sound.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .components import Components
from .conditioning.audio import SoundFeatures
from .errors import ConfigError, OutputError
from .geometry import VideoSize
from .media.interpolate import at_rate
from .media.video_io import join_segments
from .models.vae import decoder_receptive_field
from .request import Request
from .running.identity import run_identity
from .running.job import Job, open_job
from .running.plan import JobPlan
from .running.watch import Progress, Silent, Told
from .types import Conditioning, Direction
from .video.fill import fill_take
from .video.take import Take


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A finished video."""

    path: Path
    num_frames: int
    seconds: float


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
        matmul: str = "off",
        vae_dtype: torch.dtype = torch.float32,
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
            matmul: "off"; "fp8" or "int8": the transformer's large matrices are multiplied in 8 bits.
            vae_dtype: what the autoencoder computes in: float32, or bfloat16.
            device_map: "cuda", "cuda:1", "mps", "cpu"; None: the best there is.
            attention: "auto", "sdpa", "cudnn", "flash", "sage" or "xformers".
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
                matmul=matmul,
                vae_dtype=vae_dtype,
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
        with open_job(request, self.components) as job:
            return job.plan

    def run(self, request: Request, progress: Progress | None = None) -> RunResult:
        """Make the video, or continue one that was stopped: finished clips are kept in the take.

        Raises: S2VError; MediaError and its like before work starts, OutputError when the disk gives out.
        """
        if request.output is None:
            raise ConfigError("a run needs an output file; call the pipeline itself to decide later where to save")
        progress = progress or Silent()
        with open_job(request, self.components) as job:
            progress.planned(job.plan)
            identity = run_identity(job.request, job.plan, job.cast, self.components.identity())
            with Take.open(job.plan.take, identity, job.made_from()) as take:
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
            generator: its initial seed, modulo 2**63, is the video's seed; None: 0.
            settings: any other field of `Request` but its output, which is for `save` to say.

        Raises: as `run`.
        """
        if "output" in settings:
            raise ConfigError("a call gives a video to save: leave output out and name the file to its save()")
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
            seed=generator.initial_seed() % 2**63 if generator is not None else 0,
            **settings,
        )
        folder = tempfile.TemporaryDirectory(prefix="wan-s2v-")
        video = Path(folder.name) / "video.mp4"
        result = self.run(replace(request, output=video), progress)
        return PipelineResult(folder, video, result.num_frames, request.output_fps or request.fps)

    # ---- the parts of a run ---------------------------------------------------------------------------------------

    def _fill(self, take: Take, job: Job, progress: Progress) -> None:
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
                grade=job.grade(),
            )  # fmt: skip

    def _condition(self, job: Job) -> Conditioning:
        request, size = job.request, job.plan.size
        negative = request.negative_prompt
        if negative is None:
            negative = self.components.config.negative_prompt
        prompts = [request.prompt if script.prompt is None else script.prompt for script in job.scripts]
        texts = list(dict.fromkeys([*prompts, negative]))   # each is encoded once
        embeds = dict(zip(texts, self.components.encode_prompts(texts), strict=True))
        pictures = job.fitted_pictures()
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

    def _join(self, take: Take, job: Job, output: Path) -> None:
        plan = job.plan
        with at_rate(take.segments, plan.fps, plan.output_fps, plan.output_frames, take.folder) as segments:
            join_segments(
                segments, output, audio=job.cast.heard, fps=plan.output_fps, num_frames=plan.output_frames,
                audio_start=job.driving.start, audio_seconds=job.driving.seconds,
            )  # fmt: skip


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

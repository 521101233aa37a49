"""Footage, new sound -> the footage speaking it: look, plan, draw clip by clip onto disk, join with the sound.

Knows the order of things; what each part does is in the other modules of this room and in the clip loop.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..components import Components
from ..conditioning.audio import SoundFeatures
from ..config import FEATURE_VIDEO_RATE
from ..errors import MediaError
from ..geometry import VideoSize, fit_size
from ..media.audio_io import Sound, open_sound
from ..media.video_io import join_segments, read_timed_frames, require_writable
from ..models.vae import decoder_receptive_field
from ..pipeline import Progress, Silent, Told
from ..types import ClipPlan, Conditioning
from ..video.fill import fill_take
from ..video.take import Take
from .faces import Faces, FoundFaces, GivenBoxes, MaskedFaces, read_boxes, read_mask
from .masks import LowerFace, Painted, Region
from .plan import (
    DubPlan,
    Untouched,
    find_stretches,
    look_through,
    made_from,
    nothing_to_do,
    reasons_to_leave,
    segment_range,
    untouched_frames,
)
from .request import DubRequest
from .shot import FrameReader, Shot
from .stretch import LEAD_FRAMES, Editor, Stretch, StretchFootage, StretchSound
from .timeline import LOOP_SECONDS, Timeline, make_timeline
from .tracking import Track, follow

SQUARE = 1 << 12      # pixels: a square so large that only the model's area limits it


@dataclass(frozen=True, kw_only=True, slots=True)
class DubResult:
    """A finished video."""

    path: Path
    num_frames: int
    seconds: float
    untouched: tuple[Untouched, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """A request with its media opened and its plan made."""

    request: DubRequest
    shot: Shot
    sound: Sound
    editor: Editor
    plan: DubPlan


class Dubber:
    """Re-dubs footage with a pipeline's models.

    Args:
        components: of a pipeline.
        faces: says where faces are when the request does not; None: OpenCV's cascades.
    """

    def __init__(self, components: Components, faces: Faces | None = None) -> None:
        self.components = components
        self.faces = faces

    def plan(self, request: DubRequest) -> DubPlan:
        """What `run` would do, checked as far as it can be without weights; the footage is looked through once.

        Raises: MediaError, ShapeError, ConfigError; OutputError for a place that cannot be written.
        """
        with self._opened(request) as job:
            return job.plan

    def run(self, request: DubRequest, progress: Progress | None = None) -> DubResult:
        """Make the video, or continue one that was stopped: finished clips are kept in the take.

        Raises: S2VError; MediaError and its like before work starts, OutputError when the disk gives out.
        """
        progress = progress or Silent()
        with self._opened(request) as job:
            progress.planned(job.plan)
            with Take.open(job.plan.take, self._fingerprint(job), made_from(job.plan.stretches)) as take:
                self._fill(take, job, progress)
                self._join(take, job)
            if request.take is None:
                shutil.rmtree(job.plan.take, ignore_errors=True)
        progress.finished(request.output)
        plan = job.plan
        return DubResult(
            path=request.output, num_frames=plan.num_frames, seconds=plan.seconds, untouched=plan.untouched
        )

    # ---- the plan ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self, request: DubRequest) -> Iterator[_Job]:
        require_writable(request.output)
        first = next(read_timed_frames(request.video)).picture()
        height, width = first.shape[:2]
        with open_sound(request.audio) as sound:
            faces, region = self._looked_for(request, width, height)
            shot, seen = look_through(request, faces)
            track = follow(seen, shot.cuts, step=shot.step, is_given=faces.is_given, which=request.face)
            timeline = make_timeline(shot, float(sound.duration), request.length)
            area = request.max_area or self.components.config.default_area
            size = request.size or fit_size(SQUARE, SQUARE, area)
            editor = Editor(timeline=timeline, region=region, size=size, mask_padding=request.mask_padding)
            plan = self._plan(request, shot, timeline, track, size)
            yield _Job(request=request, shot=shot, sound=sound, editor=editor, plan=plan)

    def _looked_for(self, request: DubRequest, width: int, height: int) -> tuple[Faces, Region]:
        """Who says where the face is, and where the mouth is."""
        mask = None if request.mask is None else read_mask(request.mask, width, height)
        region = LowerFace() if mask is None else Painted(mask)
        if isinstance(request.face_box, Path):
            return GivenBoxes(read_boxes(request.face_box)), region
        if request.face_box is not None:
            return GivenBoxes(request.face_box), region
        if mask is not None:
            return MaskedFaces(mask), region
        return self.faces or FoundFaces(), region

    def _plan(
        self, request: DubRequest, shot: Shot, timeline: Timeline, track: Track, size: VideoSize
    ) -> DubPlan:
        config, clip = self.components.config, request.clip_settings()
        reasons = reasons_to_leave(request, timeline, track)
        stretches = find_stretches(request, shot, timeline, track, reasons, size)
        if not stretches:
            raise MediaError(nothing_to_do(request, set(reasons)))
        take = request.take or request.output.with_name(request.output.name + ".take")
        return DubPlan(
            width=shot.width,
            height=shot.height,
            timeline=timeline,
            size=size,
            stretches=stretches,
            untouched=untouched_frames(reasons),
            settings=request.sampler_settings(
                steps=config.default_steps, shift=config.default_shift, guidance_scale=config.default_guidance
            ),
            take=take,
            finished_clips=Take.count_finished(take, made_from(stretches)),
            estimate=self.components.estimate(size, clip),
        )

    # ---- the run ----------------------------------------------------------------------------------------------------

    def _fill(self, take: Take, job: _Job, progress: Progress) -> None:
        """Draw the clips that the take lacks."""
        if take.num_finished == len(job.plan.clips):
            return
        prompts = self._prompts(job.request)
        features = SoundFeatures(job.sound, self.components.hidden_states, fps=FEATURE_VIDEO_RATE)
        # the loop looks ahead of what is written, so each has its own reader
        cutter, reader = (FrameReader(job.request.video, keep=_frames_kept(job)) for _ in range(2))
        watch = Told(progress, clips=len(job.plan.clips), steps=job.plan.settings.steps)
        with self.components.denoising(job.plan.settings) as denoiser:
            for stretch in job.plan.stretches:
                if take.num_finished > stretch.plans[-1].index:
                    continue
                footage = StretchFootage(job.editor, stretch, cutter, job.request.strength)
                fill_take(
                    take,
                    stretch.plans,
                    self._condition(job, stretch, footage, prompts, features),
                    denoiser,
                    self.components.codec,
                    replace(job.request.clip_settings(), fps=job.shot.usual_rate),
                    continuity=job.request.continuity,
                    decoder_reach=decoder_receptive_field(self.components.config.vae),
                    watch=watch,
                    pictures=partial(_pictures, job, reader, stretch),
                )

    def _prompts(self, request: DubRequest) -> list[Tensor]:
        negative = request.negative_prompt
        if negative is None:
            negative = self.components.config.negative_prompt
        return self.components.encode_prompts([request.prompt, negative])

    def _condition(
        self,
        job: _Job,
        stretch: Stretch,
        footage: StretchFootage,
        prompts: Sequence[Tensor],
        features: SoundFeatures,
    ) -> Conditioning:
        reference = footage.picture(0)[None, :, None]
        return Conditioning(
            size=job.plan.size,
            prompt_embeds=prompts[0],
            negative_prompt_embeds=prompts[1],
            reference_frames=reference,
            reference_latent=self.components.codec.encode(reference),
            audio=StretchSound(features, job.plan.timeline, stretch, job.sound.duration),
            source=footage,
        )

    def _join(self, take: Take, job: _Job) -> None:
        timeline = job.plan.timeline
        join_segments(
            take.segments,
            job.request.output,
            audio=job.request.audio,
            fps=job.shot.usual_rate,
            num_frames=timeline.num_frames,
            times=None if timeline.rate else timeline.times,
        )

    def _fingerprint(self, job: _Job) -> dict[str, object]:
        """Everything that changes a pixel: a take is continued only by the job that began it."""
        request, plan = job.request, job.plan
        faces = [(stretch.first, stretch.faces) for stretch in plan.stretches]
        return {
            "video": _sha256(request.video),
            "audio": _sha256(request.audio),
            "mask": None if request.mask is None else _sha256(request.mask),
            "mask_padding": request.mask_padding,
            "faces": _digest(faces),
            "frames": _digest((plan.timeline.numbers, plan.timeline.times)),
            "draw_every": plan.stretches[0].draw_every,
            "strength": request.strength,
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "size": str(plan.size),
            "sampler": asdict(plan.settings),
            "clip": asdict(request.clip_settings()),
            "seed": request.seed,
            "continuity": request.continuity,
            "model": self.components.identity(),
        }


def _frames_kept(job: _Job) -> int:
    """Pictures that are asked for again: those before a clip, and all that go back and forth."""
    return LEAD_FRAMES * job.plan.stretches[0].draw_every + int(LOOP_SECONDS / job.shot.step) + 2


def _pictures(
    job: _Job, reader: FrameReader, stretch: Stretch, plan: ClipPlan, drawn: Tensor
) -> Iterator[np.ndarray]:
    """The pictures of the result from the end of the clip before to the end of this one.

    The last clip of a stretch takes all of it, and the last of all takes the rest of the video.

    Args:
        drawn: [1, 3, F, h, w] in [-1, 1], the frames that the clip keeps.
    """
    start, begin, stop = segment_range(job.plan, stretch, plan)
    for frame in range(start, stop):
        picture = reader.picture(job.plan.timeline.numbers[frame])
        inside = frame - stretch.first
        if begin <= frame < stretch.stop:
            picture = job.editor.paste(picture, stretch, inside, _drawn_at(drawn, frame - begin, stretch.draw_every))
        yield picture


def _drawn_at(drawn: Tensor, frame: int, draw_every: int) -> Tensor:
    """[3, h, w] at a frame after the clip's first: between two that were drawn, a blend of them."""
    before, between = divmod(frame, draw_every)
    after = min(before + 1, drawn.shape[2] - 1)
    return torch.lerp(drawn[0, :, before], drawn[0, :, after], between / draw_every)


def _digest(numbers: object) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

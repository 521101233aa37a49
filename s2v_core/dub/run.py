"""Footage, new sound -> the footage speaking it: look, plan, draw clip by clip onto disk, join with the sound.

Knows the order of things; what each part does is in the other modules of this room and in the clip loop.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from ..media.video_io import join_segments, read_timed_frames, require_writable, write_segment
from ..models.vae import decoder_receptive_field
from ..pipeline import Progress, Silent
from ..placement import MemoryEstimate
from ..types import ClipPlan, Conditioning, Denoiser, SamplerSettings
from ..video.generate import Past, generate_clips
from ..video.take import Take
from ..video.timeline import plan_clips
from .crop import crop_boxes
from .faces import Face, Faces, FoundFaces, GivenBoxes, MaskedFaces, read_boxes, read_mask
from .masks import LowerFace, Painted, Region
from .request import DubRequest
from .shot import FrameReader, Shot, describe_shot, thumbnail
from .stretch import LEAD_FRAMES, Editor, Stretch, StretchFootage, StretchSound, num_drawn
from .timeline import LOOP_SECONDS, Timeline, make_timeline
from .tracking import Track, follow, runs

log = logging.getLogger(__name__)

MOST_DRAWN = 30.5     # frames a second that the model draws, at most, when nobody says how many
SQUARE = 1 << 12      # pixels: a square so large that only the model's area limits it
OUTSIDE = "outside the times that were asked for"


@dataclass(frozen=True, kw_only=True, slots=True)
class Untouched:
    """Frames of the result that are the footage's own."""

    first: int
    last: int
    reason: str

    def __str__(self) -> str:
        last = f"-{self.last}" if self.last > self.first else ""
        return f"{self.first}{last} ({self.reason})"


@dataclass(frozen=True, kw_only=True, slots=True)
class DubPlan:
    """What a run will do, known before any weight is read."""

    width: int
    height: int
    timeline: Timeline
    size: VideoSize                  # at which the face is drawn
    stretches: tuple[Stretch, ...]
    untouched: tuple[Untouched, ...]
    settings: SamplerSettings
    take: Path
    finished_clips: int
    estimate: MemoryEstimate

    @property
    def clips(self) -> tuple[ClipPlan, ...]:
        return tuple(plan for stretch in self.stretches for plan in stretch.plans)

    @property
    def num_frames(self) -> int:
        return self.timeline.num_frames

    @property
    def seconds(self) -> float:
        return self.timeline.times[-1]

    def __str__(self) -> str:
        s, rate = self.settings, self.timeline.rate
        told = "a varying frame rate" if rate is None else f"{float(rate):.5g} fps"
        done = f", {self.finished_clips} already finished in {self.take}" if self.finished_clips else ""
        lines = [
            f"video   {self.width}x{self.height}, {self.num_frames} frames at {told}, {self.seconds:.2f} s",
            f"length  {self.timeline.remark}",
            f"face    drawn at {self.size}{_how_often(self.stretches[0].draw_every)}",
            f"clips   {len(self.clips)}{done}",
            f"steps   {s.steps} of {s.solver}, shift {s.shift:g}, guidance {s.guidance_scale:g}",
            f"memory  {self.estimate}",
            *(f"as is   frames {untouched}" for untouched in self.untouched),
        ]
        return "\n".join(lines)


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
            with Take.open(job.plan.take, self._fingerprint(job), _made_from(job.plan.stretches)) as take:
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
            shot, seen = _look_through(request, faces)
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
        reasons = _reasons(request, timeline, track)
        stretches = _stretches(request, shot, timeline, track, reasons, size)
        if not stretches:
            raise MediaError(_nothing_to_do(request, set(reasons)))
        take = request.take or request.output.with_name(request.output.name + ".take")
        return DubPlan(
            width=shot.width,
            height=shot.height,
            timeline=timeline,
            size=size,
            stretches=stretches,
            untouched=_untouched(reasons),
            settings=request.sampler_settings(
                steps=config.default_steps, shift=config.default_shift, guidance_scale=config.default_guidance
            ),
            take=take,
            finished_clips=Take.count_finished(take, _made_from(stretches)),
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
        with self.components.denoising(job.plan.settings) as denoiser:
            for stretch in job.plan.stretches:
                if take.num_finished <= stretch.plans[-1].index:
                    footage = StretchFootage(job.editor, stretch, cutter, job.request.strength)
                    conditioning = self._condition(job, stretch, footage, prompts, features)
                    self._draw(take, job, stretch, conditioning, denoiser, reader, progress)

    def _draw(
        self,
        take: Take,
        job: _Job,
        stretch: Stretch,
        conditioning: Conditioning,
        denoiser: Denoiser,
        reader: FrameReader,
        progress: Progress,
    ) -> None:
        """Draw the clips that the take lacks of one stretch."""
        total, steps = len(job.plan.clips), job.plan.settings.steps
        current = take.num_finished
        progress.clip_started(current, total, steps)

        def on_step(done: int, of: int) -> None:
            progress.step(current, done, of)

        def write(path: Path, drawn: Tensor) -> None:
            pictures = _segment(job, stretch, job.plan.clips[current], drawn, reader)
            write_segment(path, pictures, fps=float(1 / job.shot.step))

        for clip in generate_clips(
            stretch.plans,
            conditioning,
            denoiser,
            self.components.codec,
            job.request.clip_settings(),
            continuity=job.request.continuity,
            past=_past_of(stretch, take),
            decoder_reach=decoder_receptive_field(self.components.config.vae),
            on_step=on_step,
        ):
            take.add(clip, write)
            progress.clip_finished(current, total)
            del clip   # a clip of frames is large, and the next one is made while this name lives
            current += 1
            if current <= stretch.plans[-1].index:
                progress.clip_started(current, total, steps)

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
            fps=float(1 / job.shot.step),
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


def _how_often(draw_every: int) -> str:
    if draw_every == 1:
        return ""
    return f", one frame of {draw_every}; those between are blended"


def _look_through(request: DubRequest, faces: Faces) -> tuple[Shot, list[Sequence[Face]]]:
    """Every frame of the footage once: when it shows, what is on it."""
    times, thumbnails, seen = [], [], []
    size = (0, 0)
    for number, frame in enumerate(read_timed_frames(request.video)):
        picture = frame.picture()
        size = size if number else (picture.shape[1], picture.shape[0])
        if (picture.shape[1], picture.shape[0]) != size:
            raise MediaError(f"{request.video} changes its size at frame {number}; cut it there, or convert it first")
        times.append(frame.seconds)
        thumbnails.append(thumbnail(picture))
        seen.append(faces.seen(number, frame.seconds, picture) if _is_asked_for(request, frame.seconds) else ())
    return describe_shot(request.video, times, thumbnails, size), seen


def _is_asked_for(request: DubRequest, seconds: float) -> bool:
    return request.start <= seconds and (request.end is None or seconds < request.end)


def _reasons(request: DubRequest, timeline: Timeline, track: Track) -> list[str]:
    """Why each frame of the result stays as it is; "" for those that are drawn."""
    return [
        track.reasons[number] if _is_asked_for(request, timeline.times[number]) else OUTSIDE
        for number in timeline.numbers
    ]


def _untouched(reasons: Sequence[str]) -> tuple[Untouched, ...]:
    found = [
        Untouched(first=first, last=stop - 1, reason=reason)
        for reason in sorted({reason for reason in reasons if reason})
        for first, stop in runs([other == reason for other in reasons])
    ]
    return tuple(sorted(found, key=lambda untouched: untouched.first))


def _nothing_to_do(request: DubRequest, reasons: set[str]) -> str:
    if reasons == {OUTSIDE}:
        return f"{request.video} has no frame between {request.start:g} s and the end that was asked for"
    told = " or ".join(sorted(reasons - {OUTSIDE}))
    remedy = "give --face-box, or a --mask that is white where the mouth is"
    which = "" if request.face is None else f" number {request.face}"
    return f"{request.video}: no face{which} to dub in any frame ({told}); {remedy}"


def _stretches(
    request: DubRequest, shot: Shot, timeline: Timeline, track: Track, reasons: Sequence[str], size: VideoSize
) -> tuple[Stretch, ...]:
    """What is drawn, with the clips of every stretch numbered through."""
    draw_every = request.draw_every or max(1, int(np.ceil(1 / shot.step / MOST_DRAWN)))
    settings = request.clip_settings()
    stretches: list[Stretch] = []
    num_clips = 0
    for first, stop in _unbroken(timeline, shot, reasons):
        faces = tuple(track.boxes[number] for number in timeline.numbers[first:stop])
        drawn = num_drawn(stop - first, draw_every)
        plans = plan_clips(drawn, settings, seed=request.seed + num_clips, start_from_image=False)
        stretches.append(
            Stretch(
                first=first,
                faces=faces,
                crops=crop_boxes(faces, shot.width, shot.height, size, shot.step),
                draw_every=draw_every,
                plans=tuple(replace(plan, index=num_clips + plan.index) for plan in plans),
            )
        )
        num_clips += len(plans)
    return tuple(stretches)


def _unbroken(timeline: Timeline, shot: Shot, reasons: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Runs of frames to be drawn, within one scene each."""
    for first, stop in runs([not reason for reason in reasons]):
        edges = [k for k in range(first + 1, stop) if timeline.numbers[k] in shot.cuts
                 and timeline.numbers[k - 1] == timeline.numbers[k] - 1]  # fmt: skip
        yield from zip([first, *edges], [*edges, stop], strict=True)


def _made_from(stretches: Sequence[Stretch]) -> list[dict[str, object]]:
    """What each clip is made from, beyond what all of them are."""
    return [{"stretch": stretch.first, "plan": asdict(plan)} for stretch in stretches for plan in stretch.plans]


def _past_of(stretch: Stretch, take: Take) -> Past | None:
    """What a take has of a stretch."""
    done = min(take.num_finished - stretch.plans[0].index, len(stretch.plans))
    past = take.past() if done > 0 else None
    return None if past is None else replace(past, num_clips=done)


def _frames_kept(job: _Job) -> int:
    """Pictures that are asked for again: those before a clip, and all that go back and forth."""
    return LEAD_FRAMES * job.plan.stretches[0].draw_every + int(LOOP_SECONDS / job.shot.step) + 2


def _segment(
    job: _Job, stretch: Stretch, plan: ClipPlan, drawn: Tensor, reader: FrameReader
) -> Iterator[np.ndarray]:
    """The pictures of the result from the end of the clip before to the end of this one.

    The last clip of a stretch takes all of it, and the last of all takes the rest of the video.

    Args:
        drawn: [1, 3, F, h, w] in [-1, 1], the frames that the clip keeps.
    """
    start, begin, stop = _segment_range(job.plan, stretch, plan)
    for frame in range(start, stop):
        picture = reader.picture(job.plan.timeline.numbers[frame])
        inside = frame - stretch.first
        if begin <= frame < stretch.stop:
            picture = job.editor.paste(picture, stretch, inside, _drawn_at(drawn, frame - begin, stretch.draw_every))
        yield picture


def _segment_range(plan: DubPlan, stretch: Stretch, clip: ClipPlan) -> tuple[int, int, int]:
    """First frame of a clip's segment, first frame that the clip drew, and one past the segment's last frame."""
    begin = stretch.first + clip.first_kept * stretch.draw_every
    start = begin
    if clip is stretch.plans[0]:
        before = [other for other in plan.stretches if other.first < stretch.first]
        start = before[-1].stop if before else 0
    stop = min(stretch.stop, begin + clip.num_kept * stretch.draw_every)
    return start, begin, plan.num_frames if clip is plan.clips[-1] else stop


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

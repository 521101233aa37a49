"""Footage, new sound -> the footage speaking it, with a pipeline's models.

Knows the order of things; what each part does is in the other modules of this room.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..components import Components
from ..conditioning.audio import SoundFeatures
from ..config import FEATURE_VIDEO_RATE
from ..geometry import fit_size
from ..media.audio_io import Sound, open_sound
from ..media.video_io import read_timed_frames, require_writable
from ..models.vae import decoder_receptive_field
from ..running.plan import foretold, sampler_settings
from ..running.watch import Progress, Silent, Told
from ..video.take import Take, file_digest
from .faces import Faces, FoundFaces, GivenBoxes, MaskedFaces, read_boxes, read_mask
from .filling import Lent, fill_with_dub, join_dub
from .masks import LowerFace, Painted, Region
from .plan import DubPlan, Untouched, find_work
from .request import DubRequest

SQUARE = 1 << 12      # pixels: a square so large that only the model's area limits it


@dataclass(frozen=True, kw_only=True, slots=True)
class DubResult:
    """A finished video."""

    path: Path
    num_frames: int
    seconds: float
    untouched: tuple[Untouched, ...]


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
        with self._opened(request) as (plan, _):
            return plan

    def run(self, request: DubRequest, progress: Progress | None = None) -> DubResult:
        """Make the video, or continue one that was stopped: finished clips are kept in the take.

        Raises: S2VError; MediaError and its like before work starts, OutputError when the disk gives out.
        """
        progress = progress or Silent()
        with self._opened(request) as (plan, sound):
            progress.planned(plan)
            with Take.open(plan.take, self._fingerprint(plan), plan.work.made_from()) as take:
                if take.num_finished < len(plan.work.clips):
                    self._fill(take, plan, sound, progress)
                join_dub(take, plan.work, request.audio, request.output)
            if request.take is None:
                shutil.rmtree(plan.take, ignore_errors=True)
        progress.finished(request.output)
        timeline = plan.work.timeline
        return DubResult(
            path=request.output,
            num_frames=timeline.num_frames,
            seconds=timeline.times[-1],
            untouched=plan.work.untouched,
        )

    @contextmanager
    def _opened(self, request: DubRequest) -> Iterator[tuple[DubPlan, Sound]]:
        """The sound, and the plan that follows from it and the footage."""
        require_writable(request.output)
        settings = sampler_settings(request, self.components)
        size = request.size or fit_size(SQUARE, SQUARE, request.max_area or self.components.config.default_area)
        with open_sound(request.audio) as sound:
            work = find_work(request, *who_says_where(request, self.faces), size, float(sound.duration))
            plan = DubPlan(
                work=work,
                settings=settings,
                take=request.take_folder,
                finished_clips=0,
                **foretold(self.components, size, request, settings),
            )
            finished = 0
            if plan.take.exists():   # only then: the fingerprint is read from all the weights' files
                finished = Take.count_finished(plan.take, self._fingerprint(plan), work.made_from())
            yield replace(plan, finished_clips=finished), sound

    def _fill(self, take: Take, plan: DubPlan, sound: Sound, progress: Progress) -> None:
        request, components = plan.work.request, self.components
        negative = request.negative_prompt
        if negative is None:
            negative = components.config.negative_prompt
        prompt_embeds, negative_embeds = components.encode_prompts([request.prompt, negative])
        with components.denoising(plan.settings) as denoiser:
            lent = Lent(
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_embeds,
                features=SoundFeatures(sound, components.hidden_states, fps=FEATURE_VIDEO_RATE),
                sound=sound,
                denoiser=denoiser,
                codec=components.codec,
                decoder_reach=decoder_receptive_field(components.config.vae),
            )
            watch = Told(progress, clips=len(plan.work.clips), steps=plan.settings.steps)
            fill_with_dub(take, plan.work, lent, watch)

    def _fingerprint(self, plan: DubPlan) -> dict[str, object]:
        """Everything that changes a pixel: a take is continued only by the job that began it."""
        request = plan.work.request
        return {
            **plan.work.fingerprint(),
            "audio": file_digest(request.audio),
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "sampler": asdict(plan.settings),
            "model": self.components.identity(),
        }


def who_says_where(request: DubRequest, finder: Faces | None) -> tuple[Faces, Region]:
    """Who says where the face is (`finder`, or OpenCV's cascades, where the request does not), and what is made anew.

    Raises: MediaError, ConfigError for a mask or boxes that cannot be used, ConfigError where OpenCV is missing.
    """
    mask = None
    if request.mask is not None:
        height, width = next(read_timed_frames(request.video)).picture().shape[:2]
        mask = read_mask(request.mask, width, height)
    region = LowerFace() if mask is None else Painted(mask)
    if isinstance(request.face_box, Path):
        return GivenBoxes(read_boxes(request.face_box)), region
    if request.face_box is not None:
        return GivenBoxes(request.face_box), region
    if mask is not None:
        return MaskedFaces(mask), region
    return finder or FoundFaces(), region

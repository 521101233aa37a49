"""Running the clip loop inside the host: its progress bar, its Cancel, a take on disk, and the finished file.

Knows what a run is made of; nodes hand it their inputs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor, nn

from ..s2v_core.media.interpolate import at_rate
from ..s2v_core.media.video_io import join_segments, to_pictures
from ..s2v_core.types import ClipPlan, DecodedClip
from ..s2v_core.video.fill import fill_take, sound_digest
from ..s2v_core.video.generate import Past, decode_again, generate_clips
from ..s2v_core.video.take import Take
from . import host
from . import model as models
from .job import Job, Motion
from .pictures import to_image
from .sampling import HostDenoiser, Sampling
from .sound import DrivingSound
from .waveform import write_wav

log = logging.getLogger(__name__)

FOLDER = "wan_s2v"   # below the host's output folder (takes) and its temporary one (finished takes), and in file names
FINISHED_TAKES = 4   # kept until the host starts again, for runs that only go on from them or change their end
FIRST_NUMBERS = 256  # of every weight: what tells one model from another without reading 14 billion
DEEPEST = 6          # objects within objects that a fingerprint looks into
NAMED = (nn.Module, host.ModelPatcher, type, ModuleType, logging.Logger)   # a fingerprint does not look into these


class RunProgress:
    """A node's bar over all clips and steps, showing the clip in progress, and each clip when it is finished.

    Args:
        images: where the frames of finished clips go; None: nobody asks for them.
    """

    def __init__(
        self,
        model: host.ModelPatcher,
        *,
        clips: int,
        steps: int,
        finished: int,
        node_id: str | None,
        images: Images | None = None,
    ) -> None:
        self._previews, self._steps = host.Previews(model), steps
        self._bar = host.Progress(clips * steps, node_id)
        self._clip = finished
        self._picture: Image.Image | None = None
        self._images = images
        self._bar.show(finished * steps)

    def denoised(self, latents: Tensor) -> None:
        self._picture = self._previews.picture(latents)

    def clip_started(self, plan: ClipPlan) -> None:
        pass

    def step(self, done: int, total: int) -> None:
        self._bar.show(self._clip * self._steps + round(done * self._steps / total), self._picture)

    def clip_finished(self, clip: DecodedClip) -> None:
        """Shows the clip's middle frame."""
        self._clip += 1
        if self._images is not None:
            self._images.put(clip)
        middle = clip.frames.shape[2] // 2
        picture = Image.fromarray(next(iter(to_pictures(clip.frames[:, :, middle : middle + 1]))))
        self._bar.show(self._clip * self._steps, picture)


class Images:
    """All frames of a video as the host's IMAGE [F, H, W, 3]: whoever asks for them pays the memory."""

    def __init__(self, job: Job) -> None:
        size = job.conditioning.size
        self.tensor = torch.empty(sum(plan.num_kept for plan in job.plans), size.height, size.width, 3)

    def put(self, clip: DecodedClip) -> None:
        frames = to_image(clip.frames)
        self.tensor[clip.plan.first_kept : clip.plan.first_kept + len(frames)] = frames


def sample_clip(
    job: Job, model: host.ModelPatcher, sampling: Sampling, motion: Motion | None, *, node_id: str | None
) -> tuple[DecodedClip, Motion]:
    """The clip that follows `motion`."""
    plan = job.next_plan(motion)
    past = None if motion is None else Past(num_clips=motion.num_clips, memory=motion.memory, latents=_no_latents)
    progress = RunProgress(model, clips=1, steps=sampling.steps, finished=0, node_id=node_id)
    denoiser = HostDenoiser(model, job.positives, job.negative, sampling, progress.denoised)
    clips = generate_clips(
        job.plans, job.conditioning, denoiser, job.codec, job.settings, past=past, on_step=progress.step
    )
    clip = next(clips)
    progress.clip_finished(clip)
    return clip, Motion(
        num_clips=plan.index + 1, memory=clip.memory, size=job.conditioning.size, fps=job.settings.fps
    )


def _no_latents(index: int) -> Tensor:
    raise AssertionError("exact continuity goes on from frames alone")


def long_video(
    job: Job,
    model: host.ModelPatcher,
    sound: DrivingSound,
    sampling: Sampling,
    *,
    continuity: str,
    output_fps: float,
    with_images: bool,
    node_id: str | None,
) -> tuple[Path, Tensor | None]:
    """The whole video as an mp4 in the host's temporary folder, and with_images its frames as the host's IMAGE.

    Finished clips lie in a take in the output folder until the video is whole: after Cancel, a crash or a restart the
    same inputs go on from there. The takes of the newest videos stay in the temporary folder: a longer video, or one
    whose storyboard changes towards its end, makes only the clips that are new. The same inputs a second time give
    the file that is there.

    Args:
        output_fps: of the file; above the job's, frames between its frames are interpolated.
    """
    shared, made_from = _fingerprint(job, model, sound, sampling, continuity), _made_from(job, sound)
    output = host.temp_folder() / f"{FOLDER}_{_name(shared, made_from, sound.heard_digest(), output_fps)}.mp4"
    if output.is_file() and not with_images:
        return output, None
    for remark in job.remarks:
        log.info("%s", remark)
    name = _name(shared, made_from[:1])   # whatever begins alike shares a take
    folder, finished = host.output_folder() / FOLDER / name, host.temp_folder() / FOLDER / name
    if finished.is_dir() and not folder.exists():
        _move(finished, folder)
    images = Images(job) if with_images else None
    with Take.open(folder, shared, made_from) as take:
        _fill(take, job, model, sampling, continuity, images, node_id)
        if not output.is_file():
            _join(take, job, sound, output_fps, output)
    _move(folder, finished)
    _forget_oldest(finished.parent)
    return output, None if images is None else images.tensor


def _fill(
    take: Take,
    job: Job,
    model: host.ModelPatcher,
    sampling: Sampling,
    continuity: str,
    images: Images | None,
    node_id: str | None,
) -> None:
    """Generate the clips that the take lacks."""
    progress = RunProgress(
        model, clips=len(job.plans), steps=sampling.steps, finished=take.num_finished, node_id=node_id, images=images
    )
    before = job.plans[: take.num_finished]
    if images is not None:
        for clip in decode_again(
            before, job.conditioning, job.codec, job.settings,
            continuity=continuity, latents=take.latents, grade=job.grade(),
        ):  # fmt: skip
            images.put(clip)
    fill_take(
        take, job.plans, job.conditioning,
        HostDenoiser(model, job.positives, job.negative, sampling, progress.denoised), job.codec, job.settings,
        continuity=continuity, decoder_reach=job.codec.decoder_reach, watch=progress, grade=job.grade(),
    )  # fmt: skip


def _join(take: Take, job: Job, sound: DrivingSound, output_fps: float, output: Path) -> None:
    wav = output.with_suffix(".wav")
    num_frames = sound.num_frames(output_fps)
    try:
        write_wav(wav, sound.heard)
        with at_rate(
            take.segments, job.settings.fps, output_fps, num_frames, take.folder, on_frame=host.stop_if_asked
        ) as segments:
            join_segments(segments, output, audio=wav, fps=output_fps, num_frames=num_frames)
    finally:
        wav.unlink(missing_ok=True)


def _move(folder: Path, target: Path) -> None:
    """A take to another place; where that fails it is given up, its video is whole."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(folder, target)
    except OSError as error:
        log.warning("cannot keep the clips of %s for later (%s)", folder, error)
        shutil.rmtree(folder, ignore_errors=True)


def _forget_oldest(folder: Path) -> None:
    takes = sorted(folder.iterdir(), key=lambda take: take.stat().st_mtime, reverse=True)
    for take in takes[FINISHED_TAKES:]:
        shutil.rmtree(take, ignore_errors=True)


# ---- what makes two runs the same ------------------------------------------------------------------------------------


def _fingerprint(
    job: Job, model: host.ModelPatcher, sound: DrivingSound, sampling: Sampling, continuity: str
) -> dict[str, object]:
    """Everything that changes a pixel of every clip."""
    levels = HostDenoiser(model, job.positives, job.negative, sampling, lambda _: None).levels
    return {
        "audio_encoder": sound.encoder_digest(),
        "speakers": job.cast.fingerprint(),
        "negative": digest(job.negative),
        "size": str(job.conditioning.size),
        "clip": asdict(job.settings),
        "sampling": asdict(sampling),
        "levels": digest([levels.sigmas, levels.timesteps]),
        "continuity": continuity,
        "match_colour": job.match_colour,
        "pose_control": asdict(job.conditioning.pose_control),
        "start_from_image": job.start_from_image,
        "model": model_identity(model),
        "vae": digest(_first_numbers(job.codec.model.state_dict())),
    }


def _made_from(job: Job, sound: DrivingSound) -> list[dict[str, object]]:
    """What changes the pixels of each clip beyond that, and beyond the clips before it."""
    positives = {id(positive): digest(positive) for positive in job.positives}
    pictures = {id(picture): digest(picture) for picture in job.pictures}
    return [
        {
            "plan": astuple(plan),
            "positive": positives[id(positive)],
            "cfg": script.guidance_scale,
            "picture": pictures[id(picture)],
            "sound": sound_digest(sound.sound, plan, job.settings.fps) if _is_followed(job) else None,
            "speakers": job.cast.said_in(plan, job.settings.fps),
            "pose": None if job.conditioning.pose is None else digest(_pose_key(job, plan)),
        }
        for plan, positive, script, picture in zip(job.plans, job.positives, job.scripts, job.pictures, strict=True)
    ]


def _is_followed(job: Job) -> bool:
    """Whether the sound itself moves mouths; voices of their own do it in its place."""
    people = job.cast.people
    return not people or any(person.turns for person in people)


def _name(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def _pose_key(job: Job, plan: ClipPlan) -> Tensor:
    """Every 16th pose frame of a clip."""
    frames = range(max(0, plan.start_frame), plan.stop_frame, 16)
    return torch.cat([job.conditioning.pose.window(frame, frame + 1) for frame in frames], dim=2)


def model_identity(model: host.ModelPatcher) -> str:
    """What tells a MODEL and everything that is patched into it from another, over restarts and reloads."""
    transformer = models.transformer_of(model)
    weights = dict(transformer.state_dict())
    prefix = "diffusion_model."
    for key, saved in model.backup.items():   # patched in place just now: the original counts
        if key.startswith(prefix):
            weights[key.removeprefix(prefix)] = saved.weight
    options = {key: value for key, value in model.model_options.items() if key != "transformer_options"}
    options["transformer_options"] = model.model_options.get("transformer_options", {})
    attached = [model.patches, model.object_patches, model.wrappers, options]
    return digest([_first_numbers(weights), *attached])


def _first_numbers(weights: Mapping[str, Tensor]) -> list[object]:
    return [(name, tuple(w.shape), w.flatten()[:FIRST_NUMBERS]) for name, w in sorted(weights.items())]


def digest(thing: object, depth: int = 0) -> str:
    """A fingerprint of nested plain values, tensors and functions; of anything else its type's name and what it holds.

    Functions count with what they were made with, where the host's nodes keep the values of their widgets.

    Args:
        depth: objects around it that are being looked into.
    """
    found = hashlib.sha256()
    _feed(found, thing, depth)
    return found.hexdigest()


def _feed(found: hashlib._Hash, thing: object, depth: int) -> None:
    if isinstance(thing, Tensor):
        found.update(f"{tuple(thing.shape)} {thing.dtype} ".encode())
        found.update(thing.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif thing is None or isinstance(thing, str | int | float | bool | bytes | torch.dtype):
        found.update(f"{type(thing).__name__} {thing!r} ".encode())
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=repr):
            _feed(found, key, depth)
            _feed(found, thing[key], depth)
    elif isinstance(thing, set | frozenset):
        _feed(found, sorted(digest(part, depth) for part in thing), depth)   # its own order changes with every start
    elif isinstance(thing, Sequence):
        found.update(f"{len(thing)} ".encode())
        for part in thing:
            _feed(found, part, depth)
    else:
        found.update(f"{type(thing).__qualname__} {getattr(thing, '__qualname__', '')} ".encode())
        if depth < DEEPEST and not isinstance(thing, NAMED):
            _feed(found, _function(thing, depth) if isinstance(thing, FunctionType) else _held(thing), depth + 1)


_functions: WeakKeyDictionary[FunctionType, str] = WeakKeyDictionary()   # what `_function` gave


def _function(function: FunctionType, depth: int) -> str:
    """A fingerprint of a function as it was before it first ran: some keep a run's numbers where settings are."""
    if function not in _functions:
        _functions[function] = ""   # it may hold itself
        cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]   # bound by now
        parts = [function.__code__, function.__defaults__, function.__kwdefaults__, vars(function), cells]
        _functions[function] = digest(parts, depth + 1)
    return _functions[function]


def _held(thing: object) -> object:
    """What an object is made of."""
    if isinstance(thing, MethodType):
        return thing.__func__, thing.__self__
    if isinstance(thing, partial):
        return thing.func, thing.args, thing.keywords
    if isinstance(thing, CodeType):
        return thing.co_code, thing.co_names, thing.co_consts
    return getattr(thing, "__dict__", None)

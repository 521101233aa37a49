"""Running the clip loop inside the host: its progress bar, its Cancel, a take on disk, and the finished file.

Knows what a run is made of; nodes hand it their inputs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..s2v_core.media.video_io import join_segments, to_pictures, write_segment
from ..s2v_core.types import DecodedClip
from ..s2v_core.video.generate import Past, generate_clips
from ..s2v_core.video.take import Take
from . import host
from . import model as models
from .job import Job, Motion
from .sampling import HostDenoiser, Sampling
from .sound import DrivingSound, write_wav

FOLDER = "wan_s2v"   # below the host's output folder (takes), and in names in its temporary one
FIRST_NUMBERS = 256  # of every weight: what tells one model from another without reading 14 billion


class RunProgress:
    """A node's bar over all clips and steps, showing the clip in progress, and each clip when it is finished."""

    def __init__(self, model: host.ModelPatcher, *, clips: int, steps: int, finished: int, node_id: str | None) -> None:
        self._model, self._steps = model, steps
        self._bar = host.Progress(clips * steps, node_id)
        self._clip = finished
        self._picture: Image.Image | None = None
        self._bar.show(finished * steps)

    def denoised(self, latents: Tensor) -> None:
        self._picture = host.preview_picture(self._model, latents)

    def step(self, done: int, total: int) -> None:
        self._bar.show(self._clip * self._steps + round(done * self._steps / total), self._picture)

    def clip_finished(self, frames: Tensor) -> None:
        """Shows the middle frame of [1, 3, F, H, W]."""
        self._clip += 1
        middle = frames.shape[2] // 2
        picture = Image.fromarray(next(iter(to_pictures(frames[:, :, middle : middle + 1]))))
        self._bar.show(self._clip * self._steps, picture)


def sample_clip(
    job: Job,
    model: host.ModelPatcher,
    positive: list,
    negative: list,
    sampling: Sampling,
    motion: Motion | None,
    *,
    node_id: str | None,
) -> tuple[DecodedClip, Motion]:
    """The clip that follows `motion`."""
    plan = job.next_plan(motion)
    past = None if motion is None else Past(num_clips=motion.num_clips, memory=motion.memory, latents=_no_latents)
    progress = RunProgress(model, clips=1, steps=sampling.steps, finished=0, node_id=node_id)
    clip = next(_clips(job, model, positive, negative, sampling, progress, past, continuity="exact"))
    progress.clip_finished(clip.frames)
    return clip, Motion(
        num_clips=plan.index + 1, memory=clip.memory, size=job.conditioning.size, fps=job.settings.fps
    )


def long_video(
    job: Job,
    model: host.ModelPatcher,
    positive: list,
    negative: list,
    sound: DrivingSound,
    sampling: Sampling,
    *,
    continuity: str,
    node_id: str | None,
) -> Path:
    """The whole video as an mp4 in the host's temporary folder.

    Finished clips lie in a take in the output folder until the video is whole: after Cancel, a crash or a restart the
    same inputs go on from there. The same inputs a second time give the file that is there.
    """
    fingerprint = _fingerprint(job, model, positive, negative, sound, sampling, continuity)
    name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:20]
    output = host.temp_folder() / f"{FOLDER}_{name}.mp4"
    if output.is_file():
        return output
    folder = host.output_folder() / FOLDER / name
    with Take.open(folder, fingerprint) as take:
        _fill(take, job, model, positive, negative, sampling, continuity, node_id)
        _join(take, job, sound, output)
    shutil.rmtree(folder, ignore_errors=True)
    return output


def _fill(
    take: Take,
    job: Job,
    model: host.ModelPatcher,
    positive: list,
    negative: list,
    sampling: Sampling,
    continuity: str,
    node_id: str | None,
) -> None:
    """Generate the clips that the take lacks."""

    def write(path: Path, frames: Tensor) -> None:
        write_segment(path, to_pictures(frames), fps=job.settings.fps)

    progress = RunProgress(
        model, clips=len(job.plans), steps=sampling.steps, finished=take.num_finished, node_id=node_id
    )
    for clip in _clips(job, model, positive, negative, sampling, progress, take.past(), continuity):
        take.add(clip, write, is_last=clip.plan is job.plans[-1])
        progress.clip_finished(clip.frames)
        del clip   # a clip of frames is large, and the next one is made while this name lives


def _clips(
    job: Job,
    model: host.ModelPatcher,
    positive: list,
    negative: list,
    sampling: Sampling,
    progress: RunProgress,
    past: Past | None,
    continuity: str,
) -> Iterator[DecodedClip]:
    return generate_clips(
        job.plans,
        job.conditioning,
        HostDenoiser(model, positive, negative, sampling, progress.denoised),
        job.codec,
        job.settings,
        continuity=continuity,
        past=past,
        decoder_reach=job.codec.decoder_reach,
        on_step=progress.step,
    )


def _join(take: Take, job: Job, sound: DrivingSound, output: Path) -> None:
    wav = output.with_suffix(".wav")
    try:
        write_wav(wav, sound.heard)
        num_frames = sum(plan.num_kept for plan in job.plans)
        join_segments(take.segments, output, audio=wav, fps=job.settings.fps, num_frames=num_frames)
    finally:
        wav.unlink(missing_ok=True)


def _no_latents(index: int) -> Tensor:
    raise AssertionError("exact continuity goes on from frames alone")


# ---- what makes two runs the same ------------------------------------------------------------------------------------


def _fingerprint(
    job: Job,
    model: host.ModelPatcher,
    positive: list,
    negative: list,
    sound: DrivingSound,
    sampling: Sampling,
    continuity: str,
) -> dict[str, object]:
    """Everything that changes a pixel or a sample."""
    levels = HostDenoiser(model, positive, negative, sampling, lambda _: None).levels
    return {
        "picture": digest(job.conditioning.reference_frames),
        "pose": None if job.conditioning.pose is None else digest(_pose_key(job)),
        "sound": sound.digest(),
        "positive": digest(positive),
        "negative": digest(negative),
        "size": str(job.conditioning.size),
        "plans": digest([astuple(plan) for plan in job.plans]),
        "clip": asdict(job.settings),
        "sampling": asdict(sampling),
        "levels": digest([levels.sigmas, levels.timesteps]),
        "continuity": continuity,
        "model": model_identity(model),
        "vae": digest(_first_numbers(job.codec.model.state_dict())),
    }


def _pose_key(job: Job) -> Tensor:
    """Every 16th pose frame."""
    last = job.plans[-1].stop_frame
    return torch.cat([job.conditioning.pose.window(frame, frame + 1) for frame in range(0, last, 16)], dim=2)


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
    return digest([_first_numbers(weights), model.patches, options])


def _first_numbers(weights: Mapping[str, Tensor]) -> list[object]:
    return [(name, tuple(w.shape), w.flatten()[:FIRST_NUMBERS]) for name, w in sorted(weights.items())]


def digest(thing: object) -> str:
    """A fingerprint of nested plain values and tensors; of anything else its type's name, and what it holds."""
    found = hashlib.sha256()
    _feed(found, thing, depth=0)
    return found.hexdigest()


def _feed(found: hashlib._Hash, thing: object, depth: int) -> None:
    if isinstance(thing, Tensor):
        found.update(f"{tuple(thing.shape)} {thing.dtype} ".encode())
        found.update(thing.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif thing is None or isinstance(thing, str | int | float | bool | bytes):
        found.update(f"{type(thing).__name__} {thing!r} ".encode())
    elif isinstance(thing, Mapping):
        for key in sorted(thing, key=repr):
            _feed(found, key, depth + 1)
            _feed(found, thing[key], depth + 1)
    elif isinstance(thing, Sequence | set | frozenset):
        found.update(f"{len(thing)} ".encode())
        for part in thing:
            _feed(found, part, depth + 1)
    else:
        found.update(type(thing).__qualname__.encode())
        if depth < 8 and hasattr(thing, "__dict__") and not isinstance(thing, nn.Module):   # those are looked at apart
            _feed(found, vars(thing), depth + 1)

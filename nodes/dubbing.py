"""A dub inside the host: its footage, sound and mask as the core takes them, a take on disk, and the finished file.

Knows the host's VIDEO, MASK and CONDITIONING; looking, drawing and pasting are the core's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from torch import Tensor

from ..s2v_core.config import FEATURE_VIDEO_RATE
from ..s2v_core.dub.faces import Face, Faces, FoundFaces, Mask, MaskedFaces, MaskFrames, StillMask, mask_pixels
from ..s2v_core.dub.filling import Lent, fill_with_dub, join_dub
from ..s2v_core.dub.masks import Painted, Region
from ..s2v_core.dub.plan import Work, find_work
from ..s2v_core.dub.request import DubRequest
from ..s2v_core.dub.run import SQUARE, who_says_where
from ..s2v_core.errors import ConfigError, MediaError
from ..s2v_core.geometry import VideoSize, fit_size
from ..s2v_core.media.video_io import probe_video, read_timed_frames
from ..s2v_core.video.take import Take
from . import host
from .codec import HostCodec, codec_of
from .job import prompt_embeds, video_path
from .pictures import mask_pictures
from .run import FOLDER, RunProgress, digest, model_identity
from .sampling import HostDenoiser, Sampling
from .sound import DrivingSound
from .waveform import write_wav

FOOTAGES = 2   # whose faces are remembered: half a kilobyte a frame


def request_of(video: object, **settings: object) -> DubRequest:
    """What is asked for of a host VIDEO; sound and output are decided later. Raises: ConfigError, MediaError."""
    nowhere = host.temp_folder() / FOLDER
    return DubRequest(video=video_path(video), audio=nowhere, output=nowhere, **settings)


def dub_video(
    request: DubRequest,
    *,
    model: host.ModelPatcher,
    model_area: int,
    positive: list,
    negative: list,
    vae: host.VAE,
    sound: DrivingSound,
    mask: Tensor | None,
    side: int,
    sampling: Sampling,
    node_id: str | None,
) -> tuple[Path, str]:
    """The footage with the new sound, an mp4 in the host's temporary folder, and in words what was done.

    Finished clips lie in a take in the output folder until the video is whole, as with S2V Long Video.

    Args:
        request: all but the models: its sound and its output are decided here.
        mask: the host's MASK in 0..1, one for all frames or one a frame; None: the lower face.
        side: pixels of the square that the model draws; 0: the model's area.

    Raises: S2VError.
    """
    if sound.speakers:
        raise ConfigError(
            "S2V Dub Video gives one person a new voice: disconnect the speakers input of S2V Audio Encode, and dub "
            "one person after the other (face, or a mask)"
        )
    size = VideoSize(width=side, height=side) if side else fit_size(SQUARE, SQUARE, model_area)
    looking = _looking(request.video, node_id)
    work = find_work(request, *_where(request, mask), size, float(sound.heard.seconds), on_frame=looking)
    codec = codec_of(vae)
    denoising = partial(HostDenoiser, model, [positive] * len(work.clips), negative, sampling)
    shared = _fingerprint(work, denoising(lambda _: None), sound, mask, codec)
    name = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:20]
    output = host.temp_folder() / f"{FOLDER}_{name}.mp4"
    if output.is_file():
        return output, str(work)
    folder = host.output_folder() / FOLDER / name
    with Take.open(folder, shared, work.made_from()) as take:
        progress = RunProgress(
            model, clips=len(work.clips), steps=sampling.steps, finished=take.num_finished, node_id=node_id
        )
        lent = Lent(
            prompt_embeds=prompt_embeds(positive),
            negative_prompt_embeds=prompt_embeds(negative),
            features=sound.features(FEATURE_VIDEO_RATE),
            sound=sound.sound,
            denoiser=denoising(progress.denoised),
            codec=codec,
            decoder_reach=codec.decoder_reach,
        )
        fill_with_dub(take, work, lent, progress)
        _join(take, work, sound, output)
    shutil.rmtree(folder, ignore_errors=True)
    return output, str(work)


def _looking(video: Path, node_id: str | None) -> Callable[[float], None]:
    """A bar for the search of faces: told the seconds that were looked through, it shows them and hears Cancel."""
    tenths = max(1, round(10 * probe_video(video).duration))
    bar = host.Progress(tenths, node_id)
    return lambda seconds: bar.show(min(tenths, round(10 * seconds)))


def _where(request: DubRequest, mask: Tensor | None) -> tuple[Faces, Region]:
    if mask is None:
        state = request.video.stat()
        return who_says_where(request, _faces_of(request.video, state.st_size, state.st_mtime_ns))
    height, width = next(read_timed_frames(request.video)).picture().shape[:2]
    given = _mask_of(mask, width, height)
    return MaskedFaces(given), Painted(given)


class RememberedFaces:
    """The faces of one piece of footage, each frame looked at once."""

    is_given = False

    def __init__(self) -> None:
        self._finder = FoundFaces()
        self._seen: dict[int, Sequence[Face]] = {}

    def seen(self, number: int, seconds: float, picture: np.ndarray) -> Sequence[Face]:
        if number not in self._seen:
            self._seen[number] = self._finder.seen(number, seconds, picture)
        return self._seen[number]


@lru_cache(maxsize=FOOTAGES)
def _faces_of(video: Path, size: int, changed: int) -> RememberedFaces:
    """Of a file as it is now: its size in bytes and the time of its last change say which."""
    return RememberedFaces()


def _mask_of(mask: Tensor, width: int, height: int) -> Mask:
    fitted = [mask_pixels(picture, width, height, name="the mask input") for picture in mask_pictures(mask)]
    if not any(each.any() for each in fitted):
        raise MediaError("the mask input is black all over: paint white what is to be made anew")
    return StillMask(fitted[0]) if len(fitted) == 1 else MaskFrames(np.stack(fitted))


def _join(take: Take, work: Work, sound: DrivingSound, output: Path) -> None:
    wav = output.with_suffix(".wav")
    try:
        write_wav(wav, sound.heard)
        join_dub(take, work, wav, output)
    finally:
        wav.unlink(missing_ok=True)


def _fingerprint(
    work: Work, denoiser: HostDenoiser, sound: DrivingSound, mask: Tensor | None, codec: HostCodec
) -> dict[str, object]:
    """Everything that changes a pixel or a sample."""
    samples = sound.sound.read(0, sound.sound.num_samples)
    return {
        **work.fingerprint(),
        "mask_input": digest(mask),
        "heard": sound.heard_digest(),
        "driving": hashlib.sha256(samples.tobytes()).hexdigest(),
        "audio_encoder": sound.encoder_digest(),
        "positive": digest(denoiser.positives[0]),
        "negative": digest(denoiser.negative),
        "sampling": asdict(denoiser.sampling),
        "levels": digest([denoiser.levels.sigmas, denoiser.levels.timesteps]),
        "model": model_identity(denoiser.model),
        "vae": digest([(name, w.flatten()[:256]) for name, w in sorted(codec.model.state_dict().items())]),
    }

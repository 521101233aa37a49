"""Videos to windows: cut, encoded once, and written to a folder that a run learns from.

Knows the order of the work; models do it (`Encoders`), and a video that cannot be used is passed over with a word.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..conditioning.audio import SilentFeatures, SoundFeatures, SoundSource
from ..errors import ConfigError, MediaError, OutputError, S2VError
from ..parallel.ranks import launched
from ..types import AudioFeatures
from .config import PrecomputeConfig
from .footage import Boxes, Footage, FootageItem, held_boxes, held_frames
from .windows import (
    CONTINUING,
    FIRST,
    Window,
    box_mask,
    fingerprint_of,
    has_empty_prompt,
    listed,
    read_entry,
    save_empty_prompt,
    save_listed,
    save_window,
)

log = logging.getLogger(__name__)

_CUT_SETTINGS = (
    "clip_frames", "motion_frames", "warmup_frames", "fps", "first_share", "windows_per_video", "max_tokens", "prompts",
)  # fmt: skip
FROM_THE_START = 0.5   # of first clips: those that open the video itself, warm-up included


class Encoders(Protocol):
    """Autoencoder, sound encoder and text encoder of one model."""

    def encode_frames(self, frames: Tensor) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> [B, 16, T, h, w]."""
        ...

    def hidden_states(self, waveform: Tensor) -> Tensor: ...

    def encode_prompt(self, prompt: str) -> Tensor:
        """[L, D]."""
        ...

    def identity(self) -> str:
        """Of the weights."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """Where a window lies in its video; a first clip may begin before frame 0."""

    start: int
    kind: str
    picture: int = 0   # the frame that is the reference where the footage has none


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeReport:
    """What a run of precompute did."""

    written: int
    kept: int               # windows, written by an earlier run and still right
    skipped: dict[str, int]   # videos passed over, by reason

    def __str__(self) -> str:
        reasons = "".join(f"; {count} videos skipped: {reason}" for reason, count in self.skipped.items())
        return f"{self.written} windows written, {self.kept} were there{reasons}"


@dataclass(frozen=True, slots=True)
class _Done:
    """Names of windows that are there and right."""

    kept: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pending:
    """A cut with its pixels, waiting to be encoded with others of its form."""

    path: Path
    fingerprint: str
    footage: Footage
    cut: Cut
    frames: Tensor             # [1, 3, n, H, W] what is encoded as one stream
    pose_frames: Tensor | None
    reference: Tensor          # [1, 3, 1, H, W]
    features: Tensor           # [layers, C, F]
    speaker_features: Tensor | None   # [S, layers, C, F]

    @property
    def form(self) -> tuple[object, ...]:
        return (self.cut.kind, tuple(self.frames.shape), self.pose_frames is not None)


def precompute(items: list[FootageItem], encoders: Encoders, config: PrecomputeConfig) -> PrecomputeReport:
    """Write the windows of all videos that this rank is responsible for; what is there and right is left alone.

    A launcher's RANK and WORLD_SIZE share the videos out.

    Raises: OutputError when a window cannot be written; a video's own faults are logged and counted. ConfigError when
        not one could be used; of several ranks' shares one may hold broken videos alone.
    """
    identity = encoders.identity()
    rank, _, ranks = launched()
    done = _Done()
    skipped: Counter[str] = Counter()
    waiting: dict[tuple[object, ...], list[_Pending]] = {}
    for index in range(rank, len(items), ranks):
        try:
            for pending in _missing(index, items[index], encoders, identity, config, done):
                group = waiting.setdefault(pending.form, [])
                group.append(pending)
                if len(group) == config.encode_batch:
                    done.written.extend(_write(waiting.pop(pending.form), encoders, identity, config))
        except OutputError:
            raise
        except Exception as error:   # one broken video must not end a night's work, whatever its decoder raises
            log.warning("skipped: %s", fault_of(items[index].name, error))
            skipped[type(error).__name__] += 1
        if (index // ranks + 1) % 50 == 0:
            log.info("%d of %d videos", index + 1, len(items))
    for group in waiting.values():
        done.written.extend(_write(group, encoders, identity, config))
    if rank == 0:
        write_empty_prompt(encoders, config)
    report = PrecomputeReport(written=len(done.written), kept=len(done.kept), skipped=dict(skipped))
    if not report.written and not report.kept and ranks == 1:
        raise ConfigError(f"not one of {len(items)} videos could be used: {report}")
    save_listed(config.windows, done.kept + done.written)
    return report


def write_empty_prompt(encoders: Encoders, config: PrecomputeConfig) -> None:
    """Beside windows that hold embeds; one that is there is left alone, so that no text encoder is read for it."""
    identity = encoders.identity()
    if config.prompts == "encoded" and not has_empty_prompt(config.windows, model=identity):
        save_empty_prompt(config.windows, encoders.encode_prompt(""), model=identity)


def fault_of(name: str, error: Exception) -> str:
    """What is wrong with a video; our own errors say it, others have to be put beside its name."""
    return str(error) if isinstance(error, S2VError) else f"{name}: {type(error).__name__}: {error}"


def encode_video(index: int, item: FootageItem, encoders: Encoders, identity: str, config: PrecomputeConfig) -> None:
    """Write those windows of one video that are not there yet, each encoded by itself."""
    for pending in _missing(index, item, encoders, identity, config, _Done()):
        _write([pending], encoders, identity, config)


def video_cuts(index: int, name: str, num_frames: int, config: PrecomputeConfig) -> list[Cut]:
    """The windows of the video `index` of a set, the same ones whoever asks."""
    rng = np.random.default_rng([config.seed, index])
    try:
        cuts = choose_cuts(num_frames, config, rng)
    except MediaError as error:
        raise MediaError(f"{name}: {error}") from None
    return [replace(cut, picture=int(rng.integers(num_frames))) for cut in cuts]


def window_path(index: int, number: int, config: PrecomputeConfig) -> Path:
    return config.windows / f"{index:07d}-{number}.safetensors"


def choose_cuts(num_frames: int, config: PrecomputeConfig, rng: np.random.Generator) -> list[Cut]:
    """Where the windows of a video lie: each of a random kind, at a random place.

    A video too short for a past gives first clips alone. Half of the first clips open the video, with the warm-up
    before its first frame, as generated videos begin; the others begin anywhere.

    Raises: MediaError when not even a first clip fits.
    """
    latest = num_frames - config.clip_frames
    if latest + config.warmup_frames < 0:
        raise MediaError(f"a video of {num_frames} frames is too short for clips of {config.clip_frames}")
    cuts = []
    for _ in range(config.windows_per_video):
        if latest >= config.motion_frames and rng.random() >= config.first_share:
            cuts.append(Cut(start=int(rng.integers(config.motion_frames, latest + 1)), kind=CONTINUING))
        elif latest < 0 or rng.random() < FROM_THE_START:
            cuts.append(Cut(start=-config.warmup_frames, kind=FIRST))
        else:
            cuts.append(Cut(start=int(rng.integers(0, latest + 1)), kind=FIRST))
    return cuts


def _missing(
    index: int, item: FootageItem, encoders: Encoders, identity: str, config: PrecomputeConfig, done: _Done
) -> Iterator[_Pending]:
    """The windows of a video that are not there yet."""
    cutting = {name: value for name, value in asdict(config).items() if name in _CUT_SETTINGS}
    fingerprint = fingerprint_of({"item": item.fingerprint(), "model": identity, "seed": config.seed, **cutting})
    paths = [window_path(index, k, config) for k in range(config.windows_per_video)]
    missing = [k for k, path in enumerate(paths) if not _is_right(path, fingerprint)]
    done.kept.extend(path.name for k, path in enumerate(paths) if k not in missing)
    if not missing:
        return
    footage = item.open()
    cuts = video_cuts(index, item.name, footage.num_frames, config)
    sounds = [_features(sound, encoders, config) for sound in (footage.sound, *(s.sound for s in footage.speakers))]
    for k in missing:
        cut = cuts[k]
        stop = cut.start + config.clip_frames
        reference = footage.reference
        if reference is None:
            reference = footage.frames(cut.picture, cut.picture + 1)
        frames = _stream(footage, cut, stop, reference, config)
        features = torch.cat([sound.window(cut.start, stop) for sound in sounds])
        yield _Pending(
            path=paths[k],
            fingerprint=fingerprint,
            footage=footage,
            cut=cut,
            frames=frames,
            pose_frames=None if footage.pose is None else _pose_stream(footage, cut, stop),
            reference=reference,
            features=features[0],
            speaker_features=features[1:] if footage.speakers else None,
        )


def _features(sound: SoundSource | None, encoders: Encoders, config: PrecomputeConfig) -> AudioFeatures:
    if sound is None:
        return SilentFeatures(encoders.hidden_states)
    return SoundFeatures(sound, encoders.hidden_states, fps=config.fps)


def _is_right(path: Path, fingerprint: str) -> bool:
    try:
        return path.exists() and read_entry(path).fingerprint == fingerprint
    except S2VError:
        return False


def _stream(footage: Footage, cut: Cut, stop: int, reference: Tensor, config: PrecomputeConfig) -> Tensor:
    """What the clip's latents are encoded behind: its past, or the reference picture, as they are decoded behind it."""
    if cut.kind == CONTINUING:
        return footage.frames(cut.start - config.motion_frames, stop)
    return torch.cat([reference, held_frames(footage.frames, cut.start, stop)], dim=2)


def _pose_stream(footage: Footage, cut: Cut, stop: int) -> Tensor:
    """The clip's pose frames, the first one twice, as at sampling."""
    assert footage.pose is not None
    pose = held_frames(footage.pose, cut.start, stop)
    return torch.cat([pose[:, :, :1], pose], dim=2)


def _write(group: list[_Pending], encoders: Encoders, identity: str, config: PrecomputeConfig) -> list[str]:
    """Encode windows of one form together and write them. Returns: their names."""
    latents = encoders.encode_frames(torch.cat([p.frames for p in group]))
    poses = None
    if group[0].pose_frames is not None:
        poses = encoders.encode_frames(torch.cat([p.pose_frames for p in group if p.pose_frames is not None]))[:, :, 1:]
    references = latents[:, :, :1]
    if group[0].cut.kind == CONTINUING:
        references = encoders.encode_frames(torch.cat([p.reference for p in group]))
    for i, pending in enumerate(group):
        window = _window(pending, latents[i], references[i], None if poses is None else poses[i], encoders, config)
        save_window(pending.path, window, fingerprint=pending.fingerprint, model=identity)
    return [pending.path.name for pending in group]


def _window(
    pending: _Pending,
    stream: Tensor,
    reference: Tensor,
    pose: Tensor | None,
    encoders: Encoders,
    config: PrecomputeConfig,
) -> Window:
    """The encoded stream taken apart: [motion latents | reference, clip]."""
    footage, cut = pending.footage, pending.cut
    num_before = config.num_motion_latents if cut.kind == CONTINUING else 1
    assert stream.shape[1] == num_before + config.num_latents, (stream.shape, num_before)
    stop = cut.start + config.clip_frames

    def mask(boxes: Boxes | None) -> Tensor | None:
        if boxes is None:
            return None
        return box_mask(held_boxes(boxes, cut.start, stop), height=stream.shape[2], width=stream.shape[3])

    return Window(
        latents=stream[:, num_before:],
        reference_latent=reference,
        audio_features=pending.features,
        prompt=footage.prompt,
        prompt_embeds=encoders.encode_prompt(footage.prompt) if config.prompts == "encoded" else None,
        motion_latents=stream[:, :num_before] if cut.kind == CONTINUING else None,
        pose_latents=pose,
        face_mask=mask(footage.face_boxes),
        mouth_mask=mask(footage.mouth_boxes),
        speaker_features=pending.speaker_features,
        speaker_masks=_speaker_masks(footage, stream.shape[1] - num_before),
    )


def _speaker_masks(footage: Footage, num_latents: int) -> Tensor | None:
    """[S, T, h, w]."""
    if not footage.speakers:
        return None
    return torch.stack([speaker.mask for speaker in footage.speakers])[:, None].expand(-1, num_latents, -1, -1)


def find_windows(folders: Iterable[Path]) -> list[Path]:
    """The windows of folders, in a fixed order.

    Those that the last `precompute` has not found right stay on the disk and are left out: videos that are listed no
    more or cannot be read, and other settings.

    Raises: ConfigError for a folder without any.
    """
    found = []
    for folder in folders:
        there, names = sorted(folder.glob("*.safetensors")), listed(folder)
        paths = there if names is None else [path for path in there if path.name in names]
        if not paths:
            raise ConfigError(f"{folder} holds no windows; write them with precompute first")
        if len(paths) < len(there):
            log.warning(
                "%s: %d windows are not of the videos and settings that precompute was last run with, and are left out",
                folder, len(there) - len(paths),
            )  # fmt: skip
        found += paths
    return found

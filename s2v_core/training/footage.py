"""Videos to learn from, read by time: a folder with its metadata, webdataset shards, or synthetic clips.

Knows files, frames and boxes; nothing of windows, latents or models.
F frames at the training fps, H W pixels, P boxes a frame.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import tarfile
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..conditioning.audio import SoundSource
from ..conditioning.driving import Excerpt
from ..conditioning.pose import PoseVideo
from ..conditioning.speakers import box_cells, place_boxes, soft_mask
from ..config import SAMPLE_RATE
from ..errors import ConfigError, MediaError
from ..geometry import PATCH, SIZE_MULTIPLE, SPATIAL_STRIDE, VideoSize, token_layout
from ..media.audio_io import open_sound, sound_from_waveform
from ..media.video_io import probe_video, read_timed_frames, sound_delay
from .config import PrecomputeConfig
from .synthetic import FPS, SyntheticClip

log = logging.getLogger(__name__)

COLUMNS = ("video", "audio", "prompt", "pose", "face_boxes")
STEP = SPATIAL_STRIDE * PATCH
SILENT_EVERY = 25   # synthetic clips: in one of so many nobody speaks
HISS = 1e-3         # what is heard there; a sound of zeros is refused as broken
SILENT_SHARE = 0.25   # of the people in synthetic clips of several
UNTOLD_SHARE = 0.25   # of the synthetic clips in which all keep still: their prompts are empty, as users' may be
BOX_SHARE = 0.5       # of synthetic clips of several people: regions are boxes around heads, in the others columns
FACES_DRAW, SPEAKERS_DRAW = 1, 2   # beside the seed: what is drawn here has nothing of what the clip draws

Boxes = Callable[[int, int], np.ndarray]
"""(start, stop) -> [stop-start, P, 4] left, top, right, bottom in pixels of the footage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FootageSpeaker:
    """Somebody who is heard in a part of the picture alone."""

    sound: SoundSource
    mask: Tensor   # [h, w] 0..1, of all latent frames


@dataclass(frozen=True, kw_only=True, slots=True)
class Footage:
    """One video, opened."""

    size: VideoSize
    num_frames: int
    sound: SoundSource | None              # heard by everybody, or by those who are no speaker; None: silence
    prompt: str
    frames: Callable[[int, int], Tensor]   # (start, stop) -> [1, 3, stop-start, H, W] in [-1, 1]
    reference: Tensor | None = None        # [1, 3, 1, H, W]; None: one of the frames
    pose: Callable[[int, int], Tensor] | None = None   # as frames
    face_boxes: Boxes | None = None
    mouth_boxes: Boxes | None = None
    speakers: tuple[FootageSpeaker, ...] = ()


class FootageItem(Protocol):
    """A video that is not opened yet."""

    @property
    def name(self) -> str: ...

    def fingerprint(self) -> str:
        """Changes when the video, its sound or its words do."""
        ...

    def open(self) -> Footage: ...


def find_footage(config: PrecomputeConfig) -> list[FootageItem]:
    """What the configuration names, in a fixed order.

    Raises: ConfigError for a folder without metadata, metadata that cannot be read, or shards of which none can.
    """
    if config.source == "synthetic":
        return [SyntheticItem(config.seed + index, config) for index in range(config.num_videos)]
    folder = Path(config.source).expanduser()
    if not config.source or not folder.is_dir():
        raise ConfigError(f"precompute needs a folder of videos or 'synthetic' as its source, got {config.source!r}")
    shards = sorted(folder.glob("*.tar"))
    if shards:
        items: list[FootageItem] = [item for shard in shards for item in read_shard(shard, config)]
        if not items:
            raise ConfigError(f"{folder} has {len(shards)} shards, and not one video in them that can be read")
        return items
    return [FileItem(folder, row, config) for row in read_metadata(folder)]


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's metadata.csv or metadata.jsonl, columns of `COLUMNS`; empty cells are left out."""
    table, lines = folder / "metadata.csv", folder / "metadata.jsonl"
    path = lines if lines.is_file() else table
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{folder} has no metadata.csv or metadata.jsonl that can be read") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8") from error
    rows = list(csv.DictReader(io.StringIO(text))) if path is table else _json_lines(path, text)
    if not rows:
        raise ConfigError(f"{path} lists no videos")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise ConfigError(f"{path} has more cells than columns in row {number}: put commas inside quotes")
        unknown = [name for name in row if name not in COLUMNS]
        if unknown:
            raise ConfigError(f"{path} has a column {unknown[0]} in row {number}; there are {', '.join(COLUMNS)}")
        if not row.get("video"):
            raise ConfigError(f"{path} names no video in row {number}")
    return [{name: value for name, value in row.items() if value} for row in rows]


def _json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{path} has no JSON object in line {number}: {error}") from error
    return rows


# ---- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileItem:
    """A row of a folder's metadata."""

    folder: Path
    row: dict[str, Any]
    config: PrecomputeConfig

    @property
    def name(self) -> str:
        return str(self.row["video"])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps(self.row, sort_keys=True).encode())
        for column in ("video", "audio", "pose"):
            if column in self.row:
                digest.update(_content_hash(self._path(column)))
        return digest.hexdigest()

    def open(self) -> Footage:
        """Raises: MediaError for media that cannot be read."""
        return open_files(self.row, self._path, self.config)

    def _path(self, column: str) -> Path:
        return self.folder / str(self.row[column])


def open_files(row: dict[str, Any], path_of: Callable[[str], Path], config: PrecomputeConfig) -> Footage:
    """Footage of files.

    Args:
        row: which columns there are, with the prompt and the face boxes.
        path_of: the file of the column "video", "audio" or "pose".

    Raises: MediaError for media that cannot be read.
    """
    path, fps = path_of("video"), config.fps
    info = probe_video(path)
    sound = open_sound(path_of("audio")) if "audio" in row else own_sound(path)
    size = fit_tokens(info.width, info.height, config)
    return Footage(
        size=size,
        num_frames=int(min(info.duration, float(sound.duration)) * fps + 1e-6),
        sound=sound,
        prompt=str(row.get("prompt", "")),
        frames=_timed(path, size, fps).window,
        pose=_timed(path_of("pose"), size, fps).window if "pose" in row else None,
        face_boxes=_face_boxes(row, (info.width, info.height), size),
    )


def own_sound(path: Path) -> SoundSource:
    """A video's own sound from its first frame on: tracks may begin apart, and their times count from their own starts.

    Raises: MediaError for sound that cannot be read, or is over before the first frame.
    """
    sound, delay = open_sound(path), sound_delay(path)
    if sound.duration + delay <= 0:
        raise MediaError(f"{path} has sound that is over before its first picture; export it again")
    return Excerpt(sound, start=-delay, duration=sound.duration + delay) if delay else sound


def _face_boxes(row: dict[str, Any], picture: tuple[int, int], size: VideoSize) -> Boxes | None:
    """Boxes of the source's pixels where they lie in the footage: one for all frames, or one a frame at the fps."""
    value = row.get("face_boxes")
    if value is None:
        return None
    try:
        boxes = np.asarray(json.loads(value) if isinstance(value, str) else value, np.float32).reshape(-1, 1, 4)
    except (ValueError, TypeError) as error:
        raise MediaError(f"{row['video']}: face_boxes is [left, top, right, bottom], or a list of such") from error
    return partial(_boxes_between, place_boxes(boxes, picture, size))


def _boxes_between(boxes: np.ndarray, start: int, stop: int) -> np.ndarray:
    return boxes[np.arange(start, stop).clip(0, len(boxes) - 1)]


def _timed(path: Path, size: VideoSize, fps: float) -> PoseVideo:
    return PoseVideo(lambda: read_timed_frames(path), duration=probe_video(path).duration, size=size, fps=fps)


def _content_hash(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror})") from error
    return digest.digest()


def fit_tokens(width: int, height: int, config: PrecomputeConfig) -> VideoSize:
    """A picture's size when it is within the budget of tokens; otherwise the largest of its shape that is.

    Sides are cut down to multiples of 16, so at most 15 pixels are cropped off a picture that fits.

    Raises: MediaError for a picture below 64 pixels, or a budget that no size of its shape fits.
    """
    if min(width, height) < SIZE_MULTIPLE:
        raise MediaError(f"a picture of {width}x{height} is too small to learn from: {SIZE_MULTIPLE} pixels at least")
    for percent in range(1000, 0, -1):
        w, h = (int(side * percent / 1000) // STEP * STEP for side in (width, height))
        if min(w, h) < SIZE_MULTIPLE:
            break
        size = VideoSize(width=w, height=h)
        if token_layout(size.latent_grid(config.num_latents), has_motion=True).total <= config.max_tokens:
            return size
    raise MediaError(f"no size of the shape {width}x{height} fits {config.max_tokens} tokens: raise max_tokens")


# ---- shards --------------------------------------------------------------------------------------------------------

_KINDS = {
    "video": ("mp4", "mkv", "webm", "mov", "avi"),
    "audio": ("wav", "flac", "mp3", "m4a", "ogg"),
    "pose": tuple(f"pose.{ending}" for ending in ("mp4", "mkv", "webm", "mov", "avi")),
}


def read_shard(path: Path, config: PrecomputeConfig) -> list[FootageItem]:
    """The samples of a webdataset shard: files of one name with different endings.

    `.mp4` (or another video), optionally `.wav` (or another sound), `.pose.mp4`, `.txt` (the prompt) and `.json`
    (`prompt`, `face_boxes`). Samples without a video are left out; of a shard that is cut off, or is none, what lies
    behind the fault is, with a word.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                if member.isfile() and key:
                    samples.setdefault(f"{folder}/{key}", {})[ending.lower()] = member
    except (tarfile.TarError, OSError) as error:
        log.warning("%s cannot be read as a webdataset shard to its end (%s): %d samples", path, error, len(samples))
    return [ShardItem(path, members, config) for members in samples.values() if set(members) & set(_KINDS["video"])]


@dataclass(frozen=True, slots=True)
class ShardItem:
    """A sample of a shard; its files are unpacked while it is open."""

    shard: Path
    members: dict[str, tarfile.TarInfo]   # by ending
    config: PrecomputeConfig

    @property
    def name(self) -> str:
        return f"{self.shard.name}:{next(iter(self.members.values())).name}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        with tarfile.open(self.shard) as archive:
            for ending, member in sorted(self.members.items()):
                digest.update(ending.encode() + hashlib.sha256(_content(archive, member)).digest())
        return digest.hexdigest()

    def open(self) -> Footage:
        """Raises: MediaError for media that cannot be read."""
        folder = tempfile.TemporaryDirectory(prefix="s2v-sample-")
        row: dict[str, Any] = {}
        with tarfile.open(self.shard) as archive:
            for column, endings in _KINDS.items():
                ending = next((e for e in endings if e in self.members), None)
                if ending is not None:
                    row[column] = Path(folder.name) / f"{column}.{ending.rpartition('.')[2]}"
                    row[column].write_bytes(_content(archive, self.members[ending]))
            if "txt" in self.members:
                row["prompt"] = _content(archive, self.members["txt"]).decode("utf-8", "replace").strip()
            if "json" in self.members:
                row |= _told(self.name, _content(archive, self.members["json"]))
        footage = open_files(row, lambda column: row[column], self.config)
        weakref.finalize(footage.frames.__self__, folder.cleanup)   # the files are read as long as frames are asked for
        return footage


def _told(name: str, content: bytes) -> dict[str, Any]:
    try:
        told = json.loads(content)
        return {column: told[column] for column in ("prompt", "face_boxes") if told.get(column)}
    except (ValueError, AttributeError, TypeError) as error:
        raise MediaError(f"{name}: its .json is no JSON object") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, member.name
    return file.read()


# ---- synthetic -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SyntheticItem:
    """A clip that is drawn when it is opened.

    One face hears the clip's sound. With several, each is a speaker in a region of its own, and some keep silent:
    those are no speakers, so that what nobody's region covers is silent too.
    """

    seed: int
    config: PrecomputeConfig

    @property
    def name(self) -> str:
        return f"synthetic {self.seed}"

    def fingerprint(self) -> str:
        c = self.config
        kind = "" if self.num_faces == 1 else f" {self.num_faces} faces"
        kind += " silence" if self.num_faces == 1 and self._hears_silence else ""
        kind += f" head {c.motion}" if c.motion else ""
        kind += f" camera {c.camera}" if c.camera else ""
        return f"synthetic {self.seed} {c.video_frames} {c.width}x{c.height} {c.held_out}{kind}"

    @property
    def num_faces(self) -> int:
        shares = np.asarray(self.config.faces)
        return 1 + int(np.random.default_rng([self.seed, FACES_DRAW]).choice(len(shares), p=shares / shares.sum()))

    @property
    def _is_silent(self) -> bool:
        return self.seed % SILENT_EVERY == SILENT_EVERY - 1

    @property
    def _hears_silence(self) -> bool:
        """Of silent clips every second one hears what is fed before and after a sound, the others hear a hiss."""
        return self._is_silent and self.seed // SILENT_EVERY % 2 == 1

    def open(self) -> Footage:
        config = self.config
        if config.fps != FPS:
            raise ConfigError(f"synthetic clips have {FPS} frames a second, fps says {config.fps:g}")
        num_faces, rng = self.num_faces, np.random.default_rng([self.seed, SPEAKERS_DRAW])
        silent = tuple(bool(chance < SILENT_SHARE) for chance in rng.random(num_faces)) if num_faces > 1 else None
        clip = SyntheticClip(
            self.seed,
            num_frames=config.video_frames,
            width=config.width,
            height=config.height,
            num_faces=num_faces,
            motion=config.motion,
            camera=config.camera,
            held_out=config.held_out,
            silent=self._is_silent if silent is None else silent,
        )
        return Footage(
            size=VideoSize(width=config.width, height=config.height),
            num_frames=clip.num_frames,
            sound=self._sound(clip) if silent is None else None,
            prompt="" if clip.is_still and rng.random() < UNTOLD_SHARE else clip.prompt,
            frames=lambda start, stop: _pixels(clip.frames(start, stop)),
            reference=_pixels(clip.reference[None]),
            face_boxes=clip.face_boxes,
            mouth_boxes=clip.mouth_boxes,
            speakers=() if silent is None else _speakers(clip, rng),
        )

    def _sound(self, clip: SyntheticClip) -> SoundSource | None:
        if self._hears_silence:
            return None
        if self._is_silent:
            hiss = np.random.default_rng(self.seed).normal(0, HISS, clip.waveform.shape).astype(np.float32)
            return _sound_of(hiss)
        return _sound_of(clip.waveform)


def _sound_of(waveform: np.ndarray) -> SoundSource:
    return sound_from_waveform(torch.from_numpy(waveform)[None], SAMPLE_RATE)


def _speakers(clip: SyntheticClip, rng: np.random.Generator) -> tuple[FootageSpeaker, ...]:
    """Those who speak, each in its column of the picture or in a box around its head, as users draw them."""
    regions = clip.regions
    if rng.random() < BOX_SHARE:
        heads = clip.face_boxes()
        regions = np.concatenate([heads[..., :2].min(0), heads[..., 2:].max(0)], axis=-1)
        room = rng.uniform(0.05, 0.3) * (regions[:, 2:] - regions[:, :2])
        regions = np.concatenate([regions[:, :2] - room, regions[:, 2:] + room], axis=-1)
    masks = box_cells(torch.from_numpy(regions.astype(np.float32)), width=clip.width, height=clip.height)
    return tuple(
        FootageSpeaker(sound=_sound_of(person.waveform), mask=soft_mask(mask))
        for person, mask in zip(clip.people, masks, strict=True)
        if person.waveform.any()
    )


def _pixels(frames: np.ndarray) -> Tensor:
    """[F, H, W, 3] uint8 -> [1, 3, F, H, W] in [-1, 1]."""
    return (torch.from_numpy(frames.copy()).permute(3, 0, 1, 2).float() / 127.5 - 1)[None]


def held_frames(frames: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor:
    """Frames of which those before 0 are frame 0."""
    shown = frames(max(0, start), stop)
    before = shown[:, :, :1].expand(-1, -1, max(0, -start), -1, -1)
    return torch.cat([before, shown], dim=2)


def held_boxes(boxes: Boxes, start: int, stop: int) -> np.ndarray:
    shown = boxes(max(0, start), stop)
    return np.concatenate([np.repeat(shown[:1], max(0, -start), axis=0), shown])


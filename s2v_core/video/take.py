"""One run of a job on disk: its finished clips, and what the next clip needs to continue from them.

Knows folders and files, not how clips are made or encoded: a function that writes a segment is handed in.

    take.json               fingerprint and finished clips; replaced in one move, so it is always true
    take.lock               held by the run that writes
    clips/0000.mp4          the kept frames of a clip
    latents/0000.safetensors
    motion/0000.safetensors memory after the newest whole clip, float32; older ones go once a newer one is committed

A clip counts from the moment take.json names it, and its files are safely on disk before that: whenever a run is
killed, at most the clip in flight is lost. Each clip is kept with what made it: a longer job, or one that changes in
its course, keeps the clips before the change.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ConfigError, OutputError
from ..types import DecodedClip, MotionMemory
from .generate import Past

log = logging.getLogger(__name__)

FORMAT = 2   # of take.json; a take of another format is not continued
FOLDERS = ("clips", "latents", "motion")

WriteSegment = Callable[[Path, Tensor], None]
"""`write_segment(path, frames [1, 3, F, H, W] in [-1, 1])`: the file appears whole and on disk, or not at all."""


class Take:
    """A folder of finished clips, open for one run. Use it in a `with`: leaving lets the next run in."""

    def __init__(self, folder: Path, lock: IO[str], state: dict, clips: Sequence[dict]) -> None:
        self.folder = folder
        self._lock = lock
        self._state = state
        self._clips = clips

    @classmethod
    def open(cls, folder: Path, fingerprint: Mapping[str, object], clips: Sequence[Mapping[str, object]]) -> Take:
        """Create the take, or continue the one that is there, with every finished clip checked.

        Finished clips are kept up to the first that was made from something else. The others stay on disk until the
        first new one is committed.

        Args:
            fingerprint: everything that changes a pixel of every clip (settings, hashes of weights), as JSON can
                hold it.
            clips: for each clip of the video, what changes its pixels beyond that and beyond the clips before it.

        Raises: ConfigError when the take is another job's (also: when no finished clip could be kept), another run's,
            or unreadable; OutputError when the folder cannot be written.
        """
        fingerprint, clips = json.loads(json.dumps(fingerprint)), json.loads(json.dumps(clips))
        with _writing(folder):
            _require_own(folder)
            for name in FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
        try:
            with _writing(folder):
                state = _read_state(folder)
                if state is not None:
                    _remove_partial(folder)
                else:
                    state = {"format": FORMAT, "fingerprint": fingerprint, "clips": [], "motion": None}
                    _write_state(folder, state)
                kept = _num_kept(folder, state, fingerprint, clips)
                if kept < min(len(state["clips"]), len(clips)):
                    log.info("keeping %d finished clips: clip %d on was made from something else", kept, kept + 1)
                state["clips"] = _sound_clips(folder, state["clips"][:kept])
                if state["motion"] and state["motion"]["clip"] >= len(state["clips"]):
                    state["motion"] = None
        except BaseException:
            lock.close()
            raise
        return cls(folder, lock, state, clips)

    @staticmethod
    def count_finished(
        folder: Path, fingerprint: Mapping[str, object], clips: Sequence[Mapping[str, object]]
    ) -> int:
        """Finished clips in `folder` that a job, described as in `open`, would keep; 0 when there is no take.

        Takes the take at its word. Nothing is touched.

        Raises: ConfigError when the take is another job's or unreadable, or the folder is somebody else's.
        """
        with _writing(folder):
            _require_own(folder)
            state = _read_state(folder)
        return _num_kept(folder, state, *json.loads(json.dumps([fingerprint, clips]))) if state else 0

    @property
    def num_finished(self) -> int:
        return len(self._state["clips"])

    @property
    def segments(self) -> tuple[Path, ...]:
        """The finished clips' video files, in order."""
        return tuple(self.folder / clip["segment"]["name"] for clip in self._state["clips"])

    def past(self) -> Past | None:
        """What the next clip continues from; None before the first."""
        if not self.num_finished:
            return None
        return Past(num_clips=self.num_finished, memory=self._memory(), latents=self.latents)

    def add(self, clip: DecodedClip, write_segment: WriteSegment) -> None:
        """Put a finished clip on disk, and commit it.

        A clip that is cut short is the last: if the job grows it is made anew, so the memory before it stays.

        Raises: OutputError when the disk refuses; the clips before this one are kept.
        """
        index, clips = clip.plan.index, self._state["clips"]
        assert index == len(clips), f"clip {index} added where {len(clips)} are finished"
        segment = f"clips/{index:04d}.mp4"
        with _writing(self.folder):
            write_segment(self.folder / segment, clip.frames)
            record = {
                "frames": clip.frames.shape[2],
                "made_from": self._clips[index],
                "segment": _record(self.folder, segment),
                "latents": _save(self.folder, f"latents/{index:04d}.safetensors", clip.latents),
            }
            motion = self._state["motion"]
            if not clip.plan.trim_end:
                file = _save(self.folder, f"motion/{index:04d}.safetensors", clip.memory.frames)
                motion = {"clip": index, "file": file}
            state = {**self._state, "clips": [*clips, record], "motion": motion}
            _write_state(self.folder, state)
            self._state = state
            _remove_unnamed(self.folder, state)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Take:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _memory(self) -> MotionMemory | None:
        motion = self._state["motion"]
        if not motion or motion["clip"] != self.num_finished - 1 or not _is_sound(self.folder, motion["file"]):
            return None
        return MotionMemory(frames=_load(self.folder, motion["file"]))

    def latents(self, index: int) -> Tensor:
        """Of a finished clip, as it was denoised: [1, 16, T, h, w]."""
        return _load(self.folder, self._state["clips"][index]["latents"])


# ---- take.json ------------------------------------------------------------------------------------------------------


def _require_own(folder: Path) -> None:
    """A take would replace and remove files of the user's that its folders hold already. Raises: ConfigError."""
    if (folder / "take.json").exists():
        return
    for name in FOLDERS:
        strange = next((path for path in (folder / name).glob("*") if not path.name.startswith(".")), None)
        if strange is not None:
            raise ConfigError(
                f"{strange} is no part of a take, and a take in {folder} would overwrite it; give another take folder"
            )


def _read_state(folder: Path) -> dict | None:
    path = folder / "take.json"
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        written_in = state["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged; delete the folder, or give another take folder") from error
    if written_in != FORMAT:
        raise ConfigError(
            f"{path} has format {written_in}, this version writes {FORMAT}; delete the folder, or give another one"
        )
    return state


def _write_state(folder: Path, state: dict) -> None:
    with _replacing(folder / "take.json") as partial:
        partial.write_text(json.dumps(state, indent=1, ensure_ascii=False), encoding="utf-8")


def _num_kept(folder: Path, state: dict, fingerprint: dict, clips: Sequence[dict]) -> int:
    """Finished clips that a job keeps. Raises: ConfigError when the take is another job's."""
    kept = _num_alike(state["clips"], clips)
    lost = state["clips"][:1] if clips and not kept else []
    _require_same(
        folder,
        {**state["fingerprint"], **(lost[0]["made_from"] if lost else {})},
        {**fingerprint, **(clips[0] if lost else {})},
    )
    return kept


def _require_same(folder: Path, theirs: dict, ours: dict) -> None:
    theirs, ours = _leaves(theirs), _leaves(ours)
    names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if names:
        differ = "differs" if len(names) == 1 else "differ"
        raise ConfigError(
            f"the take in {folder} was made with other settings ({', '.join(names)} {differ}); "
            "give another take folder or delete it"
        )


def _leaves(settings: dict, path: str = "") -> dict[str, object]:
    """{"sampler": {"steps": 4}} -> {"sampler.steps": 4}"""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= _leaves(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat


def _num_alike(finished: Sequence[Mapping], clips: Sequence[Mapping]) -> int:
    """How many finished clips, from the first on, were made from what `clips` say."""
    pairs = zip(finished, clips, strict=False)
    return next((i for i, (one, clip) in enumerate(pairs) if one["made_from"] != clip), min(len(finished), len(clips)))


def _sound_clips(folder: Path, clips: list[dict]) -> list[dict]:
    """The clips up to the first with a file that is missing or not what was written."""
    for index, clip in enumerate(clips):
        for file in (clip["segment"], clip["latents"]):
            if not _is_sound(folder, file):
                log.warning("%s is damaged: continuing the take from clip %d", folder / file["name"], index)
                return clips[:index]
    return clips


# ---- files ----------------------------------------------------------------------------------------------------------


def _save(folder: Path, name: str, tensor: Tensor) -> dict:
    with _replacing(folder / name) as partial:
        save_file({"tensor": tensor.contiguous()}, partial)
    return _record(folder, name)


def _load(folder: Path, file: dict) -> Tensor:
    return load_file(folder / file["name"])["tensor"].clone()   # a file that is mapped cannot be removed everywhere


def _record(folder: Path, name: str) -> dict:
    path = folder / name
    return {"name": name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _is_sound(folder: Path, file: dict) -> bool:
    path = folder / file["name"]
    try:
        return path.stat().st_size == file["bytes"] and file_digest(path) == file["sha256"]
    except OSError:
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remove_unnamed(folder: Path, state: dict) -> None:
    """Older memories, and clips that other ones have replaced."""
    named = {file["name"] for clip in state["clips"] for file in (clip["segment"], clip["latents"])}
    if state["motion"]:
        named.add(state["motion"]["file"]["name"])
    for name in FOLDERS:
        for path in (folder / name).iterdir():
            if f"{name}/{path.name}" not in named:
                path.unlink()


def _remove_partial(folder: Path) -> None:
    """What a killed run was writing: all names that begin with a dot, ours and those of the libraries."""
    for name in FOLDERS:
        for path in (folder / name).glob(".*"):
            path.unlink()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to; afterwards the file is on disk under `path`, whole."""
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":   # elsewhere a folder cannot be opened
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the disk refuses, in one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        remedy = "free some space" if full else "let the folder be written"
        raise OutputError(
            f"cannot keep clips in {folder}: {reason}; finished ones are safe, {remedy} and run the same command again"
        ) from error


def _lock(folder: Path) -> IO[str]:
    """An open file that keeps other runs out until it is closed; the system closes it for a run that is killed."""
    file = (folder / "take.lock").open("w")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise ConfigError(
            f"another run is writing the take in {folder}; wait for it, or give another take folder"
        ) from error
    except OSError as error:   # a file system without locks
        log.warning("cannot lock %s (%s): do not start a second run on it", folder, error.strerror)
    return file

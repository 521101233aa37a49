"""Job files: YAML settings and JSON-lines batches, checked whole before anything starts, turned into requests.

Knows how jobs are written down; not what the pictures and sounds hold, nor how a video is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from .errors import ConfigError, S2VError
from .options import COMMAND, JOB, MODELS, OPTIONS, check_values, request_fields
from .request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """Which weights, and how they run. One batch, one of these."""

    folder: Path | None = None                    # None: the bundled small model
    loras: tuple[tuple[Path, float], ...] = ()
    dtype: str = "auto"
    matmul: str = "off"
    vae_dtype: str = "fp32"
    device: str = "auto"
    attention: str = "auto"
    offload: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One video to make, and where it was asked for."""

    request: Request
    where: str = ""   # "line 3 of jobs.jsonl"; empty on the command line


def read_config(path: Path) -> dict[str, object]:
    """Checked option values of a YAML file; relative paths start at its folder.

    Raises: ConfigError for a file that cannot be read or is not YAML, an unknown option, a wrong value.
    """
    try:
        said = yaml.safe_load(_read(path)) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line} is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(said, dict):
        raise ConfigError(f"{path} must hold options, such as 'steps: 20', one per line; got {type(said).__name__}")
    try:
        return check_values(said, path.parent, (JOB, MODELS, COMMAND))
    except S2VError as error:
        raise type(error)(f"{path}: {error}") from error


def read_batch(path: Path, defaults: Mapping[str, object]) -> list[Job]:
    """The jobs of a JSON-lines file; relative paths in it start at its folder.

    Args:
        defaults: checked option values for every job that does not say otherwise.

    Raises: ConfigError naming the line for anything wrong with the file itself.
    """
    jobs = [
        _read_line(line, f"line {number} of {path}", path.parent, defaults)
        for number, line in enumerate(_read(path).split("\n"), start=1)   # JSON may hold what splitlines splits at
        if line.strip()
    ]
    if not jobs:
        raise ConfigError(f"{path} holds no jobs: write one JSON object per line, with image, audio and output")
    _refuse_shared(jobs, "output", [job.request.output for job in jobs])
    _refuse_shared(jobs, "take", [job.request.take for job in jobs])
    return jobs


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error


def _read_line(line: str, where: str, folder: Path, defaults: Mapping[str, object]) -> Job:
    try:
        said = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(said, dict):
        raise ConfigError(f"{where} must be a JSON object such as {{\"image\": \"face.png\", ...}}")
    try:
        return make_job({**defaults, **check_values(said, folder, (JOB,))}, where)
    except S2VError as error:
        raise type(error)(f"{where}: {error}") from error


def _refuse_shared(jobs: Sequence[Job], name: str, paths: Sequence[Path | None]) -> None:
    """Two jobs must not write to one place."""
    first: dict[Path, Job] = {}
    for job, path in zip(jobs, paths, strict=True):
        if path is None:
            continue
        other = first.setdefault(path.resolve(), job)
        if other is not job:
            raise ConfigError(f"{other.where} and {job.where} have the same {name}, {path}; give each its own")


READ = ("image", "audio", "driving-audio", "pose-video", "pose-footage", "storyboard", "who-speaks")   # media and text


def make_job(values: Mapping[str, object], where: str = "") -> Job:
    """A job from checked option values; options of other scopes are left alone.

    Raises: ConfigError when picture, sound or output is missing, or the output is no .mp4 or one of them.
    """
    said = {name: value for name, value in values.items() if OPTIONS[name].scope == JOB and value is not None}
    has_voices = any(speaker.audio is not None for speaker in said.get("speaker", ()))
    has_sound = has_voices or "say" in said
    needed = ("image", "output") if has_sound else ("image", "audio", "output")
    read = [(name, said.get(name)) for name in READ]
    read += [("speaker's audio", speaker.audio) for speaker in said.get("speaker", ())]
    return Job(request=Request(**request_fields(said, OPTIONS, needed=needed, read=read)), where=where)


def make_model_options(values: Mapping[str, object]) -> ModelOptions:
    """The model's share of checked option values."""
    names = {field.name for field in fields(ModelOptions)}
    said = {OPTIONS[name].target: value for name, value in values.items() if value is not None}
    return ModelOptions(**{field: value for field, value in said.items() if field in names})

"""A storyboard: what is seen from which moment on, read from text or YAML and laid onto the clips of a video.

Knows times and clip numbers; not what a prompt means, nor what is behind the name of a picture.

    a woman talks to the camera                     the first line may leave out its time
    0:12.5 she laughs                               minutes:seconds; hours:minutes:seconds
    clip 5 [seed 7, guidance 6] she laughs again    from the fifth clip on
    0:40 [image smile.png]                          only another reference picture: the prompt stays
    0:50 [speaker anna]                             from here on the sound is anna's; of both: anna+ben

Lines without any time are one clip each, and the last one stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import yaml

from ..errors import ConfigError
from ..times import clock, parse_seconds
from ..types import ClipPlan

SETTINGS = ("seed", "guidance", "image", "speaker")
KEYS = ("at", "clip", "prompt", *SETTINGS)
SAID = ("prompt", "seed", "guidance_scale", "image", "speaker")   # of a scene: what it may change


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What changes at a moment; None stays as it was."""

    at: float | None = None               # seconds from the beginning of the video
    clip: int | None = None               # or the number of a clip, from 1; neither: the beginning
    prompt: str | None = None
    seed: int | None = None               # of the scene's first clip; the clips after it draw from seed + 1, ...
    guidance_scale: float | None = None
    image: str | None = None              # another reference picture, as it was written
    speaker: str | None = None            # whose the sound is; several names with + between them

    def __post_init__(self) -> None:
        if self.at is not None and self.clip is not None:
            raise ConfigError(f"a scene has a time or a clip, not both; got {clock(self.at)} and clip {self.clip}")
        if self.at is not None and self.at < 0:
            raise ConfigError(f"a scene's time must be 0 or more, got {self.at:g}")
        if self.clip is not None and self.clip < 1:
            raise ConfigError(f"clips are counted from 1, got clip {self.clip}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if self.guidance_scale is not None and not self.guidance_scale >= 1:
            raise ConfigError(f"guidance must be 1 or more (1 switches it off), got {self.guidance_scale:g}")
        if all(getattr(self, name) is None for name in SAID):
            raise ConfigError(f"a scene changes something: give it one of prompt, {', '.join(SETTINGS)}")

    @property
    def has_time(self) -> bool:
        return self.at is not None or self.clip is not None

    @property
    def asked(self) -> str:
        """When it was asked to begin."""
        return f"clip {self.clip}" if self.clip is not None else clock(self.at or 0.0)

    def __str__(self) -> str:
        guidance = None if self.guidance_scale is None else f"{self.guidance_scale:g}"
        said = [("seed", self.seed), ("guidance", guidance), ("image", self.image), ("speaker", self.speaker)]
        told = [] if self.prompt is None else [self.prompt]
        return ", ".join([*told, *(f"{name} {value}" for name, value in said if value is not None)])


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedScene:
    """A scene, and the clip that it takes effect at."""

    scene: Scene
    clip: int        # index
    start: float     # seconds: where that clip begins

    def __str__(self) -> str:
        as_asked = self.scene.clip is not None or clock(self.start) == self.scene.asked
        asked = "" if as_asked else f", asked for at {self.scene.asked}"
        return f"from clip {self.clip + 1} ({clock(self.start)}{asked}): {self.scene}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """What one clip is told, in words; None: what the whole video is told."""

    prompt: str | None = None
    guidance_scale: float | None = None
    image: str | None = None
    speaker: str | None = None


# ---- onto the clips --------------------------------------------------------------------------------------------------


def place_scenes(scenes: Sequence[Scene], plans: Sequence[ClipPlan], fps: float) -> tuple[PlacedScene, ...]:
    """Each scene at the clip whose beginning is nearest to its time; at equal distance, the earlier one.

    Scenes past the video's end are left out. In the order in which they take effect.
    """
    starts = [plan.first_kept / fps for plan in plans]
    end = (plans[-1].first_kept + plans[-1].num_kept) / fps
    placed = []
    for scene in scenes:
        index = None
        if scene.clip is not None:
            index = scene.clip - 1 if scene.clip <= len(plans) else None
        elif (at := scene.at or 0.0) < end:
            index = min(range(len(plans)), key=lambda i: abs(starts[i] - at))
        if index is not None:
            placed.append(PlacedScene(scene=scene, clip=index, start=starts[index]))
    return tuple(sorted(placed, key=lambda one: one.clip))


def unseen(scenes: Sequence[Scene], placed: Sequence[PlacedScene]) -> list[str]:
    """A sentence for each scene of which nothing, or not its prompt, will be seen."""
    shown = {id(one.scene) for one in placed}
    lost = [f"the scene of {s.asked} ({s}) lies past the end and is not seen" for s in scenes if id(s) not in shown]
    for one, following in pairwise(placed):
        if one.clip == following.clip and one.scene.prompt is not None and following.scene.prompt is not None:
            lost.append(
                f"the prompt of {one.scene.asked} is not seen: that of {following.scene.asked} begins at the same clip"
            )
    return lost


def direct(
    plans: Sequence[ClipPlan], placed: Sequence[PlacedScene]
) -> tuple[tuple[ClipPlan, ...], tuple[Script, ...]]:
    """The plans with the scenes' seeds, and what each clip is told."""
    told = Script()
    directed: list[ClipPlan] = []
    scripts: list[Script] = []
    seed_from: tuple[int, int] | None = None   # a scene's seed, and its first clip
    for plan in plans:
        for scene in (one.scene for one in placed if one.clip == plan.index):
            said = {field.name: getattr(scene, field.name) for field in fields(Script)}
            told = replace(told, **{name: value for name, value in said.items() if value is not None})
            seed_from = seed_from if scene.seed is None else (scene.seed, plan.index)
        directed.append(
            plan if seed_from is None else replace(plan, seed=seed_from[0] + plan.index - seed_from[1])
        )
        scripts.append(told)
    return tuple(directed), tuple(scripts)


# ---- from text -------------------------------------------------------------------------------------------------------


def read_storyboard(path: Path) -> tuple[Scene, ...]:
    """The scenes of a file: YAML where it is named .yaml or .yml, else a scene per line. Pictures' paths start at
    the file's folder.

    Raises: ConfigError that names the line or the scene.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the storyboard {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the storyboard {path} is not UTF-8 text") from error
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    scenes = _from_yaml(text, str(path)) if is_yaml else parse_storyboard(text, where=f" of {path}")
    return tuple(
        scene if scene.image is None else replace(scene, image=str(path.parent / scene.image)) for scene in scenes
    )


def parse_storyboard(text: str, *, where: str = "") -> tuple[Scene, ...]:
    """The scenes of text, one per line; empty lines and lines that begin with # are left out.

    Args:
        where: where the text is from, put behind a line's number in what errors say.

    Raises: ConfigError.
    """
    scenes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if (line := line.strip()) and not line.startswith("#"):
            scenes.append(_named(f"line {number}{where}", _line, line))
    if not scenes:
        raise ConfigError(f"the storyboard{where} is empty: write a prompt per line, with its time before it: 0:12.5")
    return _in_order(scenes, where)


def _line(line: str) -> Scene:
    values: dict[str, object] = {}
    head, _, rest = line.partition(" ")
    if re.match(rf"-\s*(\{{|({'|'.join(KEYS)})\s*:)", line):
        raise ConfigError("this is YAML, which is read from files named .yaml; as text, write 0:12.5 she laughs")
    clip = re.match(r"clip\s+(\d+):?(?:\s+|$)", line, re.IGNORECASE)
    if clip:
        values["clip"], line = int(clip[1]), line[clip.end() :]
    elif re.match(r"\d+:", head):
        values["at"], line = parse_seconds(head), rest.strip()
    elif re.fullmatch(r"0|\d+[.,]\d+", head):   # any other whole number may count people
        raise ConfigError(f"a time has minutes here: write {clock(parse_seconds(head))} for {head}")
    settings = re.match(r"\[([^\]]*)\]", line)
    if settings:
        values |= _settings(settings[1])
        line = line[settings.end() :].strip()
    elif line.startswith("["):
        raise ConfigError("its [ is not closed: write [seed 7, guidance 5]")
    return _scene({**values, "prompt": line or None})


def _settings(text: str) -> dict[str, object]:
    """"seed 7, guidance 5" by name."""
    found: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.replace("=", " ", 1) if "=" in part else part).partition(" ")
        if name not in SETTINGS or not value.strip() or name in found:
            raise ConfigError(f"[{text}] must hold {', '.join(SETTINGS)}, each once and with a value: [seed 7]")
        found[name] = value.strip()
    return found


def _from_yaml(text: str, where: str) -> tuple[Scene, ...]:
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line} is not YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(said, list) or not said:
        raise ConfigError(f"{where} must hold a list of scenes, such as '- {{at: 0:12.5, prompt: she laughs}}'")
    scenes = []
    for number, entry in enumerate(said, start=1):
        if not isinstance(entry, dict):
            raise ConfigError(f"scene {number} of {where} must have keys ({', '.join(KEYS)}), got {entry!r}")
        scenes.append(_named(f"scene {number} of {where}", _scene, entry))
    return _in_order(scenes, f" of {where}")


def _scene(said: Mapping[str, object]) -> Scene:
    strange = [key for key in said if key not in KEYS]
    if strange:
        raise ConfigError(f"{strange[0]!r} is none of {', '.join(KEYS)}")
    return Scene(
        at=None if said.get("at") is None else parse_seconds(said["at"]),
        clip=_number(said, "clip", int),
        prompt=None if said.get("prompt") is None else " ".join(str(said["prompt"]).split()),
        seed=_number(said, "seed", int),
        guidance_scale=_number(said, "guidance", float),
        image=None if said.get("image") is None else str(said["image"]),
        speaker=None if said.get("speaker") is None else str(said["speaker"]),
    )


def _number(said: Mapping[str, object], name: str, kind: type) -> int | float | None:
    value = said.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be a {'whole ' if kind is int else ''}number, got {value!r}") from None


def _named(where: str, make: Callable[..., Scene], value: object) -> Scene:
    """What `make` gives of a value; an error says where the value stands."""
    try:
        return make(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _in_order(scenes: Sequence[Scene], where: str) -> tuple[Scene, ...]:
    """Scenes of which none has a time are a clip each. Raises: ConfigError where times do not rise."""
    if not any(scene.has_time for scene in scenes):
        return tuple(replace(scene, clip=number) for number, scene in enumerate(scenes, start=1))
    for number, scene in enumerate(scenes[1:], start=2):
        if not scene.has_time:
            raise ConfigError(
                f"scene {number}{where} ({scene}) has no time: begin it with one, such as 0:12.5, or with a clip, such "
                "as clip 3; or leave times out everywhere"
            )
    for values in ([s.at or 0.0 for s in scenes if s.clip is None], [s.clip for s in scenes if s.clip is not None]):
        for one, following in pairwise(values):
            if following <= one:
                first, second = (f"clip {v}" if isinstance(v, int) else clock(v) for v in (one, following))
                raise ConfigError(f"the scenes{where} must be in order: {second} comes after {first}")
    return tuple(scenes)

"""A training run's settings, as frozen dataclasses and as the YAML that spells them; faults name what was meant.

Knows names, types and ranges; opens no file but the YAML.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import ConfigError
from ..parallel.layout import Layout
from .synthetic import CAMERA_MOTIONS, HEAD_MOTIONS

T = TypeVar("T")

SIGMA_SAMPLINGS = ("logit-normal", "uniform")
TRAINED = ("all", "audio", "lora")
DTYPES = ("fp32", "bf16")


def _probabilities(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is a probability, 0 to 1; got {value}")


def _at_least(owner: object, least: float, *names: str) -> None:
    for name in names:
        if not getattr(owner, name) >= least:
            raise ConfigError(f"{name} must be {least:g} or more, got {getattr(owner, name)}")


def _one_of(owner: object, name: str, choices: tuple[str, ...]) -> None:
    if getattr(owner, name) not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {getattr(owner, name)!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What is drawn for a sample in a step, and what an error costs where."""

    sigma_sampling: str = "logit-normal"
    sigma_mean: float = 0.0        # of the normal, before the logistic
    sigma_std: float = 1.0
    shift: float = 3.0             # after the draw, as at sampling; 1 leaves it
    drop_prompt: float = 0.1       # the prompt becomes the empty prompt
    drop_sound: float = 0.1        # the features become zeros
    drop_both: float = 0.05        # prompt and sound together: the other branch of guidance
    drop_reference: float = 0.0    # the reference latent becomes zeros
    drop_near: float = 0.1         # motion without its newest latent frame, or without its newest three
    drop_far: float = 0.1          # motion without its oldest sixteen
    motion_noise: bool = True      # Gaussian noise on motion latents, its std drawn from Beta(0.93, 3.79)
    face_weight: float = 1.0       # of errors inside the face region
    mouth_weight: float = 1.0      # of errors inside the mouth box
    mouth_loss: float = 0.0        # further term: the mean error of the mouth box alone, times this

    def __post_init__(self) -> None:
        _one_of(self, "sigma_sampling", SIGMA_SAMPLINGS)
        _probabilities(self, "drop_prompt", "drop_sound", "drop_both", "drop_reference", "drop_near", "drop_far")
        _at_least(self, 0, "face_weight", "mouth_weight", "mouth_loss", "sigma_std")
        if not self.shift > 0:
            raise ConfigError(f"shift must be above 0, got {self.shift}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, and its learning rate over the run: a linear warm-up, level, then a linear decay to 0."""

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    eps: float = 1e-8
    warmup_steps: int = 100
    decay_fraction: float = 0.0    # of all steps, at the end
    max_grad_norm: float = 1.0
    ema: float = 0.0               # decay a step of the averaged weights; 0: none are kept
    moments: str = "fp32"          # what Adam remembers of every weight; "8bit" needs torchao or bitsandbytes
    offload: bool = False          # Adam's moments and its arithmetic on the CPU, in float32

    def __post_init__(self) -> None:
        _probabilities(self, "decay_fraction", "ema")
        _one_of(self, "moments", ("fp32", "8bit"))
        if self.offload and self.moments != "fp32":
            raise ConfigError("moments on the CPU are kept in fp32: choose offload or moments: 8bit, not both")
        _at_least(self, 0, "weight_decay", "warmup_steps")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are two numbers of at least 0 and below 1, got {list(self.betas)}")
        for name in ("learning_rate", "max_grad_norm", "eps"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be a number above 0, got {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Which model, from which weights, and which part of it learns."""

    config: Path | None = None         # a model.json; None: the 14B model
    weights: Path | None = None        # the transformer's: S2V, or Wan text-to-video (its new modules start fresh);
                                       # None: from nothing
    trained: str = "all"               # "audio": the sound encoder and the audio layers alone; "lora"
    lora_rank: int = 32
    lora_alpha: float = 32.0           # a LoRA counts alpha / rank
    frozen_dtype: str = "fp32"         # of weights that do not learn
    text_encoder: str = "frozen"       # "frozen": embeds were precomputed; "trained": learns with the transformer
    text_weights: Path | None = None   # the trained text encoder's; None: from nothing
    compute_dtype: str = "fp32"        # of the blocks; the weights are kept in float32
    checkpoint_blocks: bool = False    # recompute a block's activations in the backward pass
    compile_blocks: bool = False       # torch.compile, block by block

    def __post_init__(self) -> None:
        _one_of(self, "trained", TRAINED)
        _one_of(self, "text_encoder", ("frozen", "trained"))
        _one_of(self, "compute_dtype", DTYPES)
        _one_of(self, "frozen_dtype", DTYPES)
        _at_least(self, 1, "lora_rank")

    @property
    def origin(self) -> str:
        """Where the transformer's weights come from, in words."""
        return "random numbers" if self.weights is None else str(self.weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeConfig:
    """Where windows come from, and how they are cut. Counts are frames of the video at `fps`."""

    source: str = ""                   # a folder with metadata.csv or .jsonl, or "synthetic"
    model: Path | None = None          # folder of the autoencoder and encoders; None: the bundled ones
    windows: Path = Path("windows")    # where they are written
    clip_frames: int = 80
    motion_frames: int = 73
    warmup_frames: int = 3             # before a video's first clip, as at sampling
    fps: float = 16.0
    first_share: float = 0.3           # of the windows that are first clips: nothing before them is seen
    windows_per_video: int = 1
    max_tokens: int = 44_544           # of a window's sequence: larger pictures are scaled and cropped to it
    encode_batch: int = 1              # windows of one kind that are encoded together
    prompts: str = "encoded"           # "text": kept as text alone, for a text encoder that is trained
    seed: int = 0
    # of synthetic videos
    num_videos: int = 0
    video_frames: int = 241
    width: int = 64                    # pixels
    height: int = 64
    faces: tuple[float, ...] = (1.0,)  # shares of videos with one face, with two and with three
    motion: str | None = None          # of all heads: "still", "nods" or "shakes"; None: drawn
    camera: str | None = None          # "still", "moves in", "pans left" or "pans right"; None: drawn
    held_out: bool = False             # looks, voices and sentences that training never sees

    def __post_init__(self) -> None:
        _at_least(self, 1, "windows_per_video", "fps", "max_tokens", "encode_batch")
        _at_least(self, 4, "clip_frames")
        _at_least(self, 0, "num_videos", "seed", "warmup_frames")
        _probabilities(self, "first_share")
        _one_of(self, "prompts", ("encoded", "text"))
        if self.motion is not None:
            _one_of(self, "motion", HEAD_MOTIONS)
        if self.camera is not None:
            _one_of(self, "camera", CAMERA_MOTIONS)
        if not 1 <= len(self.faces) <= 3 or min(self.faces) < 0 or not sum(self.faces) > 0:
            raise ConfigError(
                f"faces are the shares of videos with one, two and three faces, such as [0.75, 0.15, 0.1]; "
                f"got {list(self.faces)}"
            )
        if self.clip_frames % 4 or self.motion_frames % 4 != 1:
            raise ConfigError(
                f"clip_frames is a multiple of 4 and motion_frames one more than such a multiple; "
                f"got {self.clip_frames} and {self.motion_frames}"
            )

    @property
    def num_latents(self) -> int:
        return self.clip_frames // 4

    @property
    def num_motion_latents(self) -> int:
        return 1 + (self.motion_frames - 1) // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which windows are learnt from, and in what company."""

    windows: tuple[Path, ...] = ()     # folders that `precompute` has written, one named twice counts twice;
                                       # none: the run encodes those of precompute as it needs them
    validation: tuple[Path, ...] = ()  # folders whose windows are only measured; none: the run first writes those of
                                       # precompute_validation where that has a source
    batch_size: int = 1
    accumulate: int = 1                # batches to an optimiser step
    first_clip: float = 0.3            # probability that a batch is of first clips: no motion, reference opens
    clip_latents: int = 0              # latent frames taken of a window, for cheap and varied batches; 0: all

    def __post_init__(self) -> None:
        _probabilities(self, "first_clip")
        _at_least(self, 1, "batch_size", "accumulate")
        _at_least(self, 0, "clip_latents")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, and what is kept on the way."""

    output: Path = Path("runs")
    steps: int = 1000
    seed: int = 0
    save_every: int = 500
    keep: int = 3                      # newest checkpoints that stay
    validate_every: int = 0            # 0: never
    validation_batches: int = 8
    validate_clips: int = 0            # generated each time, of the videos of precompute_validation, and scored
    validate_steps: int = 8            # denoising steps of these clips
    log_every: int = 1
    export_dtype: str = "bf16"         # of the exported matrices; "fp32" for weights that a further stage starts from
    trackers: tuple[str, ...] = ()     # "tensorboard", "wandb" and others that accelerate has

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "save_every", "keep", "validation_batches", "validate_steps", "log_every")
        _at_least(self, 0, "validate_every", "validate_clips", "seed")
        _one_of(self, "export_dtype", DTYPES)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run."""

    name: str
    model: ModelSource = field(default_factory=ModelSource)
    precompute: PrecomputeConfig = field(default_factory=PrecomputeConfig)
    precompute_validation: PrecomputeConfig = field(default_factory=PrecomputeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    parallel: Layout | None = None     # None: every process that was launched has batches of its own


def read_train_config(path: Path) -> TrainConfig:
    """The run that a YAML file describes.

    Raises: ConfigError that names the setting, what it got, and what it was probably meant to be.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} describes no training run: it needs settings such as name, model, data and run")
    return from_settings(TrainConfig, settings, str(path))


def from_settings(kind: type[T], settings: Mapping[str, Any], where: str) -> T:
    """A dataclass of nested mappings; `where` is what errors call it."""
    known = {f.name: f for f in fields(kind)}   # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise ConfigError(f"{where} sets {name}, which is not a setting; {hint}")
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in needed if name not in settings]
    if missing:
        raise ConfigError(f"{where} lacks {missing[0]}")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(hints[name], value, f"{where}: {name}") for name, value in settings.items()})


def _typed(hint: Any, value: object, where: str) -> object:
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} holds settings of its own, got {value!r}")
        return from_settings(hint, value, where)   # type: ignore[arg-type]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(hint) if a is not type(None))
        return None if value is None else _typed(inner, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is a list, got {value!r}")
        return tuple(_typed(typing.get_args(hint)[0], item, where) for item in value)
    return _plain(hint, value, where)


def _plain(hint: type, value: object, where: str) -> object:
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)   # YAML reads 1e-3 as text
        except ValueError:
            pass
    if hint is Path and isinstance(value, str) and value:
        return Path(value).expanduser()
    if hint in (int, str, bool) and type(value) is hint:
        return value
    kind = {float: "a number", int: "a whole number", bool: "true or false", Path: "a path", str: "text"}[hint]
    raise ConfigError(f"{where} must be {kind}, got {value!r}")

"""Where a model's four weight files lie: the official folder, single-file repackagings, or our own layout.

Knows folders and usual file names; tells files apart by their content. Builds no model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..config import AudioEncoderConfig, ModelConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from ..errors import CheckpointError, ConfigError
from . import keymaps
from .files import INDEX_SUFFIX, SHARD_NAME, WEIGHT_SUFFIXES, WeightFile, open_weights
from .keymaps import UNKNOWN
from .loading import component_tensors
from .shapes import FROM_SHAPES, Config, size_name

log = logging.getLogger(__name__)

MODEL_FILE = "model.json"   # of our own layout: a ModelConfig, with `<component>.safetensors` beside it
COMPONENTS: Mapping[str, type[Config]] = {
    "transformer": TransformerConfig,
    "vae": VAEConfig,
    "text_encoder": TextEncoderConfig,
    "audio_encoder": AudioEncoderConfig,
}

_PICKLES = (".pth", ".pt", ".bin", ".ckpt")
_COMFY_FOLDERS = ("diffusion_models", "unet", "vae", "text_encoders", "clip", "audio_encoders")
_DEPTH = 2   # subfolders that are searched, and theirs
_TOKENIZER_FOLDERS = ("google/umt5-xxl", "umt5-xxl", "tokenizer")
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_HELP = {
    "transformer": (
        "S2V transformer",
        "the diffusion_pytorch_model-*.safetensors shards with their index, or wan2.2_s2v_14B_fp8_scaled.safetensors",
    ),
    "vae": ("Wan 2.1 VAE", "Wan2.1_VAE.pth or wan_2.1_vae.safetensors"),
    "text_encoder": (
        "umT5 text encoder",
        "models_t5_umt5-xxl-enc-bf16.pth or umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    "audio_encoder": (
        "wav2vec2 sound encoder",
        "the folder wav2vec2-large-xlsr-53-english or wav2vec2_large_english_fp16.safetensors",
    ),
}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """What a model is made of, found and identified; no weight is read."""

    config: ModelConfig
    transformer: Path
    vae: Path
    text_encoder: Path
    audio_encoder: Path
    tokenizer: Path | None   # folder; None: inside the text encoder's file, or none needed ("bytes")

    def read_spiece_model(self) -> bytes:
        """The SentencePiece model that lies inside the text encoder's file."""
        return open_weights(self.text_encoder).tensors[keymaps.SPIECE_MODEL].read().numpy().tobytes()


def find_components(path: Path | str) -> ModelFiles:
    """Find a model's files.

    Args:
        path: a folder, or the transformer's file itself, whose companions lie in its folder or in the sibling folders
            of a ComfyUI `models` tree.

    Raises: CheckpointError that names the part which is missing, its usual file and where to put it; or the files
        between which to choose; or parts that do not belong together.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"the model {path} does not exist")
    if (path / MODEL_FILE).is_file():
        return _own_layout(path)
    found = _Search(path).run()
    configs = {component: config_of(component, file) for component, file in found.items()}
    config = ModelConfig(name=size_name(configs["transformer"]), **configs)
    _check_companions(config, found)
    paths = {component: file.path for component, file in found.items()}
    return ModelFiles(config=config, tokenizer=_find_tokenizer(path, found["text_encoder"]), **paths)


# ---- our own layout --------------------------------------------------------------------------------------------------


def _own_layout(folder: Path) -> ModelFiles:
    config = read_model_config(folder / MODEL_FILE)
    paths = {component: folder / f"{component}.safetensors" for component in COMPONENTS}
    for component, path in paths.items():
        if not path.exists():
            raise CheckpointError(f"{folder} has a {MODEL_FILE} but no {path.name}: its {_HELP[component][0]}")
    tokenizer = config.text_encoder.tokenizer
    return ModelFiles(config=config, tokenizer=None if tokenizer == "bytes" else folder / tokenizer, **paths)


def read_model_config(path: Path) -> ModelConfig:
    """A ModelConfig from JSON that spells its fields as we do (`json.dumps(dataclasses.asdict(config))` makes it)."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict) or "name" not in settings:
        raise ConfigError(f"{path} describes no model: it needs a name")
    parts = {name: _from_fields(kind, settings.get(name, {}), path) for name, kind in COMPONENTS.items()}
    return _from_fields(ModelConfig, {**settings, **parts}, path)


def _from_fields(kind: type[T], settings: dict[str, Any], path: Path) -> T:
    known = {field.name for field in fields(kind)}   # type: ignore[arg-type]
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(f"{path} sets {unknown[0]}, which {kind.__name__} does not have")
    return kind(**{n: v if is_dataclass(v) else keymaps.tupled(v) for n, v in settings.items()})


# ---- looking around --------------------------------------------------------------------------------------------------


class _Search:
    """Opens files, nearest and cheapest first, until every component has been seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self.seen: set[Path] = set()
        self.faults: list[str] = []
        self.strangers: list[str] = []

    def run(self) -> dict[str, WeightFile]:
        found: dict[str, WeightFile] = {}
        if self.path.is_file():
            found["transformer"] = open_weights(self.path)
            component_tensors(found["transformer"], "transformer")   # says what it is instead
        for files in self._rounds():
            if len(found) == len(COMPONENTS):
                break
            candidates = self._identify(files)
            for component in COMPONENTS:
                if component not in found and candidates.get(component):
                    found[component] = self._choose(component, candidates[component])
        for component in COMPONENTS:
            if component not in found:
                raise CheckpointError(self._missing(component))
        return found

    def _rounds(self) -> Iterator[list[Path]]:
        """Here before in a ComfyUI tree around; pickles last, they take longer to open."""
        for folders in ([self.folder], _comfy_folders(self.folder)):
            files = [file for folder in folders for file in _weight_files(folder, _DEPTH)]
            yield [file for file in files if file.suffix not in _PICKLES]
            yield [file for file in files if file.suffix in _PICKLES]

    def _identify(self, files: list[Path]) -> dict[str, list[WeightFile]]:
        candidates: dict[str, list[WeightFile]] = {}
        for path in files:
            if path in self.seen:
                continue
            self.seen.add(path)
            try:
                file = open_weights(path)
            except CheckpointError as error:
                self.faults.append(str(error))
                continue
            kind, _ = keymaps.identify(file.tensors)
            if kind.component is not None:
                candidates.setdefault(kind.component, []).append(file)
            elif kind is not UNKNOWN:
                self.strangers.append(f"{path.name} is {kind.title}")
        return candidates

    def _choose(self, component: str, files: list[WeightFile]) -> WeightFile:
        """The most precise; which transformer, only the user can say."""
        if len(files) > 1 and component == "transformer":
            names = ", ".join(sorted(file.path.name for file in files))
            raise CheckpointError(f"{self.folder} holds {len(files)} S2V transformers: give one as the model: {names}")
        best = max(files, key=lambda file: sum(stored.num_bytes for stored in file.tensors.values()))
        log.info("%s: %s", _HELP[component][0], best.path)
        return best

    def _missing(self, component: str) -> str:
        what, usual = _HELP[component]
        text = f"no {what} was found in {self.folder}: put {usual} there"
        remarks = self.faults or (self.strangers if component == "transformer" else [])
        return f"{text} ({'; '.join(remarks[:3])})" if remarks else text


def _comfy_folders(folder: Path) -> list[Path]:
    """The folders of a ComfyUI `models` tree that this folder is, holds, or is part of."""
    for tree in (folder, folder / "models", folder.parent, folder.parent.parent):
        inside = [tree / name for name in _COMFY_FOLDERS if (tree / name).is_dir()]
        if len(inside) > 1:
            return inside
    return []


def _weight_files(folder: Path, depth: int) -> Iterator[Path]:
    """Weight files in a folder and below; a sharded set counts once, by its index or its first shard."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    names = {entry.name for entry in entries}
    for entry in entries:
        if entry.is_dir():
            if depth and not entry.name.startswith("."):
                yield from _weight_files(entry, depth - 1)
        elif _stands_for_itself(entry, names):
            yield entry


def _stands_for_itself(path: Path, names: set[str]) -> bool:
    if path.name.endswith(INDEX_SUFFIX) or path.suffix not in WEIGHT_SUFFIXES:
        return path.name.endswith(INDEX_SUFFIX)
    match = SHARD_NAME.match(path.name)
    if match is None:
        return True
    if match["stem"] + match["suffix"] + INDEX_SUFFIX in names:
        return False
    shards = (name for name in names if (m := SHARD_NAME.match(name)) and m["stem"] == match["stem"])
    return path.name == min(shards)


# ---- what was found --------------------------------------------------------------------------------------------------

_FROM_OFFICIAL = {
    "transformer": keymaps.transformer_config_from_official,
    "text_encoder": keymaps.text_config_from_official,
    "audio_encoder": keymaps.audio_config_from_official,
}


def _describes(component: str, settings: Mapping[str, Any]) -> bool:
    """Is this config.json this component's? One folder may hold the files of several."""
    if component == "transformer":
        return "audio_inject_layers" in settings
    return settings.get("model_type") == {"text_encoder": "umt5", "audio_encoder": "wav2vec2"}.get(component, "")


def config_of(component: str, file: WeightFile) -> Config:
    """From our model.json or the config.json beside the weights where it is theirs, else from the weights' shapes."""
    own = file.path.parent / MODEL_FILE
    if own.is_file():
        return getattr(read_model_config(own), component)
    settings = _read_json(file.path.parent / "config.json")
    if _describes(component, settings):
        return _FROM_OFFICIAL[component](settings)
    return FROM_SHAPES[component]({name: stored.shape for name, stored in component_tensors(file, component).items()})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _check_companions(config: ModelConfig, found: Mapping[str, WeightFile]) -> None:
    """Are these four of one model?"""
    transformer, audio = config.transformer, config.audio_encoder
    pairs: Iterable[tuple[str, str, int, int]] = (
        ("audio_encoder", "hidden states of width", audio.hidden_size, transformer.audio_dim),
        ("audio_encoder", "hidden states in number", audio.num_hidden_layers + 1, transformer.num_audio_layers),
        ("text_encoder", "text of width", config.text_encoder.dim, transformer.text_dim),
        ("vae", "latents in channels", config.vae.latent_channels, transformer.in_channels),
    )
    for component, what, given, wanted in pairs:
        if given != wanted:
            raise CheckpointError(
                f"{found[component].path} is another model's {_HELP[component][0]}: it gives {what} {given}, "
                f"the transformer reads {wanted}; get {_HELP[component][1]}"
            )


def _find_tokenizer(path: Path, text_encoder: WeightFile) -> Path | None:
    folders = [path if path.is_dir() else path.parent, text_encoder.path.parent]
    for folder in [base / name for base in folders for name in _TOKENIZER_FOLDERS]:
        if any((folder / name).is_file() for name in _TOKENIZER_FILES):
            return folder
    if keymaps.SPIECE_MODEL in text_encoder.tensors:
        return None
    raise CheckpointError(
        f"the text encoder {text_encoder.path} comes without a tokenizer: "
        f"put the folder {_TOKENIZER_FOLDERS[0]} of the official download into {folders[0]}"
    )

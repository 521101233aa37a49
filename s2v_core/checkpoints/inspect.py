"""What a weight file is: its kind, the model it fits, its number formats, what is missing. No weight is read.

Knows our models' names and shapes; loads none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ..config import WAN_S2V_14B, AudioEncoderConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from ..errors import CheckpointError
from . import keymaps
from .files import StoredTensor, WeightFile, open_weights
from .loading import component_tensors
from .lora import describe_misfit, fitting, read_lora
from .official import MODEL_FILE, config_of, read_model_config
from .shapes import Config, size_name

_SHOWN = 5   # names listed of what is missing or left over


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatUse:
    """How much of a file is stored in one number format."""

    format: str
    num_tensors: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `inspect_file` found; its text is for people."""

    path: Path
    kind: str                            # "a Wan S2V transformer", ...
    fits: str                            # which of our models, or why none
    num_parameters: int
    formats: tuple[FormatUse, ...]       # most bytes first
    missing: tuple[str, ...] = ()        # names of our model that the file lacks
    unexpected: tuple[str, ...] = ()     # names in the file that our model has not
    misshapen: tuple[str, ...] = ()      # names whose shape is another

    def __str__(self) -> str:
        num_tensors = sum(use.num_tensors for use in self.formats)
        total = _size(sum(use.num_bytes for use in self.formats))
        lines = [
            f"{self.path}: {self.kind}",
            f"  fits        {self.fits}",
            f"  parameters  {self.num_parameters:,} in {num_tensors} tensors, {total}",
            *(f"  {use.format:<11} {use.num_tensors} tensors, {_size(use.num_bytes)}" for use in self.formats),
            *_listed("missing", self.missing),
            *_listed("unexpected", self.unexpected),
            *_listed("wrong shape", self.misshapen),
        ]
        return "\n".join(lines)


def inspect_file(path: Path | str) -> Report:
    """Say what a weight file is, from its header alone.

    Args:
        path: any weight file, a shard or the index of a sharded set.

    Raises: CheckpointError for what is no weight file, or a broken one.
    """
    file = open_weights(path)
    kind, _ = keymaps.identify(file.tensors)
    if kind is keymaps.LORA:
        return _report_lora(file)
    if kind.component is not None:
        return _report_component(file, kind.title, kind.component)
    if kind.title.startswith("a Wan") and "transformer" in kind.title:
        return _report_other_transformer(file, kind.title)
    return _report(file, kind.title, "none of the models of Wan-S2V", file.tensors)


# ---- kinds of file ---------------------------------------------------------------------------------------------------


def _report_component(file: WeightFile, title: str, component: str) -> Report:
    tensors = component_tensors(file, component)
    try:
        config = config_of(component, file)
    except CheckpointError as error:
        return _report(file, title, f"cannot be told: {error}", tensors)
    expected = _shapes(_MODELS[component](config))
    missing, unexpected, misshapen = compare(expected, tensors)
    fits = _fitting_model(component, config, file.path.parent / MODEL_FILE)
    if missing or misshapen:
        fits = f"{fits}, but is incomplete"
    return _report(file, title, fits, tensors, missing=missing, unexpected=unexpected, misshapen=misshapen)


def _report_other_transformer(file: WeightFile, title: str) -> Report:
    """Another Wan transformer: set beside the released S2V model's names."""
    _, prefix = keymaps.identify(file.tensors)
    tensors = {name.removeprefix(prefix): stored for name, stored in file.tensors.items()}
    missing, unexpected, misshapen = compare(_shapes(_transformer(WAN_S2V_14B.transformer)), tensors)
    fits = f"not Wan-S2V: {len(missing)} of its weights are missing"
    return _report(file, title, fits, tensors, missing=missing, unexpected=unexpected, misshapen=misshapen)


def _report_lora(file: WeightFile) -> Report:
    lora = read_lora(file)
    fits = fitting(_transformer(WAN_S2V_14B.transformer), lora)
    num_keys = sum(change.num_keys for _, change in fits)
    ranks = "-".join(str(rank) for rank in sorted({*lora.ranks[:1], *lora.ranks[-1:]})) or "none: whole differences"
    title = f"a LoRA of rank {ranks} for {len(lora.changes)} modules"
    what = f"{WAN_S2V_14B.name}: {num_keys} of {lora.num_keys} keys"
    if not fits:
        what += f"; it looks like a LoRA for {describe_misfit(lora)}"
    fit = {change.target for _, change in fits}
    unfit = [change.target for change in lora.changes if change.target not in fit]
    return _report(file, title, what, file.tensors, unexpected=tuple(unfit) if fits else ())


def _report(
    file: WeightFile, title: str, fits: str, tensors: Mapping[str, StoredTensor], **faults: tuple[str, ...]
) -> Report:
    return Report(
        path=file.path,
        kind=title + (" in GGUF" if "general.architecture" in file.metadata else ""),
        fits=fits,
        num_parameters=sum(stored.num_values for stored in tensors.values()),
        formats=_format_uses(file.tensors),
        **faults,
    )


def _format_uses(tensors: Mapping[str, StoredTensor]) -> tuple[FormatUse, ...]:
    groups: dict[str, list[int]] = {}
    for stored in tensors.values():
        groups.setdefault(stored.format, []).append(stored.num_bytes)
    uses = [FormatUse(format=f, num_tensors=len(sizes), num_bytes=sum(sizes)) for f, sizes in groups.items()]
    return tuple(sorted(uses, key=lambda use: -use.num_bytes))


# ---- our models ------------------------------------------------------------------------------------------------------


def _transformer(config: Config) -> nn.Module:
    from ..models.dit import WanS2VTransformer

    with torch.device("meta"):
        return WanS2VTransformer(cast(TransformerConfig, config))


def _vae(config: Config) -> nn.Module:
    from ..models.vae import WanVAE

    with torch.device("meta"):
        return WanVAE(cast(VAEConfig, config))


def _text_encoder(config: Config) -> nn.Module:
    from ..models.text_encoder import build_text_encoder

    with torch.device("meta"):
        return build_text_encoder(cast(TextEncoderConfig, config))


def _audio_encoder(config: Config) -> nn.Module:
    from ..models.sound_encoder import SoundEncoder

    with torch.device("meta"):
        return SoundEncoder(cast(AudioEncoderConfig, config))


_MODELS: Mapping[str, Callable[[Config], nn.Module]] = {   # transformers takes seconds to import: only when needed
    "transformer": _transformer,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "audio_encoder": _audio_encoder,
}
_RELEASED = {
    "vae": ("Wan2.1 VAE", WAN_S2V_14B.vae),
    "text_encoder": ("umT5-XXL", WAN_S2V_14B.text_encoder),
    "audio_encoder": ("wav2vec2-large-xlsr-53", WAN_S2V_14B.audio_encoder),
}


def _fitting_model(component: str, config: Config, own: Path) -> str:
    if own.is_file():
        return read_model_config(own).name
    if component == "transformer":
        return size_name(cast(TransformerConfig, config))
    name, released = _RELEASED[component]
    return f"{WAN_S2V_14B.name} ({name})" if config == released else f"another size than {WAN_S2V_14B.name}'s {name}"


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights; of a weight with two names, the first."""
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def compare(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, StoredTensor]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names that are missing, left over, and of another shape."""
    missing = tuple(name for name in expected if name not in tensors)
    unexpected = tuple(name for name in tensors if name not in expected)
    misshapen = tuple(name for name in expected if name in tensors and tensors[name].shape != expected[name])
    return missing, unexpected, misshapen


# ---- text ------------------------------------------------------------------------------------------------------------


def _listed(title: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"  {title:<11} {len(names)}: {', '.join(names[:_SHOWN])}{rest}"]


def _size(num_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes} bytes"

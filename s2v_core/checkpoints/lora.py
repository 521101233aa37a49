"""LoRA files in their usual spellings, added to a model while it runs or merged into its weights.

Knows modules by name; not which model they make.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..ops.quantized import QuantizedLinear
from . import keymaps
from .files import WeightFile, open_weights

log = logging.getLogger(__name__)

_CONVS: Mapping[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}   # by a kernel's axes
_MATRIX_LAYERS = (nn.Linear, QuantizedLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Change:
    """What a LoRA adds to one module, at strength 1."""

    target: str                      # the module, officially spelled but for dots that kohya writes as underscores
    num_keys: int
    down: Tensor | None = None       # [rank, in, *kernel]
    up: Tensor | None = None         # [out, rank, 1...]
    scale: float = 1.0               # of up @ down: alpha / rank
    weight: Tensor | None = None     # whole differences
    bias: Tensor | None = None
    modulation: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """A LoRA file, read."""

    path: Path
    changes: tuple[Change, ...]

    @property
    def num_keys(self) -> int:
        return sum(change.num_keys for change in self.changes)

    @property
    def num_bytes(self) -> int:
        """Of what comes to lie beside a model's layers, where it is not merged."""
        beside = (t for change in self.changes for t in (change.down, change.up, change.weight) if t is not None)
        return sum(t.nbytes for t in beside)

    @property
    def ranks(self) -> tuple[int, ...]:
        """All that occur, rising."""
        return tuple(sorted({len(change.down) for change in self.changes if change.down is not None}))


# ---- reading ---------------------------------------------------------------------------------------------------------


def load_lora(path: Path | str) -> Lora:
    """Read a LoRA: a file, or the folder that PEFT saves.

    Takes kohya (`lora_unet_..._lora_down`), PEFT (`base_model.model...lora_A`), diffusers (`transformer...lora_A`) and
    ComfyUI (`diffusion_model...lora_down`) spellings and whole differences (`diff`, `diff_b`, `diff_m`).

    Raises: CheckpointError for a file that is no LoRA, incomplete, or of a kind that we do not apply (DoRA, LoHa, ...).
    """
    path = Path(path)
    file = open_weights(path / keymaps.PEFT_FILE if path.is_dir() else path)
    return read_lora(file)


def read_lora(file: WeightFile) -> Lora:
    """The changes in a file that is open; small numbers are read, matrices stay memory-mapped."""
    kind, _ = keymaps.identify(file.tensors)
    if kind is not keymaps.LORA:
        raise CheckpointError(f"{file.path} is {kind.title}, not a LoRA")
    _refuse_unsupported(file)
    groups: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, stored in file.tensors.items():
        target, part = _split(name)
        if part:
            groups.setdefault(target, {})[part] = stored.dense(None)
        else:
            unknown.append(name)
    if unknown:
        log.warning(
            "%s: %d of %d tensors are of no kind of change that can be applied, and are left out: %s",
            file.path, len(unknown), len(file.tensors), ", ".join(unknown[:3]),
        )  # fmt: skip
    scaling = _read_scaling(file)
    changes = [change for target, parts in groups.items() for change in _changes(file.path, target, parts, scaling)]
    return Lora(path=file.path, changes=tuple(changes))


def _refuse_unsupported(file: WeightFile) -> None:
    for ending, kind in keymaps.LORA_UNSUPPORTED.items():
        if any(name.endswith(ending) for name in file.tensors):
            raise CheckpointError(f"{file.path} is a {kind}, which cannot be applied; plain LoRA files can")


def _split(name: str) -> tuple[str, str]:
    for ending, part in {**keymaps.LORA_PARTS, keymaps.LORA_ALPHA: "alpha"}.items():
        if name.endswith(ending):
            return name.removesuffix(ending), part
    return name, ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scaling:
    """How alpha becomes a factor where the file's tensors do not say."""

    alpha: float | None = None   # None: alpha is the rank
    by_root: bool = False        # rank-stabilised: alpha / sqrt(rank)
    by_layer: tuple[tuple[re.Pattern[str], float], ...] = ()   # PEFT's alpha_pattern: the first that fits

    def factor(self, target: str, rank: int, alpha: float | None) -> float:
        if alpha is None:
            alpha = next((alpha for pattern, alpha in self.by_layer if pattern.match(target)), self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.by_root else rank)


def _read_scaling(file: WeightFile) -> _Scaling:
    settings = _peft_settings(file)
    alpha, patterns = settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
    try:
        return _Scaling(
            alpha=None if alpha is None else float(alpha),
            by_root=bool(settings.get("use_rslora", False)),
            by_layer=tuple((re.compile(rf"(.*\.)?({end})$"), float(alpha)) for end, alpha in patterns.items()),
        )
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the settings of the LoRA {file.path} cannot be read: {error}") from error


def _peft_settings(file: WeightFile) -> dict[str, Any]:
    """PEFT's settings: in the header, or in the file that PEFT writes beside the weights."""
    beside = file.path.with_name(keymaps.PEFT_CONFIG)
    try:
        if keymaps.LORA_METADATA in file.metadata:
            settings = json.loads(file.metadata[keymaps.LORA_METADATA])
            return {name.removeprefix("transformer."): value for name, value in settings.items()}
        if file.path.name == keymaps.PEFT_FILE and beside.is_file():
            return dict(json.loads(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the settings of the LoRA {file.path} cannot be read: {error}") from error
    return {}


def _changes(path: Path, target: str, parts: dict[str, Tensor], scaling: _Scaling) -> Iterator[Change]:
    """A low-rank change and whole differences: two changes where a module has both."""
    if ("down" in parts) != ("up" in parts):
        raise CheckpointError(f"{path} is incomplete: {target} has only one of its two LoRA matrices")
    module = keymaps.lora_target(target)
    pair = {name: parts[name] for name in ("down", "up", "alpha") if name in parts}
    whole = {name: tensor for name, tensor in parts.items() if name not in pair}
    if "down" in pair:
        alpha = pair.pop("alpha", None)
        scale = scaling.factor(target, len(pair["down"]), None if alpha is None else float(alpha))
        yield Change(target=module, num_keys=2 + (alpha is not None), scale=scale, **pair)
    if whole:
        yield Change(target=module, num_keys=len(whole), **whole)


# ---- finding the modules ---------------------------------------------------------------------------------------------


def fitting(model: nn.Module, lora: Lora) -> list[tuple[nn.Module, Change]]:
    """The changes that fit this model, each with its module."""
    modules = dict(model.named_modules())
    modules |= {name.replace(".", "_"): module for name, module in modules.items()}
    found = [(modules.get(change.target), change) for change in lora.changes]
    return [(module, change) for module, change in found if module is not None and _fits(module, change)]


def required_to_fit(model: nn.Module, lora: Lora) -> list[tuple[nn.Module, Change]]:
    """`fitting`, of which there must be some. Raises: CheckpointError for a LoRA of another model."""
    fits = fitting(model, lora)
    if not fits:
        raise CheckpointError(
            f"{lora.path}: 0 of {lora.num_keys} keys fit this model; it looks like a LoRA for {describe_misfit(lora)}"
        )
    return fits


def _fits(module: nn.Module, change: Change) -> bool:
    if change.down is not None and change.up is not None:
        matrix = (len(change.up), *change.down.shape[1:])
        return matrix == _weight_shape(module) and all(n == 1 for n in change.up.shape[2:])
    whole = (
        (change.weight, _weight_shape(module)),
        (change.bias, _shape(module, "bias")),
        (change.modulation, _shape(module, "modulation")),
    )
    return all(tuple(delta.shape) == shape for delta, shape in whole if delta is not None)


def _shape(module: nn.Module, parameter: str) -> tuple[int, ...] | None:
    tensor = dict(module.named_parameters(recurse=False)).get(parameter)
    return None if tensor is None else tuple(tensor.shape)


def _weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    if isinstance(module, QuantizedLinear):
        return module.out_features, module.in_features
    return _shape(module, "weight")


def describe_misfit(lora: Lora) -> str:
    """For which model the targets of a LoRA that does not fit seem to be."""
    for piece, model in keymaps.LORA_ORIGINS.items():
        if any(piece in change.target for change in lora.changes):
            return model
    return f"a model with modules like {lora.changes[0].target!r}"


# ---- applying --------------------------------------------------------------------------------------------------------


class LoraBranch(nn.Module):
    """strength * scale * up(down(x)) beside a layer, or a whole difference: its tensors move with the layer."""

    def __init__(self, change: Change, strength: float) -> None:
        super().__init__()
        self.factor = strength * change.scale
        self.register_buffer("first", change.weight if change.down is None else change.down)
        self.register_buffer("second", change.up)

    def added(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The layer's output with this branch's on top, as a forward hook."""
        x = inputs[0]
        first = self.first.to(x)
        x = F.linear(x, first) if first.dim() == 2 else layer._conv_forward(x, first, None)
        x = x * self.factor
        if self.second is not None:
            second = self.second.to(x)
            x = F.linear(x, second) if second.dim() == 2 else _CONVS[second.dim()](x, second)
        return output + x


@dataclass(frozen=True, kw_only=True, slots=True)
class AppliedLora:
    """A LoRA on a model."""

    num_keys: int   # that fit
    is_merged: bool
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def remove(self) -> None:
        """Take it off again.

        Raises: ConfigError when it was merged.
        """
        if self.is_merged:
            raise ConfigError("a merged LoRA cannot be taken out of the weights: load the model again")
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


def apply_lora(model: nn.Module, lora: Lora, strength: float = 1.0, *, merge: bool = False) -> AppliedLora:
    """Add a LoRA to a model; several add up.

    Args:
        strength: factor on everything in it.
        merge: write it into the weights, for good, computed in float32. Packed weights (fp8, GGUF) are never rewritten:
            their layers take it live. Live, a layer computes its branch beside it, and `remove` undoes everything.

    Raises: CheckpointError when nothing in it fits this model. What fits not among much that fits is only logged.
    """
    fits = required_to_fit(model, lora)
    num_keys = sum(change.num_keys for _, change in fits)
    if num_keys < lora.num_keys:
        log.warning("%s: %d of %d keys fit this model, the rest is left out", lora.path, num_keys, lora.num_keys)
    undo: list[Callable[[], None]] = []
    for module, change in fits:
        steps = _apply(module, change, strength, merge)
        if not merge:   # else they would keep the old weights in memory
            undo += steps
    return AppliedLora(num_keys=num_keys, is_merged=merge, _undo=undo)


def _apply(module: nn.Module, change: Change, strength: float, merge: bool) -> list[Callable[[], None]]:
    """Change one module; how to undo it."""
    undo = []
    has_matrix = change.down is not None or change.weight is not None
    if has_matrix and isinstance(module, _MATRIX_LAYERS) and (not merge or isinstance(module, QuantizedLinear)):
        undo.append(_attach(module, LoraBranch(change, strength)))
    elif has_matrix:
        undo.append(_add_to(module, "weight", _delta(change), strength * change.scale))
    for parameter, delta in {"bias": change.bias, "modulation": change.modulation}.items():
        if delta is not None:
            undo.append(_add_to(module, parameter, delta, strength))
    return undo


def _attach(layer: nn.Module, branch: LoraBranch) -> Callable[[], None]:
    handle = layer.register_forward_hook(branch.added)
    name = f"lora_{handle.id}"
    layer.add_module(name, branch.to(next(layer.parameters(), next(layer.buffers(), branch.first)).device))

    def undo() -> None:
        handle.remove()
        delattr(layer, name)

    return undo


def _delta(change: Change) -> Tensor:
    """The change of a whole weight, float32."""
    if change.down is None or change.up is None:
        assert change.weight is not None
        return change.weight.float()
    product = change.up.float().flatten(1) @ change.down.float().flatten(1)
    return product.view(len(change.up), *change.down.shape[1:])


def _add_to(module: nn.Module, parameter: str, delta: Tensor, factor: float) -> Callable[[], None]:
    """Replace a parameter by itself plus a difference, added in float32."""
    old, new = _replace(module, parameter, delta, factor)

    def undo() -> None:
        if getattr(module, parameter) is new:
            setattr(module, parameter, old)
        else:   # another LoRA came on top, and stays
            _replace(module, parameter, delta, -factor)

    return undo


@torch.no_grad()
def _replace(module: nn.Module, parameter: str, delta: Tensor, factor: float) -> tuple[nn.Parameter, nn.Parameter]:
    old = getattr(module, parameter)
    summed = (old.float() + factor * delta.to(old.device, torch.float32)).to(old.dtype)
    new = nn.Parameter(summed, requires_grad=old.requires_grad)
    setattr(module, parameter, new)
    return old, new

"""Stored tensors into a model that was built on the meta device, without a second copy in memory.

Knows modules and tensors; not which model it is handed, nor where files lie.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..ops.eight_bit import EightBit, EightBitLinear
from ..ops.quantized import QuantizedEmbedding, QuantizedLinear
from . import keymaps
from .files import DTYPES, StoredTensor, WeightFile, open_weights

Model = TypeVar("Model", bound=nn.Module)

_MATRIX_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_LARGE_TABLE = 4096   # rows from which an embedding stays packed: a vocabulary, of which a prompt needs a few
_MIXED_PRECISION = ("transformer",)   # whose layers bring weights to their input's dtype; the others need one dtype
_EIGHT_BIT_PARTS = ("blocks.", "audio_injector.injector.")   # whose layers may multiply in 8 bits: 94 % of the weights
_WANTED = {
    "transformer": "the Wan2.2-S2V transformer (the official shards, or a wan2.2_s2v_14B file)",
    "vae": "the Wan 2.1 VAE (Wan2.1_VAE.pth, or wan_2.1_vae.safetensors)",
    "text_encoder": "the umT5-XXL text encoder (models_t5_umt5-xxl-enc-bf16.pth, or a umt5_xxl file)",
    "audio_encoder": "the sound encoder (wav2vec2-large-xlsr-53-english, or wav2vec2_large_english_fp16.safetensors)",
}


# ---- a file as one of our models' weights ----------------------------------------------------------------------------


def read_component(path: Path, component: str) -> dict[str, StoredTensor]:
    """The weights that one of our models takes from a file, under the model's names; nothing is read yet.

    Args:
        component: "transformer", "vae", "text_encoder" or "audio_encoder".

    Raises: CheckpointError for a file that cannot be opened, or holds something else.
    """
    return component_tensors(open_weights(path), component)


def component_tensors(file: WeightFile, component: str) -> dict[str, StoredTensor]:
    """The same, of a file that is open."""
    kind, prefix = keymaps.identify(file.tensors)
    if kind.component != component:
        raise CheckpointError(f"{file.path} is {kind.title}, where {_WANTED[component]} is needed")
    tensors = fold_scales(file)
    return {ours: tensors[theirs] for theirs, ours in keymaps.model_keys(component, tensors, prefix).items()}


def fold_scales(file: WeightFile) -> dict[str, StoredTensor]:
    """The file's tensors, with fp8 scales and notes tucked into the weights that they belong to."""
    tensors = {name: stored for name, stored in file.tensors.items() if not name.endswith(keymaps.UNUSED_SUFFIXES)}
    tensors = {name: stored for name, stored in tensors.items() if name.rpartition(".")[2] != keymaps.FP8_MARKER}
    _refuse_unknown_quantisation(file)
    for suffix in keymaps.SCALE_SUFFIXES:
        for name in [name for name in tensors if name.endswith(suffix)]:
            scale, weight = tensors.pop(name), name.removesuffix(suffix) + ".weight"
            if weight in tensors:
                tensors[weight] = _with_scale(file.path, weight, tensors[weight], scale)
    return tensors


def _with_scale(path: Path, name: str, weight: StoredTensor, scale: StoredTensor) -> StoredTensor:
    if scale.num_values not in (1, weight.shape[0]):
        raise CheckpointError(
            f"{path} scales {name} by a table of shape {list(scale.shape)}; we read one scale a tensor or one a row"
        )
    return replace(weight, scale=scale)


def _refuse_unknown_quantisation(file: WeightFile) -> None:
    """Newer files note each layer's format; those that are not fp8 are stored in ways that we do not read."""
    notes = [bytes(stored.read()) for name, stored in file.tensors.items() if name.endswith(keymaps.QUANT_NOTE)]
    try:
        formats = {json.loads(note)["format"] for note in notes}
        layers = json.loads(file.metadata.get(keymaps.QUANT_METADATA, "{}")).get("layers", {})
        formats |= {layer["format"] for layer in layers.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{file.path} is damaged: its notes on quantised layers cannot be read") from None
    unknown = sorted(formats - set(keymaps.FP8_NOTES))
    if unknown:
        raise CheckpointError(
            f"{file.path} is quantised as {unknown[0]}, which is not supported; get the bf16, fp8_scaled or GGUF file"
        )


def main_dtype(tensors: Iterable[StoredTensor]) -> torch.dtype:
    """What most bytes are stored as: a torch dtype; uint8 for GGUF blocks."""
    totals: dict[torch.dtype, int] = defaultdict(int)
    for stored in tensors:
        totals[DTYPES.get(stored.format, torch.uint8)] += stored.num_bytes
    return max(totals, key=lambda dtype: totals[dtype], default=torch.float32)


# ---- into a model ----------------------------------------------------------------------------------------------------


def load_model(
    path: Path,
    component: str,
    factory: Callable[[], Model],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    eight_bit: EightBit | None = None,
) -> Model:
    """Build a model without memory and give it a file's weights; eval mode, nothing asks for gradients.

    Args:
        path: a weight file, a shard, or the index of a sharded set.
        component: "transformer", "vae", "text_encoder" or "audio_encoder".
        factory: makes the model, on torch's default device.
        dtype: of the weights in memory; None: as they are stored. Models of one dtype then take float32 where most of
            the file is, else bfloat16 (umT5 overflows in float16). fp8 and GGUF matrices of Linear layers stay packed
            whatever it says.
        device: where to put them; on the CPU, weights that need no cast stay memory-mapped.
        eight_bit: how the transformer's blocks and audio layers multiply; None: in the input's dtype. Weights that the
            file has in another format are rounded as each is read.

    Raises: CheckpointError for a file that is not this model's, in one sentence.
    """
    tensors = read_component(path, component)
    mixed = component in _MIXED_PRECISION
    if dtype is None and not mixed:
        dtype = torch.float32 if main_dtype(tensors.values()) == torch.float32 else torch.bfloat16
    with torch.device("meta"):
        model = factory()
    load_into(model, tensors, path=path, dtype=dtype, device=device, keep_float32=mixed, eight_bit=eight_bit)
    return model.eval().requires_grad_(False)


def load_into(
    model: nn.Module,
    tensors: Mapping[str, StoredTensor],
    *,
    path: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    keep_float32: bool = True,
    eight_bit: EightBit | None = None,
) -> None:
    """Give every weight of a model its tensor, one after the other; the model's own numbers are dropped.

    Args:
        model: usually on the meta device.
        tensors: by the model's names.
        path: for what errors say.
        dtype: of the weights; None: as stored.
        keep_float32: let norms, biases, modulation and the like keep more precision than `dtype` where the file has it.
        eight_bit: as for `load_model`.

    Raises: CheckpointError that counts what is missing, left over or of another shape, and names the first few.
    """
    slots = model.state_dict(keep_vars=True)
    _check_fit(slots, tensors, path, type(model).__name__)
    parents = _parents(model)
    placed: dict[int, Tensor | None] = {}   # by the tensor replaced: names that shared it share the new one
    for name, old in slots.items():
        if name not in tensors:
            continue
        stored = tensors[name]
        module, leaf = _owner(model, name)
        packed = _eight_bit_layer(module, name, stored, device, eight_bit)
        packed = packed or _packed_layer(module, leaf, stored, dtype, device)
        if packed is not None:
            for parent, child in parents[id(module)]:
                setattr(parent, child, packed.train(module.training))
            placed[id(old)] = None   # other names of this weight lead to the same layer
            continue
        tensor = stored.dense(_dtype_for(module, leaf, stored, dtype, keep_float32)).to(device)
        if old.is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{path} stores {name} as {stored.format}, whole numbers where fractions are needed")
        placed[id(old)] = _put(module, leaf, tensor)
    for name, old in slots.items():
        if name not in tensors and placed[id(old)] is not None:
            setattr(*_owner(model, name), placed[id(old)])
    left = [name for name, tensor in _all_tensors(model) if tensor.is_meta]
    assert not left, f"weights without numbers: {left[:5]}"


def _all_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _put(module: nn.Module, leaf: str, tensor: Tensor) -> Tensor:
    old = getattr(module, leaf)
    new = nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    setattr(module, leaf, new)
    return new


def _dtype_for(
    module: nn.Module, leaf: str, stored: StoredTensor, dtype: torch.dtype | None, keep_float32: bool
) -> torch.dtype | None:
    """Matrices take the dtype asked for; what is small keeps the precision that it has."""
    is_matrix = leaf == "weight" and isinstance(module, _MATRIX_LAYERS)
    own = DTYPES.get(stored.format)
    if dtype is None or is_matrix or not keep_float32 or stored.is_packed or own is None:
        return dtype
    return torch.promote_types(own, dtype)


def _parents(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where each module hangs, by its id: some hang in two places."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for name, child in parent.named_children():
            places[id(child)].append((parent, name))
    return places


def _eight_bit_layer(
    module: nn.Module, name: str, stored: StoredTensor, device: torch.device | str, eight_bit: EightBit | None
) -> nn.Module | None:
    """A layer that multiplies this weight in 8 bits, where it should."""
    if eight_bit is None or not isinstance(module, nn.Linear) or not takes_eight_bits(name, stored):
        return None
    if stored.format == eight_bit.kind.packed_format:
        packed, scale = stored.read(), stored.read_scale()
    else:
        packed, scale = eight_bit.pack(stored.dense(torch.float32 if stored.is_packed else None))
    scale = None if scale is None else scale.to(device)
    return EightBitLinear(packed.to(device), scale=scale, bias=module.bias, arithmetic=eight_bit)


def takes_eight_bits(name: str, stored: StoredTensor) -> bool:
    """Whether this weight of the transformer is one that may be multiplied in 8 bits."""
    is_fractions = stored.is_packed or DTYPES[stored.format].is_floating_point
    return is_fractions and len(stored.shape) == 2 and name.startswith(_EIGHT_BIT_PARTS) and name.endswith(".weight")


def _packed_layer(
    module: nn.Module, leaf: str, stored: StoredTensor, dtype: torch.dtype | None, device: torch.device | str
) -> nn.Module | None:
    """A layer that keeps this weight packed, where there is one; a Linear's bias stays its own."""
    if not stored.is_packed or leaf != "weight" or not isinstance(module, nn.Linear | nn.Embedding):
        return None
    scale = stored.read_scale()
    scale = None if scale is None else scale.to(device)
    if isinstance(module, nn.Linear):
        return QuantizedLinear(stored.read().to(device), stored.format, scale=scale, bias=module.bias)
    if stored.shape[0] < _LARGE_TABLE:
        return None
    return QuantizedEmbedding(stored.read().to(device), stored.format, scale=scale, dtype=dtype or torch.bfloat16)


# ---- does it fit? ----------------------------------------------------------------------------------------------------


def _check_fit(slots: Mapping[str, Tensor], tensors: Mapping[str, StoredTensor], path: Path, model: str) -> None:
    given = {id(slots[name]) for name in slots if name in tensors}
    missing = [name for name, old in slots.items() if name not in tensors and id(old) not in given]
    unexpected = [name for name in tensors if name not in slots]
    misshapen = [
        f"{name} is {list(tensors[name].shape)} where {list(old.shape)} belongs"
        for name, old in slots.items()
        if name in tensors and tuple(old.shape) != tensors[name].shape
    ]
    if missing or unexpected or misshapen:
        faults = [
            _count_and_name(len(slots), "weights are missing", missing),
            _count_and_name(len(tensors), "weights are unknown", unexpected),
            _count_and_name(len(slots), "weights have another shape", misshapen),
        ]
        raise CheckpointError(f"{path} does not fit {model}: {'; '.join(f for f in faults if f)}")


def _count_and_name(total: int, fault: str, names: list[str]) -> str:
    if not names:
        return ""
    return f"{len(names)} of {total} {fault} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

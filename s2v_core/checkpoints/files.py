"""Any weight file as names and tensors that are not read yet: safetensors, sharded sets, GGUF, torch pickles.

Knows file formats, by their content and not their ending; not what the names mean.
"""

from __future__ import annotations

import json
import math
import mmap
import pickle
import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..ops.quantized import PACKED_FORMATS, unpack

# Number formats as safetensors spells them. GGUF's block formats (Q8_0, Q4_K, ...) keep gguf's names.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_FORMATS = {dtype: name for name, dtype in DTYPES.items()}

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".gguf", ".pth", ".pt", ".bin", ".ckpt")
INDEX_SUFFIX = ".index.json"
SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
_AGAIN = "it looks like an unfinished download: get it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of a file. Its pages come from disk when its numbers are touched, not before."""

    shape: tuple[int, ...]       # as a model sees it
    format: str                  # of its numbers: a key of DTYPES, or a block format
    num_bytes: int
    read: Callable[[], Tensor]   # memory-mapped; packed formats: uint8 [rows, bytes], else the tensor
    scale: StoredTensor | None = None   # of an fp8 weight: one number, or one a row

    @property
    def is_packed(self) -> bool:
        return self.format in PACKED_FORMATS

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)

    def read_scale(self) -> Tensor | None:
        """float32: one number or [rows, 1]."""
        if self.scale is None:
            return None
        scale = self.scale.read().float()
        return scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)

    def dense(self, dtype: torch.dtype | None) -> Tensor:
        """The numbers in `shape`; dtype None keeps the file's (bfloat16 for packed weights)."""
        if self.is_packed:
            values = unpack(self.read(), self.format, scale=self.read_scale(), dtype=dtype or torch.bfloat16)
            return values.view(self.shape)
        tensor = self.read()
        if self.scale is not None:
            tensor = (tensor.float().flatten(1) * self.read_scale()).view(self.shape).to(tensor.dtype)
        return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """An opened file or sharded set."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str] = field(default_factory=dict)

    def summary(self) -> bytes:
        """Names, shapes, formats and first numbers, which tell it from others: to hash all of 14B takes minutes."""
        found = []
        for name, stored in sorted(self.tensors.items()):
            first = stored.read().flatten()[:256].contiguous().view(torch.uint8)
            found += [f"{name} {stored.shape} {stored.format}".encode(), first.numpy().tobytes()]
        return b"".join(found)


def open_weights(path: Path | str) -> WeightFile:
    """Read the names, shapes and formats of a weight file, or of the whole set that a shard or index belongs to.

    Raises: CheckpointError, in one sentence, for a file that is missing, cut short, of no known format,
        a download's error page, or a pickle that wants to run code.
    """
    path = Path(path)
    try:
        if path.name.endswith(INDEX_SUFFIX):
            return _open_index(path)
        shards = shard_set(path)
        return _open_shards(path, {shard: None for shard in shards}) if shards else _open_one(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder: give the weight file in it{_such_as(path)}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _such_as(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith((INDEX_SUFFIX, *WEIGHT_SUFFIXES)))
    found = next((name for name in names if name.endswith(INDEX_SUFFIX)), next(iter(names), ""))
    return f", such as {found}" if found else ""


# ---- sharded sets --------------------------------------------------------------------------------------------------


def shard_set(path: Path) -> list[Path]:
    """All files of the set that `path` is a shard of, by its name; empty for a lone file."""
    match = SHARD_NAME.match(path.name)
    if match is None:
        return []
    count = int(match["count"])
    return [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}{match['suffix']}") for i in range(1, count + 1)]


def _open_index(path: Path) -> WeightFile:
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = {name: path.parent / Path(shard).name for name, shard in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is not an index of sharded weights: it has no readable weight_map") from None
    return _open_shards(path, {shard: {n for n in names if names[n] == shard} for shard in sorted(set(names.values()))})


def _open_shards(path: Path, shards: dict[Path, set[str] | None]) -> WeightFile:
    """Join shards; each with the names that it must hold, where an index says so."""
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise CheckpointError(
            f"{missing[0]} is missing from {path.parent}: {len(missing)} of the {len(shards)} shards are not there; "
            f"download the rest into that folder"
        )
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for shard, promised in shards.items():
        opened = _open_one(shard)
        absent = sorted((promised or set()) - opened.tensors.keys())
        if absent:
            raise CheckpointError(f"{shard} lacks {len(absent)} tensors that {path.name} promises, {absent[0]} first")
        tensors.update(opened.tensors)
        metadata.update(opened.metadata)
    return WeightFile(path=path, tensors=tensors, metadata=metadata)


# ---- one file ------------------------------------------------------------------------------------------------------


def _open_one(path: Path) -> WeightFile:
    with path.open("rb") as file:
        head = file.read(512)
    _refuse_what_is_not_weights(path, head)
    if head.startswith(b"GGUF"):
        return _open_gguf(path)
    if head.startswith(b"PK\x03\x04") or head[:1] == b"\x80":
        return _open_pickle(path)
    return _open_safetensors(path)


def _refuse_what_is_not_weights(path: Path, head: bytes) -> None:
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): download it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder, or download the file"
        )
    text = head.lstrip()[:15].lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not weights: the link led elsewhere; get the file itself")
    if all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        raise CheckpointError(f"{path} is text, not weights: it begins with {head[:40].decode()!r}")


class _MappedFile:
    """A file's bytes in memory, page by page as they are touched; a write stays private and never reaches the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def bytes(self) -> Tensor:
        with self.path.open("rb") as file:
            return torch.frombuffer(_map_privately(file.fileno()), dtype=torch.uint8)

    def read(self, start: int, stop: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if start == stop:
            return torch.empty(shape, dtype=dtype)
        raw = self.bytes[start:stop]
        if start % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(shape)


def _map_privately(descriptor: int) -> mmap.mmap:
    """Copy on write. On Linux without reserving swap for it: a file may be larger than the memory."""
    if sys.platform != "linux":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | no_reserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def _stored(file: _MappedFile, number_format: str, shape: tuple[int, ...], start: int, num_bytes: int) -> StoredTensor:
    if number_format in PACKED_FORMATS:
        dtype, layout = torch.uint8, _packed_layout(number_format, shape, num_bytes)
    else:
        dtype, layout = DTYPES.get(number_format), shape
    if dtype is None:
        read = partial(_refuse_format, file.path, number_format)
    else:
        read = partial(file.read, start, start + num_bytes, dtype, layout)
    return StoredTensor(shape=shape, format=number_format, num_bytes=num_bytes, read=read)


def _packed_layout(number_format: str, shape: tuple[int, ...], num_bytes: int) -> tuple[int, int]:
    """[rows, bytes]: the tensor's own rows where blocks do not cross them."""
    rows = shape[0] if len(shape) > 1 else 1
    whole = rows and (math.prod(shape) // rows) % PACKED_FORMATS[number_format].num_values == 0
    return (rows, num_bytes // rows) if whole else (1, num_bytes)


def _refuse_format(path: Path, number_format: str) -> Tensor:
    known = ", ".join([*DTYPES, *(name for name in PACKED_FORMATS if name not in DTYPES)])
    raise CheckpointError(f"{path} stores weights as {number_format}; get a file in one of the formats {known}")


# ---- safetensors ---------------------------------------------------------------------------------------------------


def _open_safetensors(path: Path) -> WeightFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        first = file.read(1)
        if first != b"{" or length > 2**30:
            raise CheckpointError(f"{path} is not a weight file: neither safetensors, GGUF nor a torch pickle")
        if 8 + length > size:
            raise CheckpointError(f"{path} is cut short: its header alone is {length} bytes, the file {size}; {_AGAIN}")
        header = _parse_header(path, first + file.read(length - 1))
    metadata = header.pop("__metadata__", None) or {}
    start = 8 + length
    needed = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if needed > size:
        raise CheckpointError(f"{path} is cut short: {size} of {needed} bytes; {_AGAIN}")
    mapped = _MappedFile(path)
    tensors = {name: _safetensor(mapped, name, entry, start) for name, entry in header.items()}
    return WeightFile(path=path, tensors=tensors, metadata={str(k): str(v) for k, v in metadata.items()})


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                sound = isinstance(entry["dtype"], str) and 0 <= begin <= end and all(n >= 0 for n in entry["shape"])
                if not sound:
                    raise ValueError(name)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} is damaged: its safetensors header cannot be read; download it again") from None
    return header


def _safetensor(file: _MappedFile, name: str, entry: dict[str, Any], data_start: int) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape, number_format = tuple(entry["shape"]), entry["dtype"]
    dtype = DTYPES.get(number_format)
    if dtype is not None and math.prod(shape) * dtype.itemsize != end - begin:
        raise CheckpointError(f"{file.path} is damaged: {name} {list(shape)} does not fill its {end - begin} bytes")
    return _stored(file, number_format, shape, data_start + begin, end - begin)


# ---- GGUF ----------------------------------------------------------------------------------------------------------

_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."   # GGUF has at most 4 axes; repackagers note a conv's 5 here


def _open_gguf(path: Path) -> WeightFile:
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"{path} is GGUF: reading it needs the gguf package (pip install gguf)") from None
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is a GGUF file that is cut short or damaged; {_AGAIN}") from error
    shapes = {
        name.removeprefix(_ORIGINAL_SHAPE): tuple(entry.contents())
        for name, entry in reader.fields.items()
        if name.startswith(_ORIGINAL_SHAPE)
    }
    mapped = _MappedFile(path)
    tensors = {}
    for entry in reader.tensors:
        shape = shapes.get(entry.name) or tuple(int(n) for n in reversed(entry.shape))
        tensors[entry.name] = _stored(mapped, entry.tensor_type.name, shape, int(entry.data_offset), int(entry.n_bytes))
    architecture = reader.get_field("general.architecture")
    metadata = {} if architecture is None else {"general.architecture": str(architecture.contents())}
    return WeightFile(path=path, tensors=tensors, metadata=metadata)


# ---- torch pickles -------------------------------------------------------------------------------------------------


def _open_pickle(path: Path) -> WeightFile:
    zipped = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        if file.read(2) == b"PK" and not zipped:
            raise CheckpointError(f"{path} is cut short: the end of the archive is missing; {_AGAIN}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")   # torch's advice about pickles written by old versions
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it is a pickle that wants to run code on opening; get the weights as safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is a torch file that is cut short or damaged; {_AGAIN}") from error
    tensors = {name: _from_torch(value) for name, value in _state_dict(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} is a torch file without weights: no tensors under names were found in it")
    return WeightFile(path=path, tensors=tensors)


def _state_dict(content: object) -> dict[str, Any]:
    """The dictionary of tensors, which may lie one level down."""
    if not isinstance(content, dict):
        return {}
    inner = next((content[key] for key in _STATE_DICT_KEYS if isinstance(content.get(key), dict)), None)
    return content if inner is None else inner


def _from_torch(tensor: Tensor) -> StoredTensor:
    number_format = _FORMATS.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    shape, num_bytes = tuple(tensor.shape), tensor.numel() * tensor.element_size()

    def read() -> Tensor:
        if number_format not in PACKED_FORMATS:
            return tensor
        return tensor.contiguous().view(torch.uint8).view(_packed_layout(number_format, shape, num_bytes))

    return StoredTensor(shape=shape, format=number_format, num_bytes=num_bytes, read=read)

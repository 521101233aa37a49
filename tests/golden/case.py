"""One recorded case: its tensors, weights, settings, and which of its results must be reproduced.

Knows the manifest's form, nothing about any kind of case.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(os.environ.get("S2V_GOLDENS") or Path(__file__).parent / "data")


def read_manifest(root: Path = ROOT) -> dict:
    return json.loads((root / "manifest.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Case:
    root: Path
    entry: dict      # the manifest's record of this case
    required: tuple[str, ...]   # prefixes of the tensors that must be reproduced

    @property
    def name(self) -> str:
        return self.entry["case"]

    @property
    def kind(self) -> str:
        return self.entry["kind"]

    @property
    def config(self) -> dict | None:
        return self.entry.get("config")

    @property
    def args(self) -> dict | None:
        return self.entry.get("args")

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the case, as stored."""
        return load_file(self.root / self.entry["file"])

    @cached_property
    def weights(self) -> list[dict[str, Tensor]]:
        """The weight files, in the manifest's order, floating tensors upcast to float32."""
        names = self.entry["weights"]
        names = [names] if isinstance(names, str) else names or []
        return [{k: upcast(v) for k, v in load_file(self.root / name).items()} for name in names]

    def required_names(self) -> list[str]:
        return [name for name in self.entry["tensors"] if name.startswith(self.required)] if self.required else []


def upcast(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def read_cases(root: Path = ROOT) -> list[Case]:
    manifest = read_manifest(root)
    kinds = manifest["kinds"]
    return [
        Case(root=root, entry=entry, required=tuple(kinds[entry["kind"]]["required"]) if entry["kind"] in kinds else ())
        for entry in manifest["cases"]
    ]

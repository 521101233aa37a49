"""The package's source as syntax trees, and what each module imports.

Knows Python's syntax; the rules are in the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "s2v_core"


@dataclass(frozen=True)
class Module:
    """One source file. `name` is dotted and starts below the package: "models.dit", "cli", "" for its __init__."""

    name: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        """The first part of the name: a file or a folder of the package."""
        return self.name.partition(".")[0]

    @property
    def parent(self) -> tuple[str, ...]:
        parts = tuple(part for part in self.name.split(".") if part)
        return parts if self.is_package else parts[:-1]

    def walk(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


def modules() -> list[Module]:
    """Every module of the package."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return found


def own_imports(module: Module) -> list[str]:
    """Modules of the package that it imports relatively; one that leaves the package is "..name"."""
    found = []
    for node in module.walk(ast.ImportFrom):
        if not node.level:
            continue
        up = node.level - 1
        if up > len(module.parent):
            found.append(f"..{node.module or node.names[0].name}")
            continue
        base = module.parent[: len(module.parent) - up]
        names = [node.module] if node.module else [alias.name for alias in node.names]
        for name in names:
            full = (*base, *name.split("."))
            if node.module and len(full) == 1 and (ROOT / PACKAGE / full[0]).is_dir():   # from ..ops import rope
                found += [f"{full[0]}.{alias.name}" for alias in node.names]
            else:
                found.append(".".join(full))
    return found


def foreign_imports(module: Module) -> list[str]:
    """Absolute imports, as written."""
    found = [alias.name for node in module.walk(ast.Import) for alias in node.names]
    found += [node.module or "" for node in module.walk(ast.ImportFrom) if not node.level]
    return found

"""Which function recomputes which kind of recorded case."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from torch import Tensor

from ..case import Case

KINDS: dict[str, Callable[[Case], dict[str, Tensor]]] = {}

for _module in pkgutil.iter_modules(__path__):
    KINDS.update(importlib.import_module(f"{__name__}.{_module.name}").KINDS)

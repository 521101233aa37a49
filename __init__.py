"""The pack's door: ComfyUI finds the nodes here; anybody else finds nothing, and uses `s2v_core`.

Knows whether there is a host, and nothing else.
"""

from __future__ import annotations

import importlib.util

WEB_DIRECTORY = "./web"

if importlib.util.find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]

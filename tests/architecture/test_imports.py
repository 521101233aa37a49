"""Who may import whom: the package's rooms and the doors between them."""

from __future__ import annotations

import pytest

from .source import PACKAGE, ROOT, Module, foreign_imports, modules, own_imports

EVERYONES = {"errors", "geometry", "config", "times"}

# A room, and the doors it may go through besides its own and everyone's. "room.module" opens that module only.
DOORS: dict[str, set[str]] = {
    "errors": set(),
    "geometry": set(),
    "config": set(),
    "times": set(),
    "types": set(),
    "speakers": set(),
    "request": {"types", "speakers", "sampling.presets"},
    "placement": set(),
    "pace": {"models", "ops", "placement"},
    "planning": {"models", "placement"},
    "ops": set(),
    "models": {"ops"},
    "checkpoints": {"models", "ops"},
    "media": {"types"},
    "conditioning": {"types", "media", "models"},
    "sampling": {"types"},
    "denoiser": {"models", "sampling", "types"},
    "video": {"types", "sampling", "media", "placement"},
    "parallel": {"models", "ops"},
    "components": {
        "types", "ops", "placement", "models", "checkpoints", "conditioning", "sampling", "denoiser", "video", "media",
        "pace", "parallel", "planning",
    },
    "who_speaks": {"speakers", "conditioning", "media", "video.take"},
    "cast": {"types", "request", "speakers", "who_speaks", "conditioning", "media", "dub.faces"},
    "running": {
        "types", "request", "cast", "pace", "placement", "planning", "conditioning", "sampling.presets", "video",
        "media", "components",
    },
    "pipeline": {"types", "request", "models", "conditioning", "video", "media", "components", "running"},
    "training": {
        "types", "ops", "models", "parallel", "checkpoints", "conditioning", "sampling.sigmas", "placement", "media",
        "denoiser", "video.generate", "video.timeline",
    },
    "dub": {
        "types", "request", "options", "models.vae", "conditioning", "video", "media", "components", "running",
    },
    "options": {"speakers", "sampling.presets"},
    "jobs": {"options", "request"},
    "progress": set(),
    "cli": {
        "options", "jobs", "progress", "pipeline", "dub", "training", "request", "placement", "checkpoints.inspect",
    },
    "__main__": {"cli"},
    "train": {"training", "parallel.ranks"},
    "": {"pipeline", "request", "types", "training"},
}  # fmt: skip

HOSTS = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "nodes", "folder_paths")


def may(room: str, target: str) -> bool:
    doors = DOORS.get(room, set()) | EVERYONES | {room}
    if room in EVERYONES:   # they import nothing of ours but what everybody raises
        doors = {"errors"} - {room}
    return any(target == door or target.startswith(door + ".") for door in doors if door)


def closed_doors(module: Module) -> list[str]:
    """Imports that the rules do not allow."""
    return [f"{module.name} imports {target}" for target in own_imports(module) if not may(module.room, target)]


def strangers(module: Module) -> list[str]:
    """Absolute imports of the package itself, of a host, or of its nodes."""
    tops = {name: name.partition(".")[0] for name in foreign_imports(module)}
    return [f"{module.name} imports {name}" for name, top in tops.items() if top in (PACKAGE, *HOSTS)]


def test_every_import_goes_through_an_open_door():
    assert [fault for module in modules() for fault in closed_doors(module)] == []


def test_every_room_has_a_rule():
    assert {module.room for module in modules()} - set(DOORS) == set()


def test_imports_inside_the_package_are_relative_and_no_host_is_known():
    assert [fault for module in modules() for fault in strangers(module)] == []


def test_models_know_nothing_of_sampling_video_media_or_parallel():
    models = [module for module in modules() if module.room == "models"]
    rooms = {target.partition(".")[0] for module in models for target in own_imports(module)}
    assert rooms & {"sampling", "video", "media", "parallel", "pipeline", "conditioning", "checkpoints"} == set()
    assert "ops" in rooms, "nothing was looked at"


@pytest.mark.parametrize(
    "name, text",
    [
        ("models.dit", "from ..sampling.sigmas import make_schedule"),
        ("models.dit", "from .. import video"),
        ("models.dit", "from ..parallel import mesh"),
        ("models.dit", "def f():\n    from ..media.video_io import join_segments"),
        ("ops.rope", "from ..models import dit"),
        ("sampling.denoise", "from ..models.dit import WanS2VTransformer"),
        ("geometry", "from .config import DEFAULT_AREA"),
        ("errors", "from .types import Conditioning"),
        ("errors", "from .geometry import VideoSize"),
        ("video.generate", "from ..pipeline import WanS2VPipeline"),
        ("training.trainer", "from ..sampling.solvers import UniPC"),
        ("cli", "from .checkpoints.files import open_weights"),
        ("pipeline", "from .cli import main"),
        ("models.dit", "from ...nodes import host"),
        ("cli", "from ..nodes import host"),
    ],
)
def test_a_closed_door_is_noticed(name, text):
    assert closed_doors(Module(name, text))


@pytest.mark.parametrize(
    "name, text",
    [
        ("models.dit", "from ..ops.rope import rope_table\nfrom ..ops import layers\nfrom . import motion"),
        ("models.dit", "from .motion import FramePacker\nfrom ..config import TransformerConfig"),
        ("cli", "from .checkpoints.inspect import inspect_file"),
        ("training.trainer", "from ..sampling.sigmas import make_schedule"),
        ("training.trainer", "from ..sampling import sigmas"),
    ],
)
def test_an_open_door_is_open(name, text):
    assert closed_doors(Module(name, text)) == []


@pytest.mark.parametrize(
    "text", ["import s2v_core.models", "from s2v_core import config", "import comfy.utils", "from nodes import host",
             "def f():\n    import folder_paths"],
)  # fmt: skip
def test_a_stranger_is_noticed(text):
    assert strangers(Module("models.dit", text))


def test_a_room_without_a_rule_may_open_nothing():
    assert closed_doors(Module("attic.box", "from ..models import dit"))


def test_the_package_is_where_it_is_looked_for():
    names = {module.name for module in modules()}
    assert (ROOT / PACKAGE / "errors.py").is_file() and {"errors", "models.dit", "cli"} <= names

"""What no module may contain: prints, hidden code, devices outside placement, foreign spellings, untyped arguments."""

from __future__ import annotations

import ast
import re

import pytest

from .source import Module, modules

FOREIGN_SPELLINGS = re.compile("casual_audio_encoder|enbale_adain|flattern")
NETWORK = {"socket", "requests", "urllib", "http", "httpx", "aiohttp", "ftplib", "huggingface_hub"}
RUNS_TEXT = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "builtins.eval", "builtins.exec",
    "importlib.import_module",
}  # fmt: skip
CODE_IN_DATA = {"marshal", "shelve", "dill", "cloudpickle", "joblib"}


def dotted(node: ast.AST) -> str:
    """a.b.c of a chain of attributes; "" where it starts with something else."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    """The literal value of a keyword argument, or None."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def calls(module: Module) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in module.walk(ast.Call)]


def imported(module: Module) -> set[str]:
    """Top names of absolute imports."""
    names = [alias.name for node in module.walk(ast.Import) for alias in node.names]
    names += [node.module or "" for node in module.walk(ast.ImportFrom) if not node.level]
    return {name.partition(".")[0] for name in names}


def prints(module: Module) -> list[str]:
    """`print` anywhere but in the command's one output function."""
    allowed: set[ast.AST] = set()
    if module.name == "cli":
        for function in module.walk(ast.FunctionDef):
            if function.name == "say":
                allowed.update(ast.walk(function))
    names = [node for node in module.walk(ast.Name) if node.id == "print"]
    names += [node for node in module.walk(ast.Attribute) if dotted(node) in ("sys.stdout.write", "sys.stderr.write")]
    return [f"{module.name}:{node.lineno} prints" for node in names if node not in allowed]


def hidden_code(module: Module) -> list[str]:
    """Data or text that could run as code."""
    faults = [f"{module.name} imports {name}" for name in imported(module) & CODE_IN_DATA]
    for name, call in calls(module):
        where = f"{module.name}:{call.lineno}"
        if name in RUNS_TEXT:
            faults.append(f"{where} calls {name}")
        if keyword(call, "shell") not in (None, False):
            faults.append(f"{where} runs a shell")
        if name == "torch.load" and keyword(call, "weights_only") is not True:
            faults.append(f"{where} loads a pickle without weights_only=True")
        unsafe = keyword(call, "allow_pickle") or keyword(call, "trust_remote_code")
        if unsafe or keyword(call, "weights_only") is False:
            faults.append(f"{where} lets a file run code")
    for node in module.walk(ast.Attribute):
        if dotted(node).startswith("pickle.") and node.attr != "UnpicklingError":
            faults.append(f"{module.name}:{node.lineno} uses {dotted(node)}")
    for node in module.walk(ast.ImportFrom):
        if node.module in ("pickle", "_pickle") and any(alias.name != "UnpicklingError" for alias in node.names):
            faults.append(f"{module.name}:{node.lineno} imports from pickle")
    return faults


def network(module: Module) -> list[str]:
    """Imports of what talks to other machines, and loads by name that may download."""
    faults = [f"{module.name} imports {name}" for name in imported(module) & NETWORK]
    for name, call in calls(module):
        is_ours = name.startswith("WanS2VPipeline.")
        if name.endswith(".from_pretrained") and not is_ours and keyword(call, "local_files_only") is not True:
            faults.append(f"{module.name}:{call.lineno} calls {name} without local_files_only=True")
    return faults


def devices(module: Module) -> list[str]:
    """torch.cuda and torch.mps outside placement."""
    if module.name == "placement":
        return []
    uses = [node for node in module.walk(ast.Attribute) if dotted(node) in ("torch.cuda", "torch.mps")]
    uses += [call for _, call in calls(module) if isinstance(call.func, ast.Attribute) and call.func.attr == "cuda"]
    uses += [node for node in module.walk(ast.ImportFrom) if (node.module or "").startswith("torch.cuda")]
    return [f"{module.name}:{node.lineno} chooses a device" for node in uses]


def foreign_spellings(module: Module) -> list[str]:
    """The checkpoints' spellings outside the key maps; in models only as the attribute that is the key."""
    if module.name == "checkpoints.keymaps":
        return []
    found = FOREIGN_SPELLINGS.findall(module.text)
    if module.room == "models":
        attributes = [node for node in module.walk(ast.Attribute) if isinstance(node.value, ast.Name)]
        as_keys = [node for node in attributes if node.value.id == "self" and FOREIGN_SPELLINGS.search(node.attr)]
        found = found[len(as_keys):]
    return [f"{module.name} spells {name}" for name in found]


def untyped(module: Module) -> list[str]:
    """Arguments and results without a type."""
    faults = []
    for function in module.walk(ast.FunctionDef, ast.AsyncFunctionDef):
        a = function.args
        arguments = (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg)
        missing = [x.arg for x in arguments if x and x.annotation is None and x.arg not in ("self", "cls")]
        if function.returns is None:
            missing.append("return")
        faults += [f"{module.name}.{function.name}: {name} has no type" for name in missing]
    return faults


def unannounced(module: Module) -> list[str]:
    """Modules that do not open with what they do and what they do not know."""
    if module.is_package:
        return []
    text = ast.get_docstring(module.tree) or ""
    says = "\n" in text and re.search(r"\bknow", text, re.IGNORECASE)
    return [] if says else [f"{module.name} does not say what it knows"]


def late_annotations(module: Module) -> list[str]:
    """Annotations that Python 3.10 would evaluate: every module with code starts with the future import."""
    has_functions = any(module.walk(ast.FunctionDef, ast.ClassDef))
    has_future = any(node.module == "__future__" for node in module.walk(ast.ImportFrom))
    return [f"{module.name} lacks `from __future__ import annotations`"] if has_functions and not has_future else []


RULES = [prints, hidden_code, network, devices, foreign_spellings, untyped, unannounced, late_annotations]


@pytest.mark.parametrize("rule", RULES)
def test_no_module_breaks_the_rule(rule):
    assert [fault for module in modules() for fault in rule(module)] == []


SPOILED = [
    (prints, "models.dit", "print('hello')"),
    (prints, "models.dit", "from functools import partial\np = partial(print, 'x')"),
    (prints, "progress", "import sys\nsys.stderr.write('x')"),
    (prints, "cli", "def say(text):\n    print(text)\ndef main():\n    print('x')"),
    (hidden_code, "jobs", "eval('1')"),
    (hidden_code, "jobs", "exec(text)"),
    (hidden_code, "jobs", "__import__('os')"),
    (hidden_code, "jobs", "import importlib\nimportlib.import_module('comfy')"),
    (hidden_code, "media.video_io", "import subprocess\nsubprocess.run('ffmpeg x', shell=True)"),
    (hidden_code, "media.video_io", "import os\nos.system('ffmpeg')"),
    (hidden_code, "checkpoints.files", "import pickle\npickle.load(f)"),
    (hidden_code, "checkpoints.files", "from pickle import Unpickler"),
    (hidden_code, "checkpoints.files", "import dill"),
    (hidden_code, "checkpoints.files", "import torch\ntorch.load(f)"),
    (hidden_code, "checkpoints.files", "import torch\ntorch.load(f, weights_only=False)"),
    (hidden_code, "checkpoints.files", "import torch\ntorch.load(f, weights_only=safe)"),
    (hidden_code, "checkpoints.files", "load(f, weights_only=False)"),
    (hidden_code, "checkpoints.files", "import numpy as np\nnp.load(f, allow_pickle=True)"),
    (network, "media.audio_io", "import requests"),
    (network, "media.audio_io", "from urllib.request import urlopen"),
    (network, "conditioning.text", "T.from_pretrained('google/umt5-xxl')"),
    (network, "conditioning.text", "T.from_pretrained('google/umt5-xxl', local_files_only=False)"),
    (devices, "models.dit", "import torch\ntorch.cuda.empty_cache()"),
    (devices, "models.dit", "x = x.cuda()"),
    (devices, "models.dit", "from torch.cuda import amp"),
    (foreign_spellings, "pipeline", "x = model.casual_audio_encoder"),
    (foreign_spellings, "models.dit", "self.casual_audio_encoder = 1   # casual_audio_encoder"),
    (foreign_spellings, "config", "enbale_adain: bool = True"),
    (untyped, "models.dit", "def f(x) -> None: ..."),
    (untyped, "models.dit", "def f(x: int): ..."),
    (untyped, "models.dit", "class A:\n    def f(self, *, y) -> None: ..."),
    (untyped, "models.dit", "def f(*args, **kwargs) -> None: ..."),
    (unannounced, "models.dit", '"""One line."""'),
    (unannounced, "models.dit", "x = 1"),
    (late_annotations, "models.dit", "def f() -> None: ..."),
]


@pytest.mark.parametrize("rule, name, text", SPOILED, ids=lambda value: getattr(value, "__name__", None))
def test_a_spoiled_module_is_noticed(rule, name, text):
    assert rule(Module(name, text))


def test_every_rule_can_fail():
    assert {rule for rule, _, _ in SPOILED} == set(RULES)


def test_what_is_allowed_is_left_alone():
    clean = '''"""Does one thing.

Knows nothing else.
"""

from __future__ import annotations

import pickle
import torch

def load(path: str, device: torch.device) -> object:
    try:
        return torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return None if device.type == "cuda" else T.from_pretrained(path, local_files_only=True)

class A:
    def f(self, *args: int) -> None:
        self.casual_audio_encoder = self.casual_audio_encoder + 1
'''
    assert [fault for rule in RULES for fault in rule(Module("models.dit", clean))] == []

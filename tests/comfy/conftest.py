"""A ComfyUI for the tests of this folder; without one they are left out, and one line says why."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from s2v_core.checkpoints.files import open_weights
from s2v_core.components import BUNDLED

from ..cli.media import silent_video
from ..core.checkpoints_tiny import save_fp8_scaled, save_gguf
from ..core.dub_footage import noise_pictures, write_video
from .server import ROOT, Server, find_host
from .tiny import save_lora, save_trained_lora, tiny_weights

FOOTAGE_RATE = 25
MOUTH = np.s_[34:54, 20:46]   # of its 64x64 pixels
LEFT_OUT = pytest.StashKey[list[str]]()


def find_chromium():
    """A browser and what drives it, or None and what is missing."""
    if importlib.util.find_spec("playwright") is None:
        return None, "the package playwright is not installed"
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    return found, "" if found else "no Chromium: set CHROMIUM to its program"


FINDERS = {"comfy": find_host, "chromium": find_chromium}


def pytest_collection_modifyitems(config, items):
    lines = config.stash.setdefault(LEFT_OUT, [])
    for need, find in FINDERS.items():
        without = [item for item in items if need in getattr(item, "fixturenames", ())]
        if without and find()[0] is None:
            items[:] = [item for item in items if item not in without]
            lines.append(f"tests/comfy: {len(without)} tests skipped: {find()[1]}")


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(LEFT_OUT, []):
        terminalreporter.line(line)


@pytest.fixture(scope="session")
def comfy():
    """ComfyUI's folder."""
    return find_host()[0]


@pytest.fixture(scope="session")
def chromium():
    """The browser's program."""
    return find_chromium()[0]


@pytest.fixture(scope="session")
def server(comfy, tmp_path_factory):
    """One server for all tests, with media, small weight files and the stand-in pack where it looks for them."""
    base = tmp_path_factory.mktemp("comfy")
    furnish(base)
    with Server(comfy, base) as running:
        yield running


def footage(folder):
    """Ten frames to dub, and a mask of their lower middle."""
    write_video(folder / "shot.mp4", noise_pictures(10), FOOTAGE_RATE)
    mask = np.zeros((64, 64), np.uint8)
    mask[MOUTH] = 255
    Image.fromarray(mask).convert("RGB").save(folder / "mouth.png")


def furnish(base):
    for name in ("input", "models/diffusion_models", "models/loras", "custom_nodes"):
        (base / name).mkdir(parents=True)
    for name in ("face.png", "drawn.png", "two.png", "speech.wav", "song.wav", "dialogue.wav"):
        shutil.copy(ROOT / "samples" / name, base / "input" / name)
    for name in ("pose.mp4", "dancer.mp4"):
        silent_video(base / "input" / name)
    footage(base / "input")
    models, loras = base / "models" / "diffusion_models", base / "models" / "loras"
    weights = tiny_weights()
    save_file(weights, models / "tiny.safetensors")
    save_fp8_scaled(models / "tiny_fp8_scaled.safetensors", weights)
    save_gguf(models / "tiny-Q8_0.gguf", weights)
    stored = open_weights(BUNDLED / "transformer.safetensors").tensors
    save_lora(loras / "bundled_lora.safetensors", {name: tensor.dense(None) for name, tensor in stored.items()})
    save_lora(loras / "tiny_lora.safetensors", weights)
    save_trained_lora(loras)
    (base / "custom_nodes" / "stand_ins").symlink_to(Path(__file__).parent / "stand_ins")

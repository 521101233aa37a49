"""The pack as a pack: how long it takes to load, what it pins, its words, and that it is nothing without a host."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import wave

import numpy as np
import pytest
from PIL import Image

from ..architecture.source import Module, foreign_imports
from ..architecture.test_code import hidden_code, network, prints, unannounced, untyped
from .prompts import API
from .server import ROOT, Server

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib  # Python 3.10: pytest brings it

PINNED = ROOT / "tests" / "comfy" / "schema.json"
LANGUAGES = ("en", "zh")
NODES = sorted((ROOT / "nodes").glob("[!_]*.py"))
OF_THE_HOST = {"torch", "transformers", "safetensors", "einops", "av", "numpy", "pillow", "sentencepiece", "pyyaml"}


def our_nodes(server):
    return {name: spec for name, spec in server.get("/object_info").items() if spec["category"] == "Wan S2V"}


def inputs_of(spec):
    return {**spec["input"].get("required", {}), **spec["input"].get("optional", {})}


def io_type(spec):
    return spec[0] if isinstance(spec[0], str) else "COMBO"


def test_sockets_and_widgets_keep_their_names_and_types(server):
    """Saved workflows depend on them. A new node or a new last input is written into the file on purpose."""
    found = {
        name: {
            "inputs": [f"{key}: {io_type(value)}" for key, value in inputs_of(spec).items()],
            "outputs": [f"{key}: {kind}" for key, kind in zip(spec["output_name"], spec["output"], strict=True)],
        }
        for name, spec in our_nodes(server).items()
    }
    assert found == json.loads(PINNED.read_text(encoding="utf-8"))


def test_rarer_inputs_are_the_hosts_advanced_ones(server):
    """They have defaults: the front end shows those that a workflow sets otherwise."""
    rarer = {
        name: {key: value[1] for key, value in inputs_of(spec).items() if len(value) > 1 and value[1].get("advanced")}
        for name, spec in our_nodes(server).items()
    }
    pose = ["pose_strength", "pose_start", "pose_end", "pose_steps", "pose_skip"]
    assert {name: sorted(found) for name, found in rarer.items() if found} == {
        "S2VLongVideo": sorted(["with_images", "audio_guidance", "apg", *pose, "first_window", "output_fps"]),
        "S2VSampleClip": sorted(["audio_guidance", "apg", *pose]),
        "S2VDubVideo": sorted(["draw_every", "side", "audio_guidance", "apg"]),
    }
    assert all("default" in options for found in rarer.values() for options in found.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_there_in_every_language(server, language):
    words = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    nodes = our_nodes(server)
    assert words.keys() == nodes.keys()
    for name, spec in nodes.items():
        assert words[name]["display_name"] and words[name]["description"]
        assert words[name]["inputs"].keys() == inputs_of(spec).keys()
        assert all(entry["name"] and entry["tooltip"] for entry in words[name]["inputs"].values())
        assert len(words[name]["outputs"]) == len(spec["output"])


def test_the_english_words_are_those_of_the_nodes(server):
    words = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    for name, spec in our_nodes(server).items():
        assert (words[name]["display_name"], words[name]["description"]) == (spec["display_name"], spec["description"])
        for key, value in inputs_of(spec).items():
            assert words[name]["inputs"][key]["tooltip"] == value[1]["tooltip"]


def test_help_pages_are_served(server):
    for name in our_nodes(server):
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith("# ") and len(text) > 300
        assert server.text(f"/extensions/wan_s2v/docs/{name}.md") == text


def test_templates_are_listed_and_each_has_its_picture_and_api_form(server):
    listed = server.get("/workflow_templates")["wan_s2v"]
    assert sorted(listed) == sorted(path.stem for path in API.glob("*.json"))
    for name in listed:
        assert (ROOT / "workflows" / f"{name}.jpg").stat().st_size < 60_000


def test_the_host_starts_less_than_two_seconds_later_and_without_a_warning(comfy, tmp_path):
    seconds = []
    for with_pack in (False, True, False, True):
        with Server(comfy, tmp_path / str(len(seconds)), with_pack=with_pack) as running:
            seconds.append(running.seconds_to_start)
            log = running.log()
    import_time = float(re.search(r"([\d.]+) seconds: .*wan_s2v", log)[1])
    assert import_time < 2 and min(seconds[1], seconds[3]) - min(seconds[0], seconds[2]) < 2
    assert "wan_s2v" not in " ".join(line for line in log.splitlines() if "arning" in line or "rror" in line)


def test_the_timelines_sample_is_the_sample():
    said = json.loads((ROOT / "web" / "sample_peaks.json").read_text(encoding="utf-8"))
    with wave.open(str(ROOT / "samples" / "speech.wav")) as file:
        count, rate = file.getnframes(), file.getframerate()
        loud = np.abs(np.frombuffer(file.readframes(count), "<i2").astype(float)) / 2**15
    assert said["duration"] == pytest.approx(count / rate, abs=1e-5)
    number = len(said["peaks"])
    bounds = [i * count // number for i in range(number + 1)]
    assert said["peaks"] == pytest.approx([loud[a:b].max() for a, b in zip(bounds, bounds[1:], strict=False)], abs=1e-3)


def test_what_the_registry_shows_is_complete_and_its_pictures_are_there():
    comfy = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["comfy"]
    assert all(comfy[key] for key in ("PublisherId", "DisplayName", "requires-comfyui"))
    with Image.open(ROOT / comfy["Icon"]) as icon, Image.open(ROOT / comfy["Banner"]) as banner:
        assert icon.size == (400, 400) and banner.width * 9 == banner.height * 21


def test_the_managers_requirements_are_those_of_the_package_that_the_host_does_not_bring():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    names = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert set(wanted) <= set(project["dependencies"])
    assert names - {re.split(r"[<>=]", line)[0] for line in wanted} == OF_THE_HOST


@pytest.mark.parametrize("rule", [prints, hidden_code, network, untyped, unannounced])
def test_the_nodes_keep_the_packages_rules(rule):
    modules = [Module(f"nodes.{path.stem}", path.read_text(encoding="utf-8")) for path in NODES]
    assert [fault for module in modules for fault in rule(module)] == [] and len(modules) > 10


def test_only_one_file_imports_the_host():
    hosts = ("comfy", "folder_paths", "node_helpers", "latent_preview", "execution", "server")
    for path in NODES:
        names = [name.partition(".")[0] for name in foreign_imports(Module(path.stem, path.read_text("utf-8")))]
        assert path.stem == "host" or not [name for name in names if name.startswith(hosts)], path


def test_the_readme_names_workflows_that_are_there():
    named = set(re.findall(r"\*(s2v_\w+)\*", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(named) >= 10 and named <= {path.stem for path in API.glob("*.json")}


def test_the_script_never_takes_text_for_html():
    script = (ROOT / "web" / "js" / "timeline.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)


def test_without_a_host_the_door_opens_to_nothing():
    assert importlib.util.find_spec("comfy_api") is None, "this test runs outside the host"
    spec = importlib.util.spec_from_file_location("pack_without_host", ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    spec.loader.exec_module(module)
    assert not hasattr(module, "comfy_entrypoint") and not hasattr(module, "NODE_CLASS_MAPPINGS")
    assert set(sys.modules) - before == set()

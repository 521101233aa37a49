"""The pack as a pack: how long it takes to load, what it pins, its words, and that it is nothing without a host."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import wave

import numpy as np
import pytest

from .prompts import API
from .server import ROOT, Server

PINNED = ROOT / "tests" / "comfy" / "schema.json"
LANGUAGES = ("en", "zh")


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

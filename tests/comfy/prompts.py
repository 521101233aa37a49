"""Workflows in the form that the host's HTTP interface takes, and how tests make them small.

Knows node ids and inputs; runs nothing.
"""

from __future__ import annotations

import copy
import json

from .server import ROOT

API = ROOT / "workflows" / "api"

# Loaders of the big models' files, and which output of S2V Load Bundled Model stands in for each.
STAND_INS = {"S2VLoadModel": 0, "UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2, "AudioEncoderLoader": 3}
SMALL = {"WanSoundImageToVideo": {"length": 13}, "S2VSpeaker": {"start": 0.0}, "S2VDubVideo": {"side": 64}}


def workflow(name):
    return json.loads((API / f"{name}.json").read_text(encoding="utf-8"))


def with_bundled(prompt):
    """The same graph on the bundled model: its loaders are replaced by the one that needs no files."""
    prompt = copy.deepcopy(prompt)
    replaced = {node: STAND_INS[spec["class_type"]] for node, spec in prompt.items() if spec["class_type"] in STAND_INS}
    prompt = {node: spec for node, spec in prompt.items() if node not in replaced}
    prompt["bundled"] = {"class_type": "S2VLoadBundledModel", "inputs": {}}
    for spec in prompt.values():
        for name, value in spec["inputs"].items():
            if isinstance(value, list) and value[0] in replaced:
                spec["inputs"][name] = ["bundled", replaced[value[0]]]
    return prompt


def change(prompt, class_type, **values):
    """The same graph with other values in every node of a kind."""
    prompt = copy.deepcopy(prompt)
    nodes = [spec for spec in prompt.values() if spec["class_type"] == class_type]
    assert nodes, f"no {class_type}"
    for spec in nodes:
        spec["inputs"].update(values)
    return prompt


def small(prompt, seconds):
    """Small pictures, few steps, the first `seconds` of the sound, in which all speakers speak."""
    everywhere = {"width": 64, "height": 64, "steps": 2}
    for spec in prompt.values():
        values = {**everywhere, **SMALL.get(spec["class_type"], {})}
        spec["inputs"].update({name: value for name, value in values.items() if name in spec["inputs"]})
        if spec["class_type"] == "S2VAudioEncode":
            spec["inputs"]["end"] = seconds and spec["inputs"]["start"] + seconds
    return prompt


def node(prompt, class_type):
    """Id of the only node of a kind."""
    (found,) = [node for node, spec in prompt.items() if spec["class_type"] == class_type]
    return found

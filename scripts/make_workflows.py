"""Writes workflows/*.json, the form that ComfyUI's front end opens, from workflows/api/*.json and a running ComfyUI.

    python scripts/make_workflows.py http://127.0.0.1:8188

Run it when a node has got another input. Notes, places and titles stay as they are; what is new is laid out in columns.
"""

from __future__ import annotations

import json
import sys
import urllib.request
import uuid
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "workflows"
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
LOADERS, MIDDLE, LAST = 0, 1, 3
COLUMN_OF = {"S2VLongVideo": 2, "S2VSampleClip": 2, "S2VDubVideo": 2, "SaveVideo": LAST}   # others load or are between
COLUMNS = (0, 420, 880, 1280)   # pixels
SIZES = {
    "LoadImage": (300, 330), "LoadVideo": (300, 400), "LoadImageMask": (300, 330), "LoadAudio": (300, 140),
    "CLIPTextEncode": (400, 150), "S2VLoadModel": (360, 110), "S2VLoadBundledModel": (300, 160), "S2VSay": (340, 170),
    "S2VSpeaker": (300, 250), "S2VPerson": (300, 200), "S2VWhoSpeaks": (300, 170), "S2VAudioEncode": (300, 280),
    "S2VStoryboard": (400, 230), "S2VPoseFromFootage": (300, 110), "S2VLongVideo": (340, 600), "SaveVideo": (420, 460),
    "S2VSampleClip": (340, 450), "S2VDubVideo": (340, 480), "S2VConditioning": (320, 280), "KSampler": (300, 270),
    "WanSoundImageToVideo": (300, 260),
}  # fmt: skip
TITLES = {"positive": "Prompt", "negative": "Negative prompt"}


def column(kind: str) -> int:
    is_loader = "Load" in kind or kind == "S2VSay"
    return COLUMN_OF.get(kind, LOADERS if is_loader and "Lora" not in kind else MIDDLE)


def io_type(spec: list) -> str:
    return spec[0] if isinstance(spec[0], str) else "COMBO"


def inputs_of(info: dict) -> dict[str, list]:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def widget_values(info: dict, said: dict) -> list:
    """Values in the front end's order, with what it adds by itself: seeds' control, upload buttons."""
    values, uploads = [], []
    for name, spec in inputs_of(info).items():
        options = spec[1] if len(spec) > 1 else {}
        if io_type(spec) not in WIDGETS or options.get("forceInput"):
            continue
        values.append(said.get(name, options.get("default")))
        values += ["fixed"] if name in ("seed", "noise_seed") else []
        values += [None, ""] if options.get("audio_upload") else []
        uploads += ["image"] if options.get("image_upload") or options.get("video_upload") else []
    return values + uploads


def sockets(info: dict) -> list[tuple[str, str, bool]]:
    """Name, type, and whether it may stay open, of the inputs that are no widgets."""
    optional = info["input"].get("optional", {})
    return [
        (name, io_type(spec), name in optional)
        for name, spec in inputs_of(info).items()
        if io_type(spec) not in WIDGETS or (len(spec) > 1 and spec[1].get("forceInput"))
    ]


def front_end_form(name: str, prompt: dict, infos: dict, old: dict) -> dict:
    numbers = {node: number for number, node in enumerate(prompt, 1)}
    before = {node["id"]: node for node in old["nodes"] if "pos" in node}
    (note,) = [node for node in old["nodes"] if node["type"] == "MarkdownNote"]
    nodes, links, bottoms = [], [], [0] * len(COLUMNS)
    for node, spec in prompt.items():
        kind, number = spec["class_type"], numbers[node]
        inputs = []
        for slot, (socket, type_, is_optional) in enumerate(sockets(infos[kind])):
            link = None
            if socket in spec["inputs"]:
                source, output = spec["inputs"][socket]
                link = len(links) + 1
                links.append([link, numbers[source], output, number, slot, type_])
            shape = {"shape": 7} if is_optional else {}
            inputs.append({"name": socket, "type": type_, "link": link, **shape})
        place, size = before.get(number, {}), SIZES.get(kind, (300, 110))
        if place.get("type") != kind:
            x = column(kind)
            place = {"pos": [COLUMNS[x], bottoms[x]]}
            bottoms[x] += size[1] + 60
        nodes.append({
            "id": number, "type": kind, "pos": place["pos"], "size": list(size), "flags": {}, "order": number - 1,
            "mode": 0, "inputs": inputs, "outputs": [], "properties": {"Node name for S&R": kind},
            "widgets_values": widget_values(infos[kind], spec["inputs"]),
            **({"title": TITLES[node]} if node in TITLES else {}),
        })  # fmt: skip
    for node, number in zip(nodes, numbers.values(), strict=True):
        info = infos[node["type"]]
        for slot, (output, type_) in enumerate(zip(info["output_name"], info["output"], strict=True)):
            used = [link[0] for link in links if link[1:3] == [number, slot]]
            node["outputs"].append({"name": output, "type": type_, "links": used or None})
    number = len(nodes) + 1
    nodes.append({
        "id": number, "type": "MarkdownNote", "pos": [-560, 0], "size": [500, 420], "flags": {}, "order": number,
        "mode": 0, "inputs": [], "outputs": [], "title": "Read me", "properties": {},
        "widgets_values": note["widgets_values"], "color": "#432", "bgcolor": "#653",
    })  # fmt: skip
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "revision": 0, "last_node_id": number,
        "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [], "config": {},
        "extra": {"ds": {"scale": 0.7, "offset": [620, 120]}}, "version": 0.4,
    }  # fmt: skip


def main(address: str) -> None:
    with urllib.request.urlopen(f"{address}/object_info", timeout=60) as answer:
        infos = json.load(answer)
    for api in sorted((FOLDER / "api").glob("*.json")):
        path = FOLDER / api.name
        old = json.loads(path.read_text(encoding="utf-8"))
        prompt = json.loads(api.read_text(encoding="utf-8"))
        flow = front_end_form(api.stem, prompt, infos, old)
        path.write_text(json.dumps(flow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

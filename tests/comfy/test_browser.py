"""The front end in a headless Chromium: every bundled workflow, and the timeline of S2V Long Video."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from .prompts import API, workflow
from .server import ROOT

WORKFLOWS = sorted(path.stem for path in API.glob("*.json"))
SCREENSHOTS = os.environ.get("S2V_SCREENSHOTS")   # a folder for pictures of the page; the try-it video is then whole
IGNORED = {"pose": {"video-preview"}, "footage": {"video-preview"}}   # inputs that the front end adds by itself


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as running:
            yield running


@pytest.fixture(scope="module", params=["canvas", "vue"])
def renderer(request):
    return request.param


@pytest.fixture(scope="module")
def opened(browser, server, renderer):
    """The front end, opened once for all tests that draw nodes alike."""
    page = browser.new_page(viewport={"width": 1900, "height": 1000})
    ready = "window.app?.graph && window.app.extensionManager?.setting"
    page.goto(f"http://127.0.0.1:{server.port}/", timeout=120_000)
    page.wait_for_function(ready, timeout=120_000)
    page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", renderer == "vue")
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_function(ready, timeout=120_000)
    page.wait_for_timeout(2500)
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    page.close()


@pytest.fixture
def page(opened):
    """An empty graph, and the faults from here on."""
    opened.evaluate("() => { app.canvas.setGraph(app.graph); app.graph.clear() }")   # a test may have left it elsewhere
    opened.faults.clear()
    return opened


def open_workflow(page, name):
    flow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("flow => app.loadGraphData(flow)", flow)
    page.wait_for_timeout(800)
    page.keyboard.press("Escape")
    return flow


def widget(page, kind, name):
    return page.evaluate(
        "([kind, name]) => app.graph._nodes.find(n => n.type === kind).widgets.find(w => w.name === name).value",
        [kind, name],
    )


def set_widget(page, kind, **values):
    script = """([kind, values]) => { for (const [name, value] of Object.entries(values))
        app.graph._nodes.find(n => n.type === kind).widgets.find(w => w.name === name).value = value }"""
    page.evaluate(script, [kind, values])


def choose(page, kind, entry):
    """An entry of a node's right-click menu."""
    script = """kind => { const node = app.graph._nodes.find(n => n.type === kind);
        app.canvas.deselectAll();
        return app.canvasPosToClientPos([node.pos[0] + 60, node.pos[1] - 15]) }"""   # of its title
    page.mouse.click(*page.evaluate(script, kind), button="right")
    page.get_by_text(entry, exact=True).click()
    page.wait_for_timeout(300)


def rarer(page, kind):
    """Names of a node's advanced inputs, those of them that are drawn, and the node's height."""
    script = """kind => { const node = app.graph._nodes.find(n => n.type === kind);
        const rarer = node.widgets.filter(w => w.options.advanced);
        return [rarer.map(w => w.name), rarer.filter(w => node.isWidgetVisible(w)).map(w => w.name), node.size[1]] }"""
    return page.evaluate(script, kind)


def long_video_in_view(page):
    page.evaluate("""() => { const node = app.graph._nodes.find(n => n.type === 'S2VLongVideo');
        app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [260 - node.pos[0], 150 - node.pos[1]];   // it is a tall node
        app.canvas.setDirty(true, true) }""")
    page.wait_for_timeout(1200)
    return page.locator("canvas.s2v-timeline")


def wait_for(page, timeline, **wanted):
    script = "([canvas, wanted]) => Object.entries(wanted).every(([key, value]) => canvas.dataset[key] === value)"
    page.wait_for_function(script, arg=[timeline.element_handle(), wanted], timeout=120_000)


def photograph(page, name):
    """A picture of the page, kept in the folder that S2V_SCREENSHOTS names."""
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


def photograph_finished(page, name):
    """For the README: the nodes of a graph that has run, without its note and from the middle of its video."""
    script = """() => { const nodes = app.graph._nodes.filter(n => n.type !== 'MarkdownNote').map(n => n.boundingRect);
        const [left, top] = [0, 1].map(i => Math.min(...nodes.map(box => box[i])) - 30);
        const [right, bottom] = [0, 1].map(i => Math.max(...nodes.map(box => box[i] + box[i + 2])) + 30);
        app.canvas.deselectAll();
        app.canvas.ds.scale = 0.75; app.canvas.ds.offset = [40 - left, 40 - top];
        app.canvas.setDirty(true, true);
        const video = document.querySelector('video'); video.currentTime = video.duration / 2;
        return [[left, top], [right, bottom]].map(corner => app.canvasPosToClientPos(corner)).flat() }"""
    left, top, right, bottom = page.evaluate(script)
    page.wait_for_timeout(2000)
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    page.screenshot(path=Path(SCREENSHOTS) / f"{name}.jpg", type="jpeg", quality=80, clip=clip)


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_a_workflow_opens_without_a_fault_and_says_what_its_api_form_says(page, name):
    open_workflow(page, name)
    unknown = page.evaluate("() => app.graph._nodes.filter(n => n.has_errors).map(n => n.type)")
    names = {str(i + 1): node for i, node in enumerate(workflow(name))}
    found = page.evaluate("async () => (await app.graphToPrompt()).output")
    said = {names[key]: spec for key, spec in found.items()}
    for node, spec in said.items():
        for key, value in list(spec["inputs"].items()):
            if isinstance(value, list):
                spec["inputs"][key] = [names[value[0]], value[1]]
            if key in IGNORED.get(node, ()):
                del spec["inputs"][key]
        assert spec["class_type"] == workflow(name)[node]["class_type"]
        ours = {key: value for key, value in spec["inputs"].items() if key in workflow(name)[node]["inputs"]}
        assert ours == workflow(name)[node]["inputs"]
    assert (unknown, page.faults) == ([], []) and said.keys() == workflow(name).keys()


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)   # this front end's Vue nodes show all there is
def test_rarer_inputs_are_out_of_sight_until_the_nodes_menu_shows_them(page):
    open_workflow(page, "s2v_try_it")
    names, shown, height = rarer(page, "S2VLongVideo")
    assert len(names) == 10 and shown == [] and height == 600
    photograph(page, "advanced_hidden")
    choose(page, "S2VLongVideo", "Show Advanced")
    photograph(page, "advanced_shown")
    assert rarer(page, "S2VLongVideo") == [names, names, pytest.approx(height + 24 * len(names), abs=24)]
    choose(page, "S2VLongVideo", "Hide Advanced")
    assert rarer(page, "S2VLongVideo")[1] == [] and page.faults == []


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_what_a_workflow_sets_is_seen_and_keeps_its_value_when_hidden(page):
    def set_values():
        inputs = page.evaluate("async () => (await app.graphToPrompt()).output")
        (found,) = [node["inputs"] for node in inputs.values() if node["class_type"] == "S2VLongVideo"]
        return found["pose_strength"], found["pose_steps"]

    open_workflow(page, "s2v_pose_from_footage")
    names, shown, _ = rarer(page, "S2VLongVideo")
    assert shown == names and set_values() == (0.8, 20)
    photograph(page, "advanced_set")
    choose(page, "S2VLongVideo", "Hide Advanced")
    page.evaluate("() => app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))")
    page.wait_for_timeout(800)
    assert rarer(page, "S2VLongVideo")[1] == [] and set_values() == (0.8, 20) and page.faults == []


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_an_older_workflow_opens_with_what_it_says_and_shows_an_advanced_input_that_is_linked(page):
    flow = json.loads((ROOT / "workflows" / "s2v_short_clip.json").read_text(encoding="utf-8"))
    (clip,) = [node for node in flow["nodes"] if node["type"] == "S2VSampleClip"]
    clip["widgets_values"] = [*clip["widgets_values"][:-8], 1.5, 0.0, False]   # as saved before there was pose_strength
    page.evaluate("flow => app.loadGraphData(flow)", flow)
    page.wait_for_timeout(800)
    names, shown, _ = rarer(page, "S2VSampleClip")
    assert widget(page, "S2VSampleClip", "sync_strength") == 1.5 and (len(names), shown) == (7, [])
    assert [widget(page, "S2VSampleClip", name) for name in names] == [0, False, 1, 0, 0, 0, 0]
    page.evaluate("""() => { const clip = app.graph._nodes.find(n => n.type === 'S2VSampleClip');
        const number = LiteGraph.createNode('PrimitiveFloat'); app.graph.add(number);
        number.connect(0, clip, clip.inputs.findIndex(input => input.name === 'pose_strength'));
        return app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))) }""")
    page.wait_for_timeout(800)
    assert rarer(page, "S2VSampleClip")[1] == names and page.faults == []


def test_the_timeline_shows_the_storyboard_and_where_its_prompts_begin(page):
    open_workflow(page, "s2v_storyboard")
    page.evaluate("() => { app.graph._nodes.find(n => n.type === 'LoadAudio').widgets[0].value = 'speech.wav' }")
    timeline = long_video_in_view(page)
    wait_for(page, timeline, clips="2", scenes="1 2")   # of 5.25 s; the third prompt begins at 10 s
    photograph(page, "storyboard")
    set_widget(page, "S2VStoryboard", text="she talks\nshe laughs\nnot seen")
    wait_for(page, timeline, scenes="1 2")
    set_widget(page, "S2VStoryboard", text="# <img src=x onerror=alert(1)>\n0:02.5 <b>bold</b>\nclip 9 never")
    wait_for(page, timeline, scenes="2")
    assert page.locator("img[src=x], b").count() == 0 and page.faults == []


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_the_timeline_shows_a_sound_that_was_copied_in_after_the_workflow_was_opened(page, server):
    """It is asked for again, but not with every picture that is drawn."""
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "late.wav" in request.url else None)
    open_workflow(page, "s2v_long_video")
    page.evaluate("() => { app.graph._nodes.find(n => n.type === 'LoadAudio').widgets[0].value = 'late.wav' }")
    timeline = long_video_in_view(page)
    page.wait_for_timeout(4000)
    assert timeline.get_attribute("data-clips") == "" and 1 <= len(asked) <= 2
    shutil.copy(ROOT / "samples" / "speech.wav", server.base / "input" / "late.wav")
    wait_for(page, timeline, clips="2")
    page.wait_for_timeout(4000)
    assert len(asked) <= 4, "once it is there it is kept"
    assert all("404" in fault for fault in page.faults)


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_the_timeline_says_why_it_shows_no_sound_and_asks_only_for_what_is_missing(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "broken.wav" in request.url else None)
    (server.base / "input" / "broken.wav").write_bytes(b"RIFF of nothing")
    open_workflow(page, "s2v_long_video")
    page.evaluate("() => { app.graph._nodes.find(n => n.type === 'LoadAudio').widgets[0].value = 'broken.wav' }")
    timeline = long_video_in_view(page)
    wait_for(page, timeline, reason="no browser draws this sound; the nodes may read it")
    page.wait_for_timeout(4000)
    assert len(asked) == 1
    page.evaluate("""() => { const hear = app.graph._nodes.find(n => n.type === 'S2VAudioEncode');
        const say = LiteGraph.createNode('S2VSay'); app.graph.add(say); say.connect(0, hear, 0) }""")
    wait_for(page, timeline, reason="this sound is known in a run only")
    page.evaluate("() => app.graph._nodes.find(n => n.type === 'S2VAudioEncode').disconnectInput(0)")
    wait_for(page, timeline, reason="connect Load Audio to see its sound here")
    assert page.faults == []


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_the_timeline_reads_through_subgraphs_and_links_and_fills_in_there(page):
    """The video is in one subgraph, its sound in another; outside are their end, and the steps, anew in every run."""
    open_workflow(page, "s2v_try_it")
    page.evaluate("""() => { const node = kind => app.graph._nodes.find(n => n.type === kind);
        const video = node('S2VLongVideo'), hear = node('S2VAudioEncode');
        const value = (n, name, v) => { n.widgets.find(w => w.name === name).value = v };
        for (const [name, v] of [['seed', 77], ['steps', 9], ['width', 64], ['height', 64]]) value(video, name, v);
        for (const [to, name, v] of [[video, 'steps', 2], [hear, 'end', 2.5]]) {
            const number = LiteGraph.createNode(name === 'steps' ? 'PrimitiveInt' : 'PrimitiveFloat');
            app.graph.add(number); value(number, 'value', v);
            number.connect(0, to, to.inputs.findIndex(input => input.name === name)) }
        const inside = app.graph.convertToSubgraph(new Set([video]));
        app.graph.convertToSubgraph(new Set([hear]));
        app.canvas.openSubgraph(inside.subgraph) }""")
    page.wait_for_timeout(800)
    page.evaluate("""() => { const node = app.canvas.graph.nodes.find(n => n.type === 'S2VLongVideo');
        app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [260 - node.pos[0], 150 - node.pos[1]];
        app.canvas.setDirty(true, true) }""")
    page.wait_for_timeout(1200)
    timeline = page.locator("canvas.s2v-timeline")
    wait_for(page, timeline, clips="1")
    photograph(page, "subgraph")
    page.evaluate("() => app.queuePrompt(0)")
    wait_for(page, timeline, finished="1", thumbnails="1")
    box = timeline.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2.5 / 5.248, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + 30, steps=5)
    page.mouse.up()
    assert widget(page, "PrimitiveFloat", "value") == 0
    wait_for(page, timeline, clips="2")
    assert [fault for fault in page.faults if "cleanup event listeners" not in fault] == []   # its own, in a subgraph


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_a_new_node_keeps_its_seed_so_that_run_goes_on_after_cancel_and_a_workflow_keeps_its_choice(page):
    open_workflow(page, "s2v_try_it")
    control = page.evaluate("""() => { const seed = n => n.widgets.find(w => w.name === 'control_after_generate');
        const fresh = LiteGraph.createNode('S2VLongVideo'), first = seed(fresh).value;
        const loaded = app.graph._nodes.find(n => n.type === 'S2VLongVideo'); seed(loaded).value = 'increment';
        return app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))).then(() =>
            [first, seed(app.graph._nodes.find(n => n.type === 'S2VLongVideo')).value]) }""")
    assert control == ["fixed", "increment"]


@pytest.mark.parametrize("renderer", ["canvas"], indirect=True)
def test_a_typed_number_is_kept_and_shown_as_finely_as_its_input_says(page):
    open_workflow(page, "s2v_try_it")
    typed = page.evaluate("""() => { const speaker = LiteGraph.createNode('S2VSpeaker'); app.graph.add(speaker);
        const type = (kind, name, value) => { const node = app.graph._nodes.find(n => n.type === kind);
            const widget = node.widgets.find(w => w.name === name);
            widget.setValue(value, { e: {}, node, canvas: app.canvas });
            return [widget.value, widget._displayValue] };
        return [type('S2VLongVideo', 'fps', 23.976), type('S2VLongVideo', 'output_fps', 59.94),
            type('S2VLongVideo', 'fps', 24), type('S2VLongVideo', 'cfg', 4.5), type('S2VSpeaker', 'start', 2.45678),
            type('S2VAudioEncode', 'loudness', -23.5), type('S2VAudioEncode', 'end', 4.125)] }""")
    assert typed == [
        [23.976, "23.976"], [59.94, "59.94"], [24, "24"], [4.5, "4.5"], [2.457, "2.457"], [-23.5, "-23.5"],
        [4.125, "4.125"],
    ]  # fmt: skip


def test_the_timeline_trims_and_fills_and_leaves_saved_workflows_alone(page, renderer):
    flow = open_workflow(page, "s2v_try_it")
    timeline = long_video_in_view(page)
    wait_for(page, timeline, clips="2")
    page.wait_for_timeout(1000)   # the node may still be growing around it
    box = timeline.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30, steps=5)
    page.mouse.up()
    assert 2.4 < widget(page, "S2VAudioEncode", "end") < 2.9
    wait_for(page, timeline, clips="1")
    saved = page.evaluate("() => app.graph.serialize().nodes.find(n => n.type === 'S2VLongVideo').widgets_values")
    assert saved == next(node for node in flow["nodes"] if node["type"] == "S2VLongVideo")["widgets_values"]
    set_widget(page, "S2VAudioEncode", end=0)
    quick = {} if SCREENSHOTS else {"steps": 2, "width": 64, "height": 64}
    set_widget(page, "S2VLongVideo", seed=["canvas", "vue"].index(renderer), **quick)   # not what has been made already
    wait_for(page, timeline, clips="2", finished="0")
    page.evaluate("() => app.queuePrompt(0)")
    wait_for(page, timeline, finished="2", thumbnails="2")
    if SCREENSHOTS and renderer == "canvas":
        page.wait_for_function("() => document.querySelector('video')?.duration > 5", timeout=120_000)
        photograph_finished(page, "comfyui")
    assert timeline.get_attribute("data-scenes") == ""
    copied = page.evaluate("() => { const g = app.graph.serialize(); return app.loadGraphData(g).then(() => g) }")
    wait_for(page, long_video_in_view(page), clips="2")
    assert len(copied["nodes"]) == len(flow["nodes"]) and page.faults == []

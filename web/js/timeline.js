/* The sound of an S2V Long Video node, with its clips and its storyboard on it: drag the ends to trim, watch clips
   being finished.
   Knows the front end's graph and events; what a clip is, it is told by the numbers below. */

import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

const NODE = "S2VLongVideo";
const SOUND = "S2VAudioEncode";
const STORYBOARD = "S2VStoryboard";
const CLIP_FRAMES = 80;     // new frames of a clip
const WARMUP_FRAMES = 3;    // dropped before the first, unless it starts from the picture
const NUM_PEAKS = 600;
const HEIGHT = 96;          // pixels
const WORDS = 15;           // pixels high: the line of the storyboard's prompts
const GRIP = 9;             // pixels around a handle that take hold of it
const REFRESH = 300;        // milliseconds
const SUBGRAPH_INPUT = -10;   // whose links come from outside the subgraph
const ASK_AGAIN = 3000;     // milliseconds until a sound that could not be had is asked for again

const COLOURS = {
    ground: "#1b1d22", wave: "#5b8def", outside: "#3a3f4a", clip: "#8a93a5", done: "rgba(80, 180, 120, 0.28)",
    handle: "#f2b84b", text: "#c8cdd8", scene: "#d98bd9", words: "rgba(20, 21, 25, 0.82)",
};

// ---- arithmetic: seconds, frames and pixels -----------------------------------------------------------------------

/** Where the clips of a stretch of sound begin and end, in seconds from its beginning. */
export function clipTimes(seconds, fps, startFromImage) {
    const frames = Math.max(1, Math.ceil(seconds * fps - 1e-6));
    const warmup = startFromImage ? 0 : WARMUP_FRAMES;
    const count = Math.ceil((frames + warmup) / CLIP_FRAMES);
    return Array.from({ length: count }, (_, i) => ({
        start: Math.max(0, i * CLIP_FRAMES - warmup) / fps,
        end: Math.min(frames, (i + 1) * CLIP_FRAMES - warmup) / fps,
    }));
}

/** The stretch that start and end leave of a sound; end 0 is the sound's end. */
export function trimmed(duration, start, end) {
    const last = end > 0 ? Math.min(end, duration) : duration;
    return { start: Math.min(start, last), end: last };
}

/** The scenes of a storyboard's text: their words, and the seconds or the clip (from 0) that they begin at. */
export function scenesOf(text) {
    const lines = String(text).split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#"));
    const scenes = lines.map((line) => {
        const clip = line.match(/^clip\s+(\d+):?(?:\s+(.*)|$)/i);
        if (clip) return { clip: Number(clip[1]) - 1, words: clip[2] ?? "" };
        const time = line.match(/^((?:\d+:){1,2}[0-5]?\d(?:\.\d*)?)(?:\s+(.*)|$)/);
        if (!time) return { words: line };
        return { seconds: time[1].split(":").reduce((sum, part) => 60 * sum + Number(part), 0), words: time[2] ?? "" };
    });
    if (scenes.some((scene) => scene.clip !== undefined || scene.seconds !== undefined)) {
        return scenes.map((scene) => (scene.clip === undefined ? { seconds: 0, ...scene } : scene));
    }
    return scenes.map((scene, i) => ({ clip: i, ...scene }));   // lines without times are a clip each
}

/** Scenes on the clips: each at its time, and the clip that begins nearest to it; those past the end are left out. */
export function placeScenes(scenes, clips) {
    const end = clips[clips.length - 1].end;
    return scenes
        .filter(({ clip, seconds }) => (clip === undefined ? seconds < end : clip >= 0 && clip < clips.length))
        .map(({ clip, seconds, words }) => {
            const gaps = clips.map(({ start }) => Math.abs(start - seconds));
            const nearest = clip ?? gaps.indexOf(Math.min(...gaps));
            return { clip: nearest, seconds: seconds ?? clips[nearest].start, words };
        });
}

/** The loudest sample of each of NUM_PEAKS stretches. */
function peaksOf(samples) {
    const peaks = [];
    for (let i = 0; i < NUM_PEAKS; i++) {
        const from = Math.floor((i * samples.length) / NUM_PEAKS);
        const to = Math.max(from + 1, Math.floor(((i + 1) * samples.length) / NUM_PEAKS));
        let peak = 0;
        for (let k = from; k < to && k < samples.length; k++) peak = Math.max(peak, Math.abs(samples[k]));
        peaks.push(peak);
    }
    return peaks;
}

// ---- the graph ------------------------------------------------------------------------------------------------------

/** Where an input comes from, through reroutes and the walls of subgraphs: a node, and the widget that says it. */
function origin(node, slot) {
    const input = node?.inputs?.[slot];
    if (!input) return {};
    if (input.link == null) return { widget: node.widgets?.find((widget) => widget.name === input.widget?.name) };
    return linkOrigin(node.graph, node.graph?.getLink(input.link));
}

function linkOrigin(graph, link) {
    if (!link) return {};
    if (link.origin_id === SUBGRAPH_INPUT) {
        const around = nodesAround(graph);
        return around.length === 1 ? origin(around[0], link.origin_slot) : {};   // used twice, it may be either's
    }
    const node = graph.getNodeById(link.origin_id);
    if (node?.type === "Reroute") return origin(node, 0);
    if (node?.subgraph) {
        const inner = node.subgraph;
        return linkOrigin(inner, inner.getLink(inner.outputs[link.origin_slot]?.linkIds[0]));
    }
    return { node, widget: node?.type.startsWith("Primitive") ? node.widgets?.[0] : undefined };
}

/** The nodes of the whole workflow that hold this graph. */
function nodesAround(graph) {
    const graphs = [app.graph, ...(app.graph.subgraphs?.values() ?? [])];
    return graphs.flatMap(({ nodes }) => nodes.filter((node) => node.subgraph === graph));
}

function slotOf(node, name) {
    return node?.inputs?.findIndex((input) => input.name === name) ?? -1;
}

function upstream(node, name) {
    return origin(node, slotOf(node, name)).node ?? null;
}

/** The widget that says a value: the node's own, or where the value is linked, the one at the other end. */
function widgetOf(node, name) {
    const slot = slotOf(node, name);
    const isLinked = node?.inputs?.[slot]?.link != null;
    return isLinked ? origin(node, slot).widget : node?.widgets?.find((widget) => widget.name === name);
}

/** What is said in the graph; `otherwise` where that is only known in a run. */
function valueOf(node, name, otherwise) {
    return widgetOf(node, name)?.value ?? otherwise;
}

function setValue(node, name, value) {
    const widget = widgetOf(node, name);
    if (!widget) return;
    widget.value = value;
    widget.callback?.(value, app.canvas, widget.node ?? node);
    app.canvas.setDirty(true, true);
}

/** Where the sound of a node can be had; null where it is only made during a run. */
function soundUrl(source) {
    if (source?.type === "S2VLoadBundledModel") return new URL("../sample_peaks.json", import.meta.url).href;
    if (source?.type !== "LoadAudio") return null;
    const [, path, kind] = String(valueOf(source, "audio", "")).match(/^(.*?)(?: \[(\w+)\])?$/);
    if (!path) return null;
    const cut = path.lastIndexOf("/");
    const query = new URLSearchParams({
        filename: path.slice(cut + 1), subfolder: cut < 0 ? "" : path.slice(0, cut), type: kind ?? "input",
    });
    return api.apiURL(`/view?${query}`);
}

const sounds = new Map();   // url -> promise of what is known of it

/** What is behind a URL, read once: {duration, peaks} or {reason}; a missing sound may be copied there later. */
function loadSound(url) {
    if (!sounds.has(url)) {
        const found = readSound(url).catch(() => ({ reason: "no browser draws this sound; the nodes may read it" }));
        sounds.set(url, found);
        found.then(({ isMissing }) => isMissing && setTimeout(() => sounds.delete(url), ASK_AGAIN));
    }
    return sounds.get(url);
}

async function readSound(url) {
    const answer = await fetch(url).catch(() => ({ ok: false }));
    if (!answer.ok) return { isMissing: true, reason: "this sound is not in ComfyUI's input folder" };
    if (url.endsWith(".json")) return answer.json();
    const context = new OfflineAudioContext(1, 1, 16000);
    const sound = await context.decodeAudioData(await answer.arrayBuffer());
    return { duration: sound.duration, peaks: peaksOf(sound.getChannelData(0)) };
}

// ---- the picture ----------------------------------------------------------------------------------------------------

class Timeline {
    constructor(node) {
        this.node = node;
        this.sound = null;
        this.url = null;
        this.reason = "";         // why no sound is shown
        this.thumbnails = [];    // of finished clips
        this.finished = 0;
        this.max = this.value = this.steps = 0;   // of the run that is shown
        this.dragged = null;
        this.canvas = document.createElement("canvas");
        this.canvas.className = "s2v-timeline";
        this.canvas.style.cssText = "width: 100%; height: 100%; display: block; touch-action: none;";
        this.canvas.addEventListener("pointerdown", (event) => this.take(event));
        this.canvas.addEventListener("pointermove", (event) => this.move(event));
        this.canvas.addEventListener("pointerup", (event) => this.release(event));
        this.timer = setInterval(() => this.refresh(), REFRESH);
    }

    close() {
        clearInterval(this.timer);
    }

    get encoder() {
        const found = upstream(this.node, "audio");
        return found?.type === SOUND ? found : null;
    }

    trim() {
        return trimmed(this.sound.duration, valueOf(this.encoder, "start", 0), valueOf(this.encoder, "end", 0));
    }

    clips() {
        const { start, end } = this.trim();
        return clipTimes(end - start, valueOf(this.node, "fps", 16), valueOf(this.node, "start_from_image", false));
    }

    /** What the storyboard says; nothing where its text comes from another node, and is only known in a run. */
    scenes() {
        const board = upstream(this.node, "storyboard");
        if (board?.type !== STORYBOARD || upstream(board, "text")) return [];
        return placeScenes(scenesOf(valueOf(board, "text", "")), this.clips());
    }

    /** Early Vue nodes leave widgets of unknown kinds out: then into the node by hand. */
    mount() {
        if (this.canvas.isConnected || this.node.graph !== app.canvas.graph) return;
        const home = document.querySelector(`[data-node-id="${CSS.escape(String(this.node.id))}"]`);
        if (!home) return;
        const frame = document.createElement("div");
        frame.style.cssText = `height: ${HEIGHT}px; margin: 8px 12px;`;
        frame.append(this.canvas);
        home.append(frame);
    }

    async refresh() {
        this.mount();
        if (!this.canvas.isConnected) return;
        const source = upstream(this.encoder, "audio");
        const url = soundUrl(source);
        if (url !== this.url) {
            this.url = url;
            this.sound = null;
        }
        this.reason = source ? "this sound is known in a run only" : "connect Load Audio to see its sound here";
        if (url && !this.sound) {
            const { duration, peaks, reason } = await loadSound(url);
            if (url !== this.url) return;
            this.sound = peaks ? { duration, peaks } : null;
            this.reason = reason;
        }
        this.draw();
    }

    // ---- trimming

    secondsAt(event) {
        const box = this.canvas.getBoundingClientRect();
        const share = (event.clientX - box.left) / box.width;
        return Math.min(1, Math.max(0, share)) * this.sound.duration;
    }

    take(event) {
        if (!this.sound || !this.encoder) return;
        const box = this.canvas.getBoundingClientRect();
        const { start, end } = this.trim();
        const at = (seconds) => box.left + (seconds / this.sound.duration) * box.width;
        const [toStart, toEnd] = [start, end].map((seconds) => Math.abs(event.clientX - at(seconds)));
        if (Math.min(toStart, toEnd) > GRIP) return;
        this.dragged = toStart < toEnd ? "start" : "end";
        this.canvas.setPointerCapture(event.pointerId);
        event.preventDefault();
        event.stopPropagation();
    }

    move(event) {
        if (!this.dragged || !this.sound || !this.encoder) return;
        const { start, end } = this.trim();
        const seconds = Math.round(this.secondsAt(event) * 100) / 100;
        if (this.dragged === "start") setValue(this.encoder, "start", Math.min(seconds, Math.max(0, end - 0.1)));
        else setValue(this.encoder, "end", seconds >= this.sound.duration - 0.02 ? 0 : Math.max(seconds, start + 0.1));
        event.stopPropagation();
        this.draw();
    }

    release(event) {
        if (!this.dragged) return;
        this.dragged = null;
        this.canvas.releasePointerCapture(event.pointerId);
        event.stopPropagation();
    }

    // ---- a run

    /** Steps of a clip, of `max` in all: the graph may have changed since the run was queued. */
    stepsOf(max) {
        const said = valueOf(this.node, "steps", max);
        const each = this.sound ? max / this.clips().length : said;
        return Number.isInteger(each) ? each : said;
    }

    /** Of `max` steps of all clips, `value` are done. */
    progress(value, max) {
        if (max !== this.max || value < this.value) this.steps = this.stepsOf(max);   // another run
        [this.max, this.value] = [max, value];
        const { steps } = this;
        const finished = Math.floor(value / steps);
        if (finished < this.finished || value === 0) this.thumbnails = [];
        this.isClip = finished > 0 && value === finished * steps;   // told twice: after the last step, and decoded
        this.finished = finished;
        this.draw();
    }

    async preview(blob) {
        if (!this.isClip) return;
        this.isClip = false;
        const index = this.finished - 1;
        this.thumbnails[index] = await createImageBitmap(blob);
        this.draw();
    }

    // ---- drawing

    draw() {
        const { canvas } = this;
        const ratio = window.devicePixelRatio || 1;
        const [width, height] = [canvas.clientWidth || 300, canvas.clientHeight || HEIGHT];
        if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
            canvas.width = Math.round(width * ratio);
            canvas.height = Math.round(height * ratio);
        }
        const pen = canvas.getContext("2d");
        pen.setTransform(ratio, 0, 0, ratio, 0, 0);
        pen.fillStyle = COLOURS.ground;
        pen.fillRect(0, 0, width, height);
        pen.font = "11px sans-serif";
        canvas.dataset.reason = this.sound ? "" : this.reason;
        if (!this.sound) {
            canvas.dataset.clips = canvas.dataset.scenes = "";
            pen.fillStyle = COLOURS.text;
            pen.fillText(this.reason, 8, height / 2);
            return;
        }
        const clips = this.clips();
        const { start, end } = this.trim();
        canvas.dataset.clips = String(clips.length);
        canvas.dataset.finished = String(this.finished);
        canvas.dataset.thumbnails = String(this.thumbnails.filter(Boolean).length);
        const x = (seconds) => (seconds / this.sound.duration) * width;
        this.drawClips(pen, clips, start, x, height);
        this.drawWave(pen, start, end, width, height);
        this.drawScenes(pen, clips, start, x, width, height);
        pen.fillStyle = COLOURS.text;
        pen.fillText(`${(end - start).toFixed(2)} s, ${clips.length} ${clips.length === 1 ? "clip" : "clips"}`, 6, 13);
        for (const seconds of [start, end]) {
            pen.fillStyle = COLOURS.handle;
            pen.fillRect(Math.min(Math.max(x(seconds) - 1.5, 0), width - 3), 0, 3, height);
        }
    }

    drawClips(pen, clips, start, x, height) {
        clips.forEach((clip, i) => {
            const [from, to] = [x(start + clip.start), x(start + clip.end)];
            if (i < this.finished) {
                pen.fillStyle = COLOURS.done;
                pen.fillRect(from, 0, to - from, height);
            }
            const picture = this.thumbnails[i];
            if (picture) {
                const tall = height - 20;
                const wide = Math.min(to - from - 2, (tall * picture.width) / picture.height);
                if (wide > 4) pen.drawImage(picture, from + 1, 18, wide, (wide * picture.height) / picture.width);
            }
            if (i) {
                pen.fillStyle = COLOURS.clip;
                pen.fillRect(from, 0, 1, height);
            }
        });
    }

    /** Each prompt at its time, and a mark where its clip begins. */
    drawScenes(pen, clips, start, x, width, height) {
        const scenes = this.scenes();
        this.canvas.dataset.scenes = scenes.map(({ clip }) => clip + 1).join(" ");
        scenes.forEach(({ clip, seconds, words }, i) => {
            const from = x(start + seconds);
            const to = i + 1 < scenes.length ? x(start + scenes[i + 1].seconds) : width;
            pen.fillStyle = COLOURS.scene;
            pen.fillRect(x(start + clips[clip].start), 18, 2, height - 18);
            pen.save();
            pen.beginPath();
            pen.rect(from, height - WORDS, Math.max(0, to - from - 2), WORDS);
            pen.clip();
            pen.fillStyle = COLOURS.words;
            pen.fillRect(from, height - WORDS, to - from, WORDS);
            pen.fillStyle = COLOURS.scene;
            pen.fillRect(from, height - WORDS, 2, WORDS);
            pen.fillText(words, from + 5, height - 4);
            pen.restore();
        });
    }

    drawWave(pen, start, end, width, height) {
        const { peaks, duration } = this.sound;
        const middle = height / 2 + 6;
        const step = width / peaks.length;
        pen.globalAlpha = this.thumbnails.length ? 0.6 : 1;
        peaks.forEach((peak, i) => {
            const seconds = ((i + 0.5) / peaks.length) * duration;
            const tall = Math.max(1, peak * (height - 24));
            pen.fillStyle = seconds >= start && seconds <= end ? COLOURS.wave : COLOURS.outside;
            pen.fillRect(i * step, middle - tall / 2, Math.max(step - 0.3, 0.5), tall);
        });
        pen.globalAlpha = 1;
    }
}

// ---- into the front end -----------------------------------------------------------------------------------------------

const timelines = new Map();   // node -> Timeline

/** Of the node that a run calls by `id`: 7, or 10:7 for node 7 in the subgraph of node 10. */
function timelineOf(id) {
    let [graph, node] = [app.graph];
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
        graph = node?.subgraph;
    }
    return node && timelines.get(node);
}

app.registerExtension({
    name: "wan_s2v.timeline",

    setup() {
        api.addEventListener("progress_state", ({ detail }) => {
            for (const [id, state] of Object.entries(detail.nodes ?? {})) {
                if (state.max > 1) timelineOf(id)?.progress(state.value, state.max);
            }
        });
        api.addEventListener("b_preview_with_metadata", ({ detail }) => {
            timelineOf(detail.displayNodeId ?? detail.nodeId)?.preview(detail.blob);
        });
    },

    nodeCreated(node) {
        if (node.comfyClass !== NODE) return;
        const timeline = new Timeline(node);
        const widget = node.addDOMWidget("timeline", "s2v_timeline", timeline.canvas, {
            serialize: false,
            hideOnZoom: false,
            getMinHeight: () => HEIGHT,
            getMaxHeight: () => HEIGHT,
        });
        widget.serialize = false;   // saved workflows hold the other widgets' values alone
        timelines.set(node, timeline);
        const removed = node.onRemoved;
        node.onRemoved = function (...args) {
            timeline.close();
            timelines.delete(node);
            return removed?.apply(this, args);
        };
    },
});

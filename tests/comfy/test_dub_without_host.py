"""S2V Dub Video's node side, with the host faked as thinly as possible: its bar, and Cancel before any model runs."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from ..core.dub_footage import noise_pictures, write_video
from .fake_host import load_pack, part

RATE = 16     # of the footage, frames a second
SECONDS = 6   # of footage and of sound: two clips
STEPS = 4


class Cancelled(Exception):
    pass


@pytest.fixture
def pack(monkeypatch, tmp_path):
    return load_pack(monkeypatch, tmp_path)


@pytest.fixture
def bars(pack, monkeypatch):
    """All bars that a node showed."""
    made, bar = [], part(pack, "nodes.host").comfy.utils.ProgressBar

    def kept(*args, **kwargs):
        made.append(bar(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(part(pack, "nodes.host").comfy.utils, "ProgressBar", kept)
    return made


@pytest.fixture
def dub(pack, monkeypatch, tmp_path):
    """Dubs footage of two clips with a model that is never asked; `fill(take, watch)` stands in for the drawing."""
    dubbing = part(pack, "nodes.dubbing")
    monkeypatch.setattr(dubbing, "model_identity", lambda model: "a model")
    monkeypatch.setattr(dubbing, "codec_of", lambda vae: SimpleNamespace(model=vae, decoder_reach=0))
    monkeypatch.setattr(dubbing, "_join", lambda take, work, sound, output: output.write_bytes(b"joined"))
    (tmp_path / "temp").mkdir()
    shot = write_video(tmp_path / "shot.mp4", noise_pictures(RATE * SECONDS), RATE)
    waveform = part(pack, "nodes.waveform").Waveform(samples=torch.rand(1, 16000 * SECONDS), sample_rate=16000)
    sound = part(pack, "nodes.sound").DrivingSound(waveform, waveform, None)
    monkeypatch.setattr(type(sound), "features", lambda self, fps: None)
    monkeypatch.setattr(type(sound), "encoder_digest", lambda self: "ears")
    model = SimpleNamespace(load_device="cpu", model=SimpleNamespace(latent_format=None), model_options={})
    model.clone = lambda: model
    model.get_model_object = lambda name: SimpleNamespace(shift=3.0)
    vae, words, mask = torch.nn.Linear(1, 1), [[torch.zeros(1, 2, 8), {}]], torch.zeros(1, 64, 64)
    mask[:, 34:54, 20:46] = 1

    def run(fill=None, mask=mask, **asked):
        monkeypatch.setattr(dubbing, "fill_with_dub", lambda take, work, lent, watch: fill(take, work, watch))
        return dubbing.dub_video(
            dubbing.request_of(part(pack, "nodes.host").video_file(shot), draw_every=1, **asked),
            model=model, model_area=64 * 64, positive=words, negative=words,
            vae=vae, sound=sound, mask=mask, side=64, node_id=None,
            sampling=part(pack, "nodes.sampling").Sampling(
                seed=0, steps=STEPS, cfg=1.0, sampler="wan_unipc", scheduler="wan"
            ),
        )  # fmt: skip

    return run


def one_clip(pack, cancel):
    """Finishes a clip that the take lacks, as far as the take and its watch can see."""
    types = part(pack, "s2v_core.types")

    def fill(take, work, watch):
        for plan in work.clips[take.num_finished :]:
            frames = torch.zeros(1, 3, plan.num_kept, 64, 64)
            memory = types.MotionMemory(frames=torch.zeros(1, 3, 73, 64, 64))
            clip = types.DecodedClip(plan=plan, frames=frames, latents=torch.zeros(1, 16, 20, 8, 8), memory=memory)
            for done in range(STEPS):
                watch.step(done + 1, STEPS)
            take.add(clip, lambda path, frames: path.write_bytes(b"clip"))
            watch.clip_finished(clip)
            if cancel:
                raise Cancelled

    return fill


def test_a_dub_that_goes_on_begins_where_it_was_and_ends_at_the_whole(pack, dub, bars):
    with pytest.raises(Cancelled):
        dub(one_clip(pack, cancel=True))
    first = bars[-1]
    path, _ = dub(one_clip(pack, cancel=False))
    again = bars[-1]
    values = [value for value, _ in again.shown]
    assert first.shown[-1][0] == STEPS and path.read_bytes() == b"joined"
    assert values[0] == STEPS and values == sorted(values) and values[-1] == again.total == 2 * STEPS


def test_looking_for_faces_has_a_bar_of_its_own(pack, dub, bars):
    dub(one_clip(pack, cancel=False))
    looking, drawing = bars
    values = [value for value, _ in looking.shown]
    assert len(values) == RATE * SECONDS and values == sorted(values)
    assert looking.total - 1 <= values[-1] <= looking.total == 10 * SECONDS and drawing.total == 2 * STEPS


def test_cancel_is_heard_while_faces_are_looked_for(pack, dub, bars, monkeypatch):
    bar = part(pack, "nodes.host").comfy.utils.ProgressBar

    def cancelled(*args, **kwargs):
        made = bar(*args, **kwargs)
        made.update_absolute = lambda value, **more: int("pressed") if value >= 10 else None
        return made

    monkeypatch.setattr(part(pack, "nodes.host").comfy.utils, "ProgressBar", cancelled)
    with pytest.raises(ValueError, match="pressed"):
        dub()
    assert len(bars) == 1


def test_faces_of_the_same_footage_are_looked_for_once(pack, dub, monkeypatch, tmp_path):
    dubbing, looked = part(pack, "nodes.dubbing"), []

    class Finder:
        def seen(self, number, seconds, picture):
            looked.append(number)
            return (part(pack, "s2v_core.dub.faces").Face(box=(16.0, 8.0, 48.0, 56.0)),)

    monkeypatch.setattr(dubbing, "FoundFaces", Finder)
    fill = one_clip(pack, cancel=False)
    first, report = dub(fill, mask=None, end=2.0)
    assert looked == list(range(2 * RATE))
    second, again = dub(fill, mask=None, strength=0.5)
    assert first != second and report != again and looked == list(range(RATE * SECONDS))
    os.utime(tmp_path / "shot.mp4", (1, 1))
    dub(fill, mask=None, strength=0.5)
    assert len(looked) == 2 * RATE * SECONDS, "another file under the name is looked through"

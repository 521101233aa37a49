"""From videos to windows to batches: what is cut where, that it is what sampling will see, and what goes wrong."""

from __future__ import annotations

import gc
import json
import tarfile
import wave
import weakref
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from s2v_core.conditioning.audio import SilentFeatures, SoundFeatures
from s2v_core.errors import CheckpointError, ConfigError, MediaError, OutputError
from s2v_core.media.video_io import write_segment
from s2v_core.training.config import PrecomputeConfig
from s2v_core.training.dataset import KeptWindows, WindowBatches
from s2v_core.training.encoders import ModelEncoders
from s2v_core.training.footage import find_footage, fit_tokens
from s2v_core.training.precompute import choose_cuts, find_windows, precompute
from s2v_core.training.windows import (
    FIRST,
    Window,
    batch_windows,
    box_mask,
    load_empty_prompt,
    load_window,
    read_entry,
    save_empty_prompt,
    save_window,
)

from .tiny import CONFIG as TINY

CONFIG = PrecomputeConfig(source="synthetic", num_videos=2, video_frames=100, clip_frames=8, prompts="text")


@pytest.fixture(scope="module")
def encoders():
    return ModelEncoders(None, device=torch.device("cpu"), with_text=True)


@pytest.fixture(scope="module")
def windows(tmp_path_factory, encoders):
    """One window of each kind, and the videos that they are of."""
    folder = tmp_path_factory.mktemp("windows")
    found = {}
    for kind, share in (("first", 1.0), ("continuing", 0.0)):
        config = replace(CONFIG, windows=folder / kind, first_share=share)
        items = find_footage(config)
        precompute(items, encoders, config)
        found[kind] = [load_window(path) for path in find_windows([folder / kind])], items, config
    return found


def starts_of(items, config):
    """Where the windows lie, drawn again as precompute draws."""
    return [choose_cuts(i.open().num_frames, config, np.random.default_rng([config.seed, n]))[0].start
            for n, i in enumerate(items)]  # fmt: skip


def test_a_clip_with_a_past_is_what_sampling_would_see(windows, encoders):
    found, items, config = windows["continuing"]
    for window, item, start in zip(found, items, starts_of(items, config), strict=True):
        footage = item.open()
        motion = encoders.encode_frames(footage.frames(start - 73, start))
        whole = encoders.encode_frames(footage.frames(start - 73, start + 8))
        features = SoundFeatures(footage.sound, encoders.hidden_states, fps=16.0).window(start, start + 8)
        assert torch.equal(window.motion_latents, motion[0].half().float())
        assert torch.equal(window.latents, whole[0, :, 19:].half().float())
        assert torch.equal(window.reference_latent, encoders.encode_frames(footage.reference)[0].half().float())
        assert torch.equal(window.audio_features, features[0].half().float())
        assert window.prompt == footage.prompt and window.latents.shape == (16, 2, 8, 8)


def test_a_first_clip_lies_behind_the_reference_picture(windows, encoders):
    found, items, config = windows["first"]
    for window, item, start in zip(found, items, starts_of(items, config), strict=True):
        footage = item.open()
        frames = footage.frames(max(start, 0), start + 8)
        held = frames[:, :, :1].expand(-1, -1, max(0, -start), -1, -1)
        stream = encoders.encode_frames(torch.cat([footage.reference, held, frames], 2))
        features = SoundFeatures(footage.sound, encoders.hidden_states, fps=16.0).window(start, start + 8)
        torch.testing.assert_close(window.latents, stream[0, :, 1:].half().float(), atol=2e-3, rtol=0)
        assert torch.equal(window.reference_latent, encoders.encode_frames(footage.reference)[0].half().float())
        assert torch.equal(window.audio_features, features[0].half().float())
        assert window.motion_latents is None and window.kind == FIRST


def test_masks_cover_the_mouth_and_the_face(windows):
    window = windows["continuing"][0][0]
    face, mouth = window.face_mask, window.mouth_mask
    assert face.shape == mouth.shape == (2, 8, 8)
    assert 0 < mouth.sum() < face.sum() < 2 * 64 and face[mouth > 0.5].min() > 0.9


def several(tmp_path, encoders, **changes):
    """Windows of synthetic videos with two or three faces, and the videos."""
    config = replace(CONFIG, windows=tmp_path, first_share=1.0, num_videos=3, faces=(0.0, 1.0, 1.0), **changes)
    items = find_footage(config)
    precompute(items, encoders, config)
    return [load_window(path) for path in find_windows([tmp_path])], items, config


def test_each_of_several_faces_has_its_own_sound_in_its_own_region(tmp_path, encoders):
    found, items, config = several(tmp_path, encoders)
    assert any(len(item.open().speakers) > 1 for item in items)
    silence = SilentFeatures(encoders.hidden_states)
    for window, item, start in zip(found, items, starts_of(items, config), strict=True):
        speakers = item.open().speakers
        assert torch.equal(window.audio_features, silence.window(start, start + 8)[0].half().float())
        assert window.speaker_masks.shape == (len(speakers), 2, 8, 8)
        for k, speaker in enumerate(speakers):
            heard = SoundFeatures(speaker.sound, encoders.hidden_states, fps=16.0).window(start, start + 8)
            assert torch.equal(window.speaker_features[k], heard[0].half().float())
            assert torch.equal(window.speaker_masks[k, 1], speaker.mask.half().float())


def test_some_of_several_faces_keep_silent_and_every_mouth_is_in_the_mask(tmp_path):
    config = replace(CONFIG, num_videos=60, faces=(2.0, 1.0, 1.0))
    items = find_footage(config)
    faces = Counter(item.num_faces for item in items)
    assert 20 <= faces[1] <= 40 and faces[2] > 5 and faces[3] > 5
    opened = [item.open() for item in items if item.num_faces == 3]
    assert {len(footage.speakers) for footage in opened} >= {2, 3} and all(f.sound is None for f in opened)
    mouths = box_mask(opened[0].mouth_boxes(0, 4), height=8, width=8)[0]
    assert all(mouths[:, slice(*columns)].sum() > 0.1 for columns in ((0, 2), (3, 5), (6, 8)))


def test_windows_with_one_face_are_what_they_were_whatever_the_shares(tmp_path):
    alone, among = (
        [item for item in find_footage(replace(CONFIG, num_videos=30, faces=faces)) if item.num_faces == 1]
        for faces in ((1.0,), (0.5, 0.5))
    )
    assert len(alone) == 30 > len(among) > 5
    assert {item.fingerprint() for item in among} < {item.fingerprint() for item in alone}


def test_of_silent_videos_some_hear_a_hiss_and_some_hear_nothing_at_all():
    items = find_footage(replace(CONFIG, num_videos=50))
    sounds = [item.open().sound for item in (items[24], items[49], items[0])]
    assert sounds[1] is None and 0 < sounds[0].variance < 2e-6 < sounds[2].variance


def test_synthetic_videos_move_as_they_are_told_to():
    drawn = find_footage(replace(CONFIG, num_videos=20))
    told = find_footage(replace(CONFIG, num_videos=20, motion="shakes", camera="moves in"))
    prompts = [item.open().prompt for item in told]
    assert all("head" in prompt and ("moves in" in prompt or "comes closer" in prompt) for prompt in prompts)
    assert [item.open().prompt for item in drawn] != prompts
    assert not {item.fingerprint() for item in drawn} & {item.fingerprint() for item in told}
    for wrong in ({"motion": "jumps"}, {"camera": "flies"}):
        with pytest.raises(ConfigError, match="must be one of still"):
            replace(CONFIG, **wrong)


def test_faces_that_are_no_shares_are_refused():
    for faces in ((), (0.0,), (1.0, -0.1), (0.1, 0.2, 0.3, 0.4)):
        with pytest.raises(ConfigError, match="faces are the shares"):
            replace(CONFIG, faces=faces)


def test_windows_of_two_and_three_speakers_do_not_share_a_batch(tmp_path):
    for seed in range(6):
        g, num = torch.Generator().manual_seed(seed), 2 + seed % 2
        window = replace(
            some_window(seed), speaker_features=torch.randn(num, 3, 6, 8, generator=g),
            speaker_masks=torch.rand(num, 2, 8, 8, generator=g),
        )  # fmt: skip
        save_window(tmp_path / f"{seed}.safetensors", window, fingerprint="f", model="m")
    source = batches_of(find_windows([tmp_path]), batch_size=3, first_clip=0.0, seed=1)
    shapes = {source.batch(i).speaker_features.shape for i in range(source.batches_per_epoch("continuing"))}
    assert shapes == {(3, 2, 3, 6, 8), (3, 3, 3, 6, 8)}


def test_a_box_fills_its_cells_in_part():
    boxes = np.full((8, 2, 4), np.nan, np.float32)
    boxes[:4, 0] = [8, 8, 24, 20]    # cells 1 and 2 across, 1 and half of 2 down
    boxes[5, 1] = [0, 0, 4, 4]       # a quarter of cell 0, in one frame of the second latent frame
    mask = box_mask(boxes, height=4, width=4)
    expected = torch.zeros(2, 4, 4)
    expected[0, 1, 1:3], expected[0, 2, 1:3], expected[1, 0, 0] = 1, 0.5, 0.25
    assert torch.equal(mask, expected)


def test_cuts_stay_inside_the_video_and_come_in_the_asked_proportion():
    config = replace(CONFIG, first_share=0.3, windows_per_video=3)
    cuts = [cut for seed in range(300) for cut in choose_cuts(120, config, np.random.default_rng(seed))]
    kinds = Counter(cut.kind for cut in cuts)
    assert 0.25 < kinds["first"] / len(cuts) < 0.35
    assert {c.start for c in cuts if c.kind == "continuing"} == set(range(73, 113))
    firsts = [c.start for c in cuts if c.kind == "first"]
    assert 0.4 < np.mean([s == -3 for s in firsts]) < 0.6 and -3 <= min(firsts) and max(firsts) <= 112


def test_a_video_too_short_for_a_past_gives_first_clips_and_one_too_short_for_a_clip_is_refused():
    rng = np.random.default_rng(0)
    assert {choose_cuts(40, CONFIG, rng)[0].kind for _ in range(20)} == {"first"}
    assert choose_cuts(5, CONFIG, rng)[0].start == -3
    with pytest.raises(MediaError, match="4 frames is too short for clips of 8"):
        choose_cuts(4, CONFIG, rng)


def make_folder(folder, *, size=(96, 80), frames=60):
    """A video with its own sound track elsewhere, another that is broken, and one that is missing."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (size[1], size[0], 3), np.uint8)
    write_segment(folder / "a.mp4", [np.roll(base, i, 1) for i in range(frames)], fps=30.0)
    with wave.open(str(folder / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes((rng.normal(0, 3000, 32_000)).astype(np.int16).tobytes())
    (folder / "broken.mp4").write_bytes(b"not a video")
    rows = [
        {"video": "a.mp4", "audio": "a.wav", "prompt": "noise", "pose": "a.mp4", "face_boxes": [16, 16, 80, 64]},
        {"video": "broken.mp4", "audio": "a.wav"},
        {"video": "missing.mp4"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def test_a_folder_is_read_by_time_and_its_broken_videos_are_passed_over(tmp_path, encoders, caplog):
    config = PrecomputeConfig(source=str(make_folder(tmp_path / "d")), windows=tmp_path / "w", clip_frames=8,
                              windows_per_video=2)  # fmt: skip
    report = precompute(find_footage(config), encoders, config)
    assert (report.written, report.skipped) == (2, {"MediaError": 2})
    assert "broken.mp4" in caplog.text and "missing.mp4" in caplog.text
    window = load_window(find_windows([config.windows])[0])
    assert window.latents.shape == (16, 2, 10, 12) == window.pose_latents.shape
    assert window.prompt == "noise" and window.prompt_embeds.shape[1] == 64
    assert window.face_mask[0].sum() == 8 * 6
    assert find_footage(config)[0].open().num_frames == 32   # 2 s at 16 fps, of 60 frames at 30


def make_clapper(path, *, picture, sound):
    """Three seconds of black with one white frame, three of silence with one clap: both at 2 s on the file's clock.

    Args:
        picture, sound: seconds at which the tracks begin.
    """
    with av.open(str(path), "w") as output:
        video, audio = output.add_stream("mpeg4", rate=16), output.add_stream("pcm_s16le", rate=16_000, layout="mono")
        video.width = video.height = 64
        packets = []
        for i in range(48):
            at = picture + Fraction(i, 16)
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 255 * (at == 2), np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(at * 16), Fraction(1, 16)
            packets += video.encode(frame)
        clap = np.zeros((1, 48_000), np.int16)
        clap[:, int((2 - sound) * 16_000) :][:, :800] = 20_000
        frame = av.AudioFrame.from_ndarray(clap, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16_000, int(sound * 16_000), Fraction(1, 16_000)
        packets += audio.encode(frame)
        for packet in sorted([*packets, *video.encode()], key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)


@pytest.mark.parametrize(
    "picture, sound", [(Fraction(0), Fraction(1)), (Fraction(1, 2), Fraction(0)), (Fraction(0), Fraction(0))]
)
def test_tracks_that_begin_apart_are_read_together(tmp_path, picture, sound):
    make_clapper(tmp_path / "v.mkv", picture=picture, sound=sound)
    (tmp_path / "metadata.csv").write_text("video\nv.mkv\n")
    footage = find_footage(PrecomputeConfig(source=str(tmp_path), clip_frames=8))[0].open()
    bright = footage.frames(0, footage.num_frames).mean(dim=(0, 1, 3, 4)).argmax().item()
    heard = np.abs(footage.sound.read(0, footage.sound.num_samples))
    assert bright == (2 - picture) * 16
    assert np.argmax(heard > 0.3) == pytest.approx((2 - picture) * 16_000, abs=20)   # a container rounds to 1 ms
    assert footage.num_frames == min(48, (sound + 3 - picture) * 16)


def test_sound_that_is_over_before_the_first_picture_is_refused(tmp_path):
    make_clapper(tmp_path / "v.mkv", picture=Fraction(4), sound=Fraction(0))
    (tmp_path / "metadata.csv").write_text("video\nv.mkv\n")
    with pytest.raises(MediaError, match="v.mkv has sound that is over before its first picture"):
        find_footage(PrecomputeConfig(source=str(tmp_path)))[0].open()


def make_shard(folder, path):
    """The folder's good video as one sample of a shard, beside a sample without a video."""
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "a.mp4", "x/0001.mp4")
        archive.add(folder / "a.mp4", "x/0001.pose.mp4")
        archive.add(folder / "a.wav", "x/0001.wav")
        archive.add(folder / "a.wav", "x/0002.wav")
        for name, text in (("x/0001.txt", "noise\n"), ("x/0001.json", '{"face_boxes": [16, 16, 80, 64]}')):
            (folder / "text").write_text(text)
            archive.add(folder / "text", name)


def test_a_shard_gives_the_windows_that_its_files_would(tmp_path, encoders):
    folder, shards = make_folder(tmp_path / "d"), tmp_path / "shards"
    shards.mkdir()
    make_shard(folder, shards / "0.tar")
    config = PrecomputeConfig(source=str(folder), windows=tmp_path / "w", clip_frames=8)
    of_shard = replace(config, source=str(shards), windows=tmp_path / "s")
    precompute(find_footage(config), encoders, config)
    report = precompute(find_footage(of_shard), encoders, of_shard)
    assert (report.written, report.skipped) == (1, {})
    a, b = (load_window(find_windows([c.windows])[0]) for c in (config, of_shard))
    assert a.prompt == b.prompt == "noise" and len(a.tensors()) == 6
    assert all(torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items())


def test_of_a_shard_that_is_cut_off_the_whole_samples_are_used_and_one_that_is_none_is_passed_over(
    tmp_path, encoders, caplog
):
    folder, shards = make_folder(tmp_path / "d", size=(64, 64)), tmp_path / "shards"
    shards.mkdir()
    (shards / "0.tar").write_bytes(b"not a tar")
    config = PrecomputeConfig(source=str(shards), windows=tmp_path / "w", clip_frames=8, prompts="text")
    with pytest.raises(ConfigError, match="1 shards, and not one video in them"):
        find_footage(config)
    make_shard(folder, shards / "1.tar")
    with tarfile.open(shards / "1.tar", "a") as archive:
        archive.add(folder / "a.mp4", "x/0003.mp4")
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[: whole.rindex(b"x/0003.mp4") + 1000])
    items = find_footage(config)
    assert [item.name for item in items] == ["1.tar:x/0001.mp4", "1.tar:x/0003.mp4"]
    assert all(f"{name} cannot be read as a webdataset shard to its end" in caplog.text for name in ("0.tar", "1.tar"))
    report = precompute(items, encoders, config)
    assert report.written == 1 and sum(report.skipped.values()) == 1 and "1.tar:x/0003.mp4" in caplog.text


def test_a_second_run_writes_only_what_is_missing_or_was_made_otherwise(tmp_path, encoders):
    config = replace(CONFIG, windows=tmp_path, first_share=1.0)
    items = find_footage(config)
    assert precompute(items, encoders, config).written == 2
    first, second = find_windows([tmp_path])
    kept = second.stat().st_mtime_ns
    content = load_window(first)
    first.write_bytes(first.read_bytes()[:100])
    again = precompute(items, encoders, config)
    assert (again.written, again.kept) == (1, 1)
    assert second.stat().st_mtime_ns == kept
    assert all(torch.equal(t, load_window(first).tensors()[name]) for name, t in content.tensors().items())
    assert precompute(items, encoders, replace(config, warmup_frames=2)).written == 2


def test_encoders_that_nobody_holds_any_more_are_gone_at_once():
    gc.disable()   # a run makes no full collection for a long time
    try:
        encoders = ModelEncoders(None, device=torch.device("cpu"), with_text=True)
        encoders.encode_prompt("a face")
        encoders.encode_frames(torch.zeros(1, 3, 1, 64, 64))
        encoders.hidden_states(torch.zeros(1, 16_000))
        models = [weakref.ref(model) for model in (encoders._text_encoder, encoders.codec, encoders._sound_encoder)]
        assert all(model() is not None for model in models)
        del encoders
        assert [model() for model in models] == [None] * 3
    finally:
        gc.enable()


def test_a_prompt_is_encoded_once_while_it_is_among_the_newest(monkeypatch):
    monkeypatch.setattr("s2v_core.training.encoders.KEPT_PROMPTS", 2)
    encoders = ModelEncoders(None, device=torch.device("cpu"), with_text=True)
    first = encoders.encode_prompt("a")
    encoders.encode_prompt("b")
    assert encoders.encode_prompt("a") is first
    encoders.encode_prompt("c")
    assert encoders.encode_prompt("a") is not first and torch.equal(encoders.encode_prompt("a"), first)


def test_no_text_encoder_is_read_where_all_windows_and_the_empty_prompt_are_there(tmp_path, encoders):
    config = replace(CONFIG, windows=tmp_path, first_share=1.0, prompts="encoded")
    precompute(find_footage(config), encoders, config)
    expected = encoders.encode_prompt("")
    assert torch.equal(load_empty_prompt(tmp_path)[0], expected)
    fresh = ModelEncoders(None, device=torch.device("cpu"), with_text=True)
    assert precompute(find_footage(config), fresh, config).kept == 2 and "_text_encoder" not in vars(fresh)
    save_empty_prompt(tmp_path, expected + 1, model="another")
    assert precompute(find_footage(config), fresh, config).kept == 2
    assert torch.equal(load_empty_prompt(tmp_path)[0], expected), "another model's is written anew"


def test_ranks_share_the_videos_out(tmp_path, encoders, monkeypatch):
    config = replace(CONFIG, windows=tmp_path, first_share=1.0, num_videos=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("0", 2), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        assert precompute(find_footage(config), encoders, config).written == expected
    assert [path.name[:7] for path in find_windows([tmp_path])] == ["0000000", "0000001", "0000002"]


def names_of(folder):
    return [path.name for path in find_windows([folder])]


def test_windows_of_videos_that_are_gone_are_learnt_from_no_more(tmp_path, encoders, monkeypatch, caplog):
    three = replace(CONFIG, windows=tmp_path, first_share=1.0, num_videos=3)
    items = find_footage(three)
    precompute(items, encoders, three)
    everything = names_of(tmp_path)
    assert len(everything) == 3 and not caplog.text
    assert precompute(items[:1], encoders, three).kept == 1
    assert names_of(tmp_path) == everything[:1] and f"{tmp_path}: 2 windows are not of the videos" in caplog.text
    report = precompute(items, encoders, three)
    assert (report.written, report.kept) == (0, 3) and names_of(tmp_path) == everything, "none was lost meanwhile"

    class Broken(type(items[1])):
        def open(self):
            raise MediaError("broken")

    changed = replace(three, warmup_frames=2)
    precompute([items[0], Broken(1, changed)], encoders, changed)
    assert names_of(tmp_path) == everything[:1], "a video that is broken now has windows of other settings"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, found in (("0", 3), ("1", 3)):   # until all have listed theirs, the folder's are taken as they are
        monkeypatch.setenv("RANK", rank)
        precompute(items, encoders, three)
        assert len(names_of(tmp_path)) == found
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["windows-0-of-2.json", "windows-1-of-2.json"]
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        precompute(items[:2], encoders, three)
    assert names_of(tmp_path) == everything[:2]


def test_a_folder_without_a_list_is_taken_as_it_is(folder):
    assert len(find_windows([folder])) == 10 and not list(folder.glob("*.json"))


def test_a_ranks_share_may_be_broken_videos_alone_and_one_process_with_nothing_is_refused(
    tmp_path, encoders, monkeypatch, caplog
):
    folder = make_folder(tmp_path / "d", size=(64, 64))
    config = PrecomputeConfig(source=str(folder), windows=tmp_path / "w", clip_frames=8, prompts="text")
    good, *broken = find_footage(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    written = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        written.append(precompute([good, broken[0]], encoders, config).written)
    assert written == [1, 0] and "skipped: " in caplog.text
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="not one of 1 videos could be used"):
        precompute(broken[:1], encoders, config)


def test_a_full_disk_ends_the_run_with_a_word(tmp_path, encoders):
    (tmp_path / "file").write_text("")
    config = replace(CONFIG, windows=tmp_path / "file" / "w", num_videos=1, first_share=1.0)
    with pytest.raises(OutputError, match="cannot be written.*free some space"):
        precompute(find_footage(config), encoders, config)


@pytest.mark.parametrize(
    "text, message",
    [
        ("video,prompt,sound\na.mp4,x,y", "column sound in row 1"),
        ("prompt\nx", "names no video in row 1"),
        ("video,prompt\na.mp4,a face, talking", "more cells than columns in row 1: put commas inside quotes"),
        ("video,prompt", "lists no videos"),
    ],
)
def test_bad_metadata_is_named(tmp_path, text, message):
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_footage(PrecomputeConfig(source=str(tmp_path)))


def test_metadata_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"video\n\xff\xfe.mp4")
    with pytest.raises(ConfigError, match="metadata.csv is not text in UTF-8"):
        find_footage(PrecomputeConfig(source=str(tmp_path)))


def test_a_table_says_what_lines_of_json_say(tmp_path):
    folder = make_folder(tmp_path, size=(64, 64))
    config = PrecomputeConfig(source=str(folder), clip_frames=8)
    lines = find_footage(config)[0].open()
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text(
        'video,audio,prompt,pose,face_boxes\na.mp4,a.wav,"a face,\ntalking",,"[16, 16, 80, 64]"\na.mp4,a.wav,,,\n'
    )
    table, bare = (item.open() for item in find_footage(config))
    assert table.prompt == "a face,\ntalking" and (bare.prompt, bare.face_boxes, table.pose) == ("", None, None)
    assert np.array_equal(table.face_boxes(0, 3), lines.face_boxes(0, 3))
    assert torch.equal(table.frames(4, 6), lines.frames(4, 6))


def test_a_folder_without_metadata_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no metadata.csv or metadata.jsonl"):
        find_footage(PrecomputeConfig(source=str(tmp_path)))


def test_a_picture_within_the_budget_keeps_its_size_and_a_larger_one_its_shape():
    config = PrecomputeConfig(clip_frames=48)
    assert str(fit_tokens(1024, 768, config)) == "1024x768"   # the paper's: 44,544 tokens
    assert str(fit_tokens(333, 250, config)) == "320x240"
    large = fit_tokens(3840, 2160, config)
    assert abs(large.width / large.height - 16 / 9) < 0.05 and 0.93 < large.width * large.height / (1024 * 768) <= 1
    with pytest.raises(MediaError, match="raise max_tokens"):
        fit_tokens(640, 64, replace(config, max_tokens=100))


def some_window(seed, *, motion=True, frames=2):
    g = torch.Generator().manual_seed(seed)
    return Window(
        latents=torch.randn(16, frames, 8, 8, generator=g),
        reference_latent=torch.randn(16, 1, 8, 8, generator=g),
        audio_features=torch.randn(3, 6, 4 * frames, generator=g),
        prompt=str(seed),
        prompt_embeds=torch.randn(2 + seed % 3, 12, generator=g),
        motion_latents=torch.randn(16, 19, 8, 8, generator=g) if motion else None,
    )


@pytest.fixture
def folder(tmp_path):
    """7 windows with a past, 2 of them longer, and 3 first clips."""
    for seed in range(10):
        window = some_window(seed, motion=seed < 7, frames=3 if seed < 2 else 2)
        save_window(tmp_path / f"{seed}.safetensors", window, fingerprint="f", model="m")
    return tmp_path


def batches_of(paths, **options):
    return WindowBatches(KeptWindows(paths), **options)


def prompts(source, count):
    return [source.batch(index).prompts for index in range(count)]


def test_batches_hold_windows_of_one_form_and_every_window_in_an_epoch(folder):
    source = batches_of(find_windows([folder]), batch_size=2, first_clip=0.0, seed=1)
    num = source.batches_per_epoch("continuing")
    assert num == 4   # one of the long form, three of the other five
    epoch = prompts(source, num)
    assert {p for batch in epoch for p in batch} == set("0123456")
    assert all((set(batch) <= {"0", "1"}) or not set(batch) & {"0", "1"} for batch in epoch)
    assert prompts(source, 2 * num)[num:] != epoch, "another epoch has another order"
    assert all(len(batch) == 2 for batch in epoch)


def test_a_batch_is_decided_by_its_number_and_the_seed(folder):
    paths = find_windows([folder])
    one, two, other = (batches_of(paths, batch_size=2, first_clip=0.4, seed=seed) for seed in (1, 1, 2))
    in_order = [one.paths(i) for i in range(30)]
    assert [two.paths(i) for i in reversed(range(30))] == in_order[::-1]
    assert [other.paths(i) for i in range(30)] != in_order


def test_first_clips_come_in_their_share_and_evenly(folder):
    source = batches_of(find_windows([folder]), batch_size=1, first_clip=0.3, seed=1)
    firsts = [source.batch(i).motion_latents is None for i in range(40)]
    assert sum(firsts) == 12 and all(sum(firsts[i : i + 10]) == 3 for i in range(0, 31))


def test_a_stretch_of_a_window_has_the_frames_before_it_as_its_past():
    window = some_window(0, frames=6)
    part = window.stretch(2, 3)
    assert torch.equal(part.latents, window.latents[:, 2:5])
    assert torch.equal(part.audio_features, window.audio_features[..., 8:20])
    assert torch.equal(part.motion_latents, torch.cat([window.motion_latents, window.latents], 1)[:, 2:21])
    assert torch.equal(part.reference_latent, window.reference_latent) and part.prompt == window.prompt


def test_batches_of_stretches_are_alike_for_one_seed_and_begin_first_clips_at_their_start(tmp_path):
    for seed in range(6):
        window = some_window(seed, motion=seed < 3, frames=6)
        save_window(tmp_path / f"{seed}.safetensors", window, fingerprint="f", model="m")
    paths = find_windows([tmp_path])
    source, again = (
        batches_of(paths, batch_size=3, first_clip=0.5, seed=1, clip_latents=2) for _ in range(2)
    )
    starts = set()
    for index in range(8):
        batch = source.batch(index)
        assert batch.latents.shape[2] == 2 and batch.audio_features.shape[-1] == 8
        assert torch.equal(batch.latents, again.batch(index).latents)
        for prompt, latents in zip(batch.prompts, batch.latents, strict=True):
            whole = some_window(int(prompt), frames=6).latents
            matches = [k for k in range(5) if torch.allclose(whole[:, k : k + 2], latents, atol=1e-2)]
            starts |= {(batch.motion_latents is None, *matches)}
    assert {start for first, start in starts if first} == {0}
    assert len({start for first, start in starts if not first}) > 2


def test_a_saved_window_comes_back_in_half_precision(tmp_path):
    window = some_window(3)
    save_window(tmp_path / "w.safetensors", window, fingerprint="f", model="m")
    back = load_window(tmp_path / "w.safetensors")
    assert back.prompt == "3"
    for name, tensor in window.tensors().items():
        assert torch.equal(back.tensors()[name], tensor.half().float())


def test_prompts_of_different_length_are_filled_up_with_zero_rows():
    batch = batch_windows([some_window(0), some_window(2)])
    assert batch.prompt_embeds.shape == (2, 4, 12) and not batch.prompt_embeds[0, 2:].any()


def test_windows_that_cannot_be_read_are_left_out_and_counted(folder, caplog):
    (folder / "3.safetensors").write_bytes(b"nothing")
    source = batches_of(find_windows([folder]), batch_size=2, first_clip=0.3, seed=1)
    assert (source.num_windows, source.num_skipped) == (9, 1) and "3.safetensors" in caplog.text
    with pytest.raises(CheckpointError, match="delete it and precompute again"):
        read_entry(folder / "3.safetensors")


def test_a_window_that_goes_while_it_is_learnt_from_is_stood_in_for_by_its_batch(folder, caplog):
    source = batches_of(find_windows([folder]), batch_size=2, first_clip=0.0, seed=1)
    index = next(i for i in range(9) if not set(source.batch(i).prompts) & {"0", "1"})
    gone, left = source.paths(index)
    gone.unlink()
    assert source.batch(index).prompts == (left.stem, left.stem) and source.num_skipped == 1
    source.batch(index)
    assert caplog.text.count("left out") == 1 and source.num_skipped == 1, "it is said and counted once"
    left.unlink()
    assert source.batch(index).prompts == source.batch(index + 1).prompts and source.num_skipped == 2
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="not one of 7 windows can be had"):
        source.batch(index)


def test_windows_of_another_model_are_named_with_what_this_one_reads(folder):
    source = batches_of(find_windows([folder]), batch_size=2, first_clip=0.3, seed=1)
    source.check_fit(TINY, with_embeds=True)
    with pytest.raises(ConfigError, match="0.safetensors is for another model: its audio_features are of 3 x 6"):
        source.check_fit(replace(TINY, num_audio_layers=4), with_embeds=False)
    with pytest.raises(ConfigError, match="no prompt embeds of width 16; precompute again with prompts: encoded"):
        source.check_fit(replace(TINY, text_dim=16), with_embeds=True)
    save_window(folder / "1.safetensors", replace(some_window(1), prompt_embeds=None), fingerprint="f", model="m")
    with pytest.raises(ConfigError, match="1.safetensors has no prompt embeds"):
        batches_of(find_windows([folder]), batch_size=2, first_clip=0.3, seed=1).check_fit(TINY, with_embeds=True)


def test_windows_of_two_encoders_do_not_mix(folder):
    save_window(folder / "x.safetensors", some_window(1), fingerprint="f", model="another")
    with pytest.raises(ConfigError, match="different encoders"):
        batches_of(find_windows([folder]), batch_size=2, first_clip=0.3, seed=1)


def test_a_share_of_clips_that_are_not_there_is_refused(folder):
    only_past = [path for path in find_windows([folder]) if path.stem < "7"]
    with pytest.raises(ConfigError, match="asks for first clips, and there are none .* set data: first_clip: 0"):
        batches_of(only_past, batch_size=2, first_clip=0.3, seed=1)
    batches_of(only_past, batch_size=2, first_clip=0.0, seed=1)


def test_in_silent_clips_nothing_is_heard_but_a_hiss():
    silent, spoken = (find_footage(replace(CONFIG, num_videos=25))[i].open().sound for i in (24, 23))
    loud, quiet = (np.abs(sound.read(0, 16_000)).max() for sound in (spoken, silent))
    assert 0 < quiet < 0.01 < 0.1 < loud


def test_windows_encoded_together_are_those_encoded_alone(windows, encoders, tmp_path):
    alone, items, config = windows["continuing"]
    together = replace(config, windows=tmp_path, encode_batch=2)
    precompute(items, encoders, together)
    for path, window in zip(find_windows([tmp_path]), alone, strict=True):
        torch.testing.assert_close(load_window(path).latents, window.latents, atol=4e-3, rtol=0)

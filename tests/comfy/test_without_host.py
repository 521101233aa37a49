"""The nodes' own arithmetic, with the host faked as thinly as possible."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2v_core.media.video_io import read_timed_frames
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.ops import layers

from ..core.checkpoints_tiny import CONFIG, randomised
from ..core.dub_footage import noise_pictures, write_video
from .fake_host import load_pack, part
from .server import ROOT

T, SIDE = 3, 8


@pytest.fixture
def pack(monkeypatch, tmp_path):
    return load_pack(monkeypatch, tmp_path)


def directions(seed=0, batch=1):
    g = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(batch, *shape, generator=g)

    return {
        "reference_latent": noise(16, 1, SIDE, SIDE),
        "audio_embed": noise(25, CONFIG.audio_dim, 4 * T),
        "reference_motion": noise(16, 19, SIDE, SIDE),
        "control_video": noise(16, T, SIDE, SIDE),
    }


def both_transformers(pack):
    """The core's, and the host's form of it with the same weights."""
    plain = randomised(WanS2VTransformer(CONFIG))
    kind = part(pack, "nodes.transformer").HostTransformer
    config = part(pack, "s2v_core.config").TransformerConfig(**{f: getattr(CONFIG, f) for f in CONFIG.__slots__})
    hosted = kind(s2v_config=config, operations=layers, dtype=torch.float32, num_heads=99)
    hosted.load_state_dict(plain.state_dict())
    return plain, hosted.requires_grad_(False)


def test_the_extension_lists_the_nodes_that_the_schema_file_pins(pack):
    nodes = asyncio.run(pack.comfy_entrypoint().get_node_list())
    pinned = json.loads((ROOT / "tests" / "comfy" / "schema.json").read_text(encoding="utf-8"))
    found = {node.define_schema().node_id: [i.id for i in node.define_schema().inputs] for node in nodes}
    assert found == {name: [entry.split(":")[0] for entry in spec["inputs"]] for name, spec in pinned.items()}
    assert pack.WEB_DIRECTORY == "./web"


def test_every_input_has_a_tooltip_and_numbers_have_a_range(pack):
    for node in asyncio.run(pack.comfy_entrypoint().get_node_list()):
        for entry in node.define_schema().inputs:
            assert entry.tooltip.endswith("."), (node, entry.id)
            if isinstance(getattr(entry, "default", None), float) or hasattr(entry, "step"):
                assert entry.min <= entry.default <= entry.max


def test_a_schema_marks_the_inputs_that_it_calls_advanced_and_no_others(pack):
    host = part(pack, "nodes.host")
    inputs = [host.io.Int.Input(name) for name in ("seed", "skip", "side")]
    schema = host.schema(node_id="Any", inputs=inputs, advanced=("side", "skip"))
    assert [one.extra_dict.get("advanced", False) for one in schema.inputs] == [False, True, True]


def test_the_hosts_call_gives_the_cores_velocity(pack):
    plain, hosted = both_transformers(pack)
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()
    clip = plain.prepare_clip(
        prompt=plain.prepare_prompt(context), num_latents=T, reference_latent=given["reference_latent"],
        audio_features=given["audio_embed"], motion_latents=given["reference_motion"],
        pose_latents=given["control_video"],
    )  # fmt: skip
    timestep = torch.tensor([800.0])
    assert torch.allclose(hosted(x, timestep, context, {}, **given), plain(x, timestep, clip), atol=1e-5)


def test_int8_layers_multiply_as_the_cores_and_round_again_what_a_lora_adds(pack):
    eight_bit = part(pack, "s2v_core.ops.eight_bit")
    arithmetic, weight, bias = eight_bit.EightBit("int8"), torch.randn(32, 64), torch.randn(32)
    of_the_host = {"weight_function": (), "bias_function": ()}
    known = {"arithmetic": arithmetic, "formats": {"weight": "INT8"}, **of_the_host}
    layer = type("Linear", (part(pack, "nodes.int8").Int8Linear,), known)(64, 32)
    packed, scale = arithmetic.pack(weight)
    layer.load_state_dict({"weight": packed, "scale": scale, "bias": bias})
    core = eight_bit.EightBitLinear(packed, scale=scale, bias=layer.bias, arithmetic=arithmetic)
    x, added = torch.randn(2, 20, 64), torch.randn(32, 64)
    assert torch.equal(layer(x), core(x)) and arithmetic.way(core, x.flatten(0, 1)) is not None
    layer.patch = lambda weight: weight + added
    expected = torch.nn.functional.linear(x, weight + added, bias)
    assert 0 < (layer(x) - expected).norm() < 0.02 * expected.norm()


def test_constants_are_made_once_a_run_and_branch_and_again_after_it(pack, monkeypatch):
    _, hosted = both_transformers(pack)
    made = []
    prepare = hosted.prepare_clip
    monkeypatch.setattr(hosted, "prepare_clip", lambda **kwargs: made.append(1) or prepare(**kwargs))
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()

    def step(uuid, **extra):
        hosted(x, torch.tensor([500.0]), context, {"uuids": [uuid]} if uuid else {}, **given, **extra)
        return len(made)

    assert [step("a"), step("b"), step("a"), step("b")] == [1, 2, 2, 2]
    hosted.constants.forget()
    assert step("a") == 3
    assert step("a", weights_change=True) == 4, "hooks change weights between steps"
    assert step(None) == 5, "a host that does not say what is what gets nothing stale"


def test_a_context_window_hears_and_sees_its_own_stretch(pack):
    _, hosted = both_transformers(pack)
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()
    options = {"context_window": SimpleNamespace(index_list=[1, 2])}
    inside = hosted(x[:, :, 1:], torch.tensor([500.0]), context, options, **given)
    cut = {**given, "audio_embed": given["audio_embed"][..., 4:], "control_video": given["control_video"][:, :, 1:]}
    assert torch.equal(inside, hosted(x[:, :, 1:], torch.tensor([500.0]), context, {}, **cut))


def test_a_replaced_block_is_skipped_and_told_its_number(pack):
    _, hosted = both_transformers(pack)
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()
    seen = []

    def skip(args, more):
        seen.append(args["img"].shape)
        return {"img": args["img"]}

    options = {"patches_replace": {"dit": {("double_block", 1): skip}}}
    skipped = hosted(x, torch.tensor([500.0]), context, options, **given)
    keep = {"patches_replace": {"dit": {("double_block", 1): lambda args, more: more["original_block"](args)}}}
    plain = hosted(x, torch.tensor([500.0]), context, {}, **given)
    assert len(seen) == 1 and not torch.allclose(skipped, plain)
    assert torch.equal(hosted(x, torch.tensor([500.0]), context, keep, **given), plain)


def test_cancel_is_heard_before_every_block(pack, monkeypatch):
    _, hosted = both_transformers(pack)
    asked = []
    monkeypatch.setattr(part(pack, "nodes.host"), "stop_if_asked", lambda: asked.append(1))
    x, context = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim)
    hosted(x, torch.tensor([500.0]), context, {}, **directions())
    assert len(asked) == CONFIG.num_layers


def test_without_a_reference_picture_the_error_says_what_to_connect(pack):
    _, hosted = both_transformers(pack)
    given = {**directions(), "reference_latent": None}
    with pytest.raises(Exception, match="connect an image"):
        hosted(torch.randn(1, 16, T, SIDE, SIDE), torch.tensor([5.0]), torch.randn(1, 5, CONFIG.text_dim), {}, **given)


def test_our_schedules_tell_the_model_whole_timesteps_and_others_leave_them(pack):
    told = part(pack, "nodes.transformer").told_timestep
    options = {"s2v_timesteps": ((999.67, 999.0), (937.4, 937.0))}
    assert told(torch.tensor([937.4]), options).tolist() == [937.0]
    assert told(torch.tensor([500.25]), options).tolist() == [500.25]
    assert told(torch.tensor([937.4]), {}).tolist() == pytest.approx([937.4])


@pytest.mark.parametrize(
    "start, end, expected", [(0, 0, 22050 * 3), (1, 2, 22050), (0.25, 1.0, 16537), (2.5, 9, 11025)]
)
def test_trimming_never_buys_a_sample_more_than_was_asked_for(pack, start, end, expected):
    sound = part(pack, "nodes.sound")
    audio = {"waveform": torch.randn(1, 2, 22050 * 3), "sample_rate": 22050}
    heard, driving = sound.trimmed(audio, None, start=start, end=end, offset=0)
    assert heard.samples.shape[1] == driving.samples.shape[1] == expected


def test_the_driving_sound_is_moved_and_what_is_heard_is_not(pack):
    sound = part(pack, "nodes.sound")
    waveform = torch.arange(1.0, 1001)[None, None] / 1000
    heard, driving = sound.trimmed({"waveform": waveform, "sample_rate": 1000}, None, start=0, end=0, offset=0.1)
    assert torch.equal(heard.samples, waveform[0])
    assert driving.samples[0, :100].abs().max() == 0 and torch.equal(driving.samples[:, 100:], waveform[0, :, :900])
    _, earlier = sound.trimmed({"waveform": waveform, "sample_rate": 1000}, None, start=0, end=0, offset=-0.1)
    assert torch.equal(earlier.samples[:, :900], waveform[0, :, 100:]) and earlier.samples[0, 900:].abs().max() == 0


def test_driving_audio_of_another_rate_lasts_as_long_as_what_is_heard(pack):
    sound = part(pack, "nodes.sound")
    audio = {"waveform": torch.randn(1, 1, 44100 * 2), "sample_rate": 44100}
    vocals = {"waveform": torch.randn(1, 1, 16000), "sample_rate": 16000}
    heard, driving = sound.trimmed(audio, vocals, start=0.5, end=2, offset=0)
    assert heard.seconds == driving.seconds == 1.5
    assert torch.equal(driving.samples[:, :8000], vocals["waveform"][0, :, 8000:])


def test_driving_audio_of_another_rate_buys_no_frame(pack):
    sound = part(pack, "nodes.sound")
    audio = {"waveform": torch.randn(1, 1, 16000), "sample_rate": 16000}
    vocals = {"waveform": torch.randn(1, 1, 22050), "sample_rate": 22050}
    heard, driving = sound.trimmed(audio, vocals, start=0.25, end=1.0, offset=0)
    assert driving.seconds > heard.seconds == 0.75 and sound.DrivingSound(heard, driving, None).num_frames(16.0) == 12


def test_start_behind_end_is_refused_with_both_values(pack):
    sound = part(pack, "nodes.sound")
    with pytest.raises(Exception, match=r"start 2 s and end 1 s leave nothing of 3\.00 s"):
        sound.trimmed({"waveform": torch.randn(1, 1, 3000), "sample_rate": 1000}, None, start=2, end=1, offset=0)


def test_cleaning_is_for_the_driving_sound_and_not_for_the_heard_one(pack):
    sound = part(pack, "nodes.sound")
    hiss = torch.cat([0.5 * torch.randn(1, 16000), 0.001 * torch.randn(1, 16000)], dim=1).clamp(-1, 1)
    waveform = sound.Waveform(samples=hiss, sample_rate=16000)
    plain, gated = (sound.DrivingSound(waveform, waveform, None, noise_gate=gate) for gate in (0.0, -45.0))
    assert plain.sound.read(24000, 32000).any() and not gated.sound.read(24000, 32000).any()
    assert torch.equal(gated.heard.samples, hiss) and plain.heard_digest() == gated.heard_digest()


def test_the_voice_is_isolated_in_the_driving_sound_and_not_in_the_heard_one(pack):
    sound, isolation = part(pack, "nodes.sound"), part(pack, "s2v_core.conditioning.isolation")
    waveform = part(pack, "nodes.waveform").read_wav(ROOT / "samples" / "song.wav")
    plain, voice = (sound.DrivingSound(waveform, waveform, None, isolate=isolate) for isolate in (False, True))
    alone = isolation.isolate_voice(plain.sound)
    assert np.array_equal(voice.sound.read(0, 32000), alone.read(0, 32000))
    assert not np.allclose(voice.sound.read(0, 32000), plain.sound.read(0, 32000), atol=1e-2)
    assert torch.equal(voice.heard.samples, waveform.samples)


def test_whole_number_samples_become_fractions_of_full_scale(pack):
    sound = part(pack, "nodes.sound")
    waveform = torch.tensor([[[-32768, 0, 16384]]], dtype=torch.int16)
    for one in (waveform, waveform[0], waveform[0, 0]):   # some nodes leave the batch out, and the channels
        assert sound.waveform_of({"waveform": one, "sample_rate": 8000}).samples.tolist() == [[-1.0, 0.0, 0.5]]


def test_a_silent_video_that_gives_no_sound_is_named(pack):
    with pytest.raises(part(pack, "s2v_core.errors").MediaError, match="the video that it comes from is silent"):
        part(pack, "nodes.waveform").waveform_of(None)


def test_a_grey_image_is_a_picture_too_and_what_is_beyond_colour_is_left_out(pack):
    picture_of, grey = part(pack, "nodes.pictures").picture_of, torch.rand(2, 4, 6, 1)
    expected = np.asarray(picture_of(grey.expand(-1, -1, -1, 3)))
    assert np.array_equal(np.asarray(picture_of(grey)), expected) and expected.shape == (4, 6, 3)
    assert np.array_equal(np.asarray(picture_of(torch.cat([grey.expand(-1, -1, -1, 3), 1 - grey], dim=-1))), expected)


@pytest.mark.parametrize("shape", [(4, 6), (1, 4, 6), (1, 1, 4, 6), (1, 4, 6, 1)])
def test_a_mask_is_read_in_every_shape_that_nodes_give(pack, shape):
    mask = torch.zeros(4, 6)
    mask[:, 3:] = 1
    (picture,) = part(pack, "nodes.pictures").mask_pictures(mask.view(shape))
    drawn = part(pack, "nodes.voices").stand("Ann", mask.view(shape), (0.0, 0.0, 1.0, 1.0)).mask
    dubbed = part(pack, "nodes.dubbing")._mask_of(mask.view(shape), 6, 4).at(0, 0.0)
    assert np.array_equal(np.asarray(picture), 255 * mask) and drawn.tobytes() == picture.tobytes()
    assert np.array_equal(dubbed, mask.bool())


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (6,), (0, 4, 6)])
def test_what_is_no_mask_is_refused_with_its_shape(pack, shape):
    with pytest.raises(Exception, match=rf"the mask input is \[{', '.join(map(str, shape))}\]"):
        part(pack, "nodes.pictures").mask_pictures(torch.ones(shape))


@pytest.fixture
def shot(tmp_path):
    """A second of footage."""
    return write_video(tmp_path / "shot.mp4", noise_pictures(25), 25)


def frames_of(path):
    return np.stack([frame.picture() for frame in read_timed_frames(path)]).astype(int)


@pytest.mark.parametrize("left, seen", [
    ({"start_time": 0.2}, np.s_[5:]), ({"duration": 0.38}, np.s_[:10]),
    ({"crop": (8, 16, 32, 40)}, np.s_[:, 16:56, 8:40]),
    ({"start_time": 0.2, "duration": 0.38, "crop": (0, 0, 64, 32)}, np.s_[5:15, :32]),
])  # fmt: skip
def test_what_a_node_trimmed_or_cropped_of_a_video_is_what_is_read(pack, shot, left, seen):
    host, video_path = part(pack, "nodes.host"), part(pack, "nodes.job").video_path
    video = host.InputImpl.VideoFromFile(str(shot), **left)
    path, expected = video_path(video), frames_of(shot)[seen]
    assert frames_of(path).shape == expected.shape and np.abs(frames_of(path) - expected).mean() < 6
    assert path.parent == host.temp_folder() and video_path(video) == path, "named by its content"
    assert list(host.temp_folder().iterdir()) == [path]


def test_a_whole_file_is_read_where_it_is_and_other_videos_from_the_temporary_folder(pack, shot, tmp_path):
    host, video_path = part(pack, "nodes.host"), part(pack, "nodes.job").video_path
    assert video_path(host.video_file(shot)) == shot and not host.temp_folder().exists()
    in_memory = video_path(host.InputImpl.VideoFromFile(BytesIO(shot.read_bytes())))
    assert in_memory.parent == host.temp_folder() and in_memory.read_bytes() == shot.read_bytes()
    made = video_path(host.InputImpl.VideoFromComponents(noise_pictures(5), 25))
    assert made.parent == host.temp_folder() and len(frames_of(made)) == 5


def test_a_video_that_cannot_be_written_is_told_in_a_sentence_and_leaves_nothing(pack, shot):
    host, errors = part(pack, "nodes.host"), part(pack, "s2v_core.errors")
    video = host.InputImpl.VideoFromFile(str(shot), start_time=0.2)
    video.save_to = lambda path, metadata=None: open(path, "wb").close() or int("no frames")
    with pytest.raises(errors.MediaError, match="cannot be written to a file .*no frames"):
        part(pack, "nodes.job").video_path(video)
    assert list(host.temp_folder().iterdir()) == []


def test_a_file_that_is_no_video_is_left_to_whoever_reads_it(pack, tmp_path):
    (tmp_path / "shot.mp4").write_bytes(b"no video")
    path = part(pack, "nodes.job").video_path(part(pack, "nodes.host").video_file(tmp_path / "shot.mp4"))
    assert path == tmp_path / "shot.mp4"


def test_cancel_is_heard_while_frames_are_interpolated_and_nothing_is_left_of_them(pack, monkeypatch, shot, tmp_path):
    run, waveform, asked = part(pack, "nodes.run"), part(pack, "nodes.waveform"), []

    def asked_to_stop():
        asked.append(None)
        assert len(asked) < 3, "Cancel"

    monkeypatch.setattr(run.host, "stop_if_asked", asked_to_stop)
    heard = waveform.Waveform(samples=torch.rand(1, 16000), sample_rate=16000)
    sound = SimpleNamespace(heard=heard, num_frames=lambda fps: round(fps))
    job = SimpleNamespace(settings=SimpleNamespace(fps=25.0))
    take = SimpleNamespace(segments=[shot], folder=tmp_path)
    with pytest.raises(AssertionError, match="Cancel"):
        run._join(take, job, sound, 30.0, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["shot.mp4"]


def test_a_fingerprint_sees_numbers_inside_anything_and_not_where_they_are_kept(pack):
    digest = part(pack, "nodes.run").digest

    def things(value):
        return [{"b": torch.full((2,), value), "a": (1, "x", None)}, SimpleNamespace(strength=value)]

    assert digest(things(0.5)) == digest(things(0.5)) != digest(things(0.25))
    assert digest([torch.nn.Linear(2, 2)]) == digest([torch.nn.Linear(2, 2)]), "a model is looked at apart"


def guidance(scale, eta=1.0):
    """As the host's guidance nodes make it: a widget's value is in nothing but the function itself."""
    average = None
    seen = {}

    def patch(args, weight=eta):
        nonlocal average
        average = args if average is None else scale * average + weight * args
        seen["last"] = average
        return average

    return patch


class Kept:
    def __init__(self, scale):
        self.scale = scale

    def patch(self, args):
        return self.scale * args


@pytest.mark.parametrize("made", [
    guidance, lambda value: guidance(1.0, value), lambda value: partial(guidance(1.0), weight=value),
    lambda value: Kept(value).patch, lambda value: partial(torch.add if value == 0.5 else torch.mul, 1.0),
    lambda value: (lambda args: args + 0.5) if value == 0.5 else (lambda args: args + 0.25),
    lambda value: [{"dit": {("double_block", 3): guidance(value)}}],
    lambda value: torch.float16 if value == 0.5 else torch.bfloat16,
])  # fmt: skip
def test_a_fingerprint_sees_the_values_that_a_function_was_made_with(pack, made):
    digest = part(pack, "nodes.run").digest
    assert digest(made(0.5)) == digest(made(0.5)) != digest(made(0.25))


def test_a_fingerprint_stays_when_a_function_keeps_numbers_of_a_run(pack):
    digest, patch = part(pack, "nodes.run").digest, guidance(0.5)
    before = digest([patch])
    patch(3.0)
    assert digest([patch]) == digest([guidance(0.5)]) == before


def test_a_function_that_holds_itself_has_a_fingerprint(pack):
    def again(scale):
        def patch(args):
            return patch(args - 1) if args else scale

        return patch

    digest = part(pack, "nodes.run").digest
    assert digest(again(0.5)) == digest(again(0.5)) != digest(again(0.25))


def test_the_order_of_a_set_is_not_in_a_fingerprint(pack):
    """That of words, such as the keys that the host's LoRAs keep, changes with every start of a Python."""
    digest = part(pack, "nodes.run").digest
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other) and digest(one) == digest(other) != digest({0, 16})


def test_what_is_attached_to_a_model_in_any_way_is_in_its_identity(pack, monkeypatch):
    run = part(pack, "nodes.run")
    monkeypatch.setattr(run.models, "transformer_of", lambda model: torch.nn.Linear(2, 2, bias=False))
    monkeypatch.setattr(run, "_first_numbers", lambda weights: [])

    def identity(**attached):
        plain = {"backup": {}, "patches": {}, "object_patches": {}, "wrappers": {}, "model_options": {}}
        return run.model_identity(SimpleNamespace(**{**plain, **attached}))

    def differently(value):
        options = {"sampler_cfg_function": guidance(value)}
        inside = {"transformer_options": {"patches_replace": {"dit": {("double_block", 1): guidance(value)}}}}
        return [
            identity(model_options=options), identity(model_options=inside),
            identity(wrappers={"outer_sample": {"any": [guidance(value)]}}),
            identity(object_patches={"latent_format": Kept(value)}),
        ]  # fmt: skip

    identities = [identity(), *differently(0.5), *differently(0.25)]
    assert len(set(identities)) == len(identities) and differently(0.5) == identities[1:5]


class Previewer:
    """Gives a picture, or shows it itself and gives nothing, as VideoHelperSuite's does."""

    made = 0

    def __init__(self, answer):
        self.answer = answer
        Previewer.made += 1

    def decode_latent_to_preview_image(self, kind, latents):
        return self.answer


@pytest.mark.parametrize("answer, shown", [(("JPEG", "a picture", 512), "a picture"), (None, None)])
def test_a_previewer_is_made_once_a_run_and_may_show_its_pictures_itself(pack, monkeypatch, answer, shown):
    host, run = part(pack, "nodes.host"), part(pack, "nodes.run")
    monkeypatch.setattr(host.latent_preview, "get_previewer", lambda device, latent_format: Previewer(answer))
    monkeypatch.setattr(Previewer, "made", 0)
    model = SimpleNamespace(load_device="cpu", model=SimpleNamespace(latent_format=None))
    progress = run.RunProgress(model, clips=2, steps=3, finished=1, node_id=None)
    for done in (1, 2, 3):
        progress.denoised(torch.zeros(1, 16, 2, 8, 8))
        progress.step(done, 3)
    previews = [preview and preview[1] for _, preview in progress._bar._bar.shown]
    assert previews == [None, shown, shown, shown] and Previewer.made == 1


def test_a_missing_model_file_names_its_folder_and_its_download_page(pack, monkeypatch, tmp_path):
    """The host looks into older folders too, and into the output folder."""
    node, host = part(pack, "nodes.loaders").LoadModel, part(pack, "nodes.host")
    answer = node.validate_inputs("gone.gguf")
    assert "gone.gguf" in answer and str(tmp_path) in answer and "https://huggingface.co" in answer
    folders = ["/models/unet", "/models/diffusion_models", "/output/diffusion_models"]
    monkeypatch.setattr(host, "model_folders", lambda folder: folders)
    answer = node.validate_inputs("gone.gguf")
    assert "put it into /models/diffusion_models," in answer and "unet" not in answer and "/output" not in answer
    (tmp_path / "here.gguf").touch()
    assert node.validate_inputs("here.gguf") is True
    assert "here.gguf" in part(pack, "nodes.host").model_names("diffusion_models"), "the host does not list GGUF files"


def test_a_model_name_that_another_node_gives_is_looked_for_in_the_run(pack):
    """The host checks a prompt with None in place of what is linked."""
    node = part(pack, "nodes.loaders").LoadModel
    assert node.validate_inputs(None) is True
    for name in ("gone.gguf", "", None):
        with pytest.raises(part(pack, "s2v_core.errors").CheckpointError, match=f"There is no {name or 'wan2.2_s2v'}"):
            node.execute(name, "default")


def test_a_size_is_both_sides_or_none(pack):
    job = part(pack, "nodes.job")
    picture = part(pack, "nodes.pictures").picture_of(torch.rand(1, 90, 160, 3))
    size = job.video_size(picture, 0, 0, 832 * 480)
    assert size.width > size.height and size.width * size.height <= 832 * 480
    assert str(job.video_size(picture, 96, 64, 128 * 128)) == "96x64"
    with pytest.raises(Exception, match="set both width and height"):
        job.video_size(picture, 64, 0, 128 * 128)


def test_a_model_whose_noise_levels_a_node_has_changed_to_another_kind_is_refused(pack):
    """As ModelSamplingDiscrete and its like do: they have no shift."""
    sampling = part(pack, "nodes.sampling")
    model = SimpleNamespace(get_model_object=lambda name: SimpleNamespace(sigma_data=1.0))
    ours = sampling.Sampling(seed=0, steps=1, cfg=1.0, sampler="euler", scheduler="wan")
    with pytest.raises(part(pack, "s2v_core.errors").ConfigError, match="such as ModelSamplingDiscrete .* remove it"):
        sampling.Levels.of(model, ours)


def test_values_that_are_on_no_list_are_refused(pack):
    sampling = part(pack, "nodes.sampling")
    with pytest.raises(Exception, match="sampler_name 'magic' is not known"):
        sampling.Sampling(seed=0, steps=1, cfg=1.0, sampler="magic", scheduler="wan")

"""Several speakers in the nodes, with the host faked as thinly as possible."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.conditioning.audio import SoundFeatures

from ..core.checkpoints_tiny import CONFIG
from .fake_host import load_pack, part
from .test_without_host import SIDE, T, both_transformers, directions

RATE, FPS = 16000, 16.0
BOXES = {"left": (0.0, 0.0, 0.5, 1.0), "right": (0.5, 0.0, 1.0, 1.0), "all": (0.0, 0.0, 1.0, 1.0)}


@pytest.fixture
def pack(monkeypatch, tmp_path):
    return load_pack(monkeypatch, tmp_path)


def encode(waveform):
    """Two layers of three values: the mean of 400 samples, every 320, and its square."""
    means = waveform.unfold(1, 400, 320).mean(2)[..., None].expand(-1, -1, 3)
    return torch.cat([means, means**2])


def tone(seconds, height, rate=RATE):
    """A square wave of so many samples up, then as many down."""
    times = torch.arange(round(seconds * rate))
    return {"waveform": (height * (1 - 2 * (times // 50 % 2)))[None, None], "sample_rate": rate}


def noise(seconds, seed=0):
    samples = torch.rand(1, 1, round(seconds * RATE), generator=torch.Generator().manual_seed(seed)) - 0.5
    return {"waveform": samples, "sample_rate": RATE}


def speakers(pack, *said):
    """Voices (audio, box, start, end) and their mix."""
    voices = part(pack, "nodes.voices")
    spoken = tuple(voices.speak(audio, None, BOXES[box], start=start, end=end) for audio, box, start, end in said)
    return spoken, voices.mixed(spoken)


def driving(pack, spoken, heard, *, start=0.0, end=0.0, offset=0.0, **cleaning):
    sound = part(pack, "nodes.sound")
    trimmed = sound.trimmed(heard.as_audio(), None, start=start, end=end, offset=offset)
    return sound.DrivingSound(*trimmed, encode, speakers=spoken, speakers_later=offset - start, **cleaning)


def cast(pack, sound):
    size = part(pack, "s2v_core.geometry").VideoSize(width=128, height=64)
    return sound.cast(Image.new("RGB", (256, 128)), size)


def test_voices_are_mixed_each_from_its_moment_and_one_alone_is_heard_as_it_is(pack):
    spoken, mix = speakers(pack, (tone(1.0, 0.25), "left", 0.0, 0.0), (tone(2.0, 0.5), "right", 0.5, 1.5))
    assert mix.samples.shape[1] == 1.5 * RATE
    heard = mix.samples[0, 1010::8000]   # before, twice within both, and in the second alone
    assert heard.tolist() == pytest.approx([0.25, 0.75, 0.5], abs=1e-3)
    alone, mix = speakers(pack, (tone(1.0, 0.25, 22050), "left", 0.0, 0.0))
    assert mix is alone[0].waveform and mix.sample_rate == 22050


def test_a_speaker_all_over_the_picture_hears_what_a_plain_run_hears(pack):
    voice = noise(2.0)
    spoken, mix = speakers(pack, (voice, "all", 0.0, 0.0))
    with_speaker, plain = driving(pack, spoken, mix), driving(pack, (), mix)
    _, (track,) = with_speaker.shared_out(cast(pack, with_speaker), FPS)
    assert torch.equal(track.audio.window(-3, 45), plain.features(FPS).window(-3, 45))
    assert torch.equal(track.mask, torch.ones(8, 16))


def test_nobody_else_hears_a_voice_and_before_and_after_it_there_is_silence(pack):
    spoken, mix = speakers(pack, (noise(1.0), "left", 0.0, 0.0), (noise(1.0, 1), "right", 1.0, 0.0))
    sound = driving(pack, spoken, mix)
    rest, (first, second) = sound.shared_out(cast(pack, sound), FPS)
    silence = rest.window(0, 32)
    assert torch.equal(first.audio.window(16, 32), silence[..., 16:])
    assert torch.equal(second.audio.window(0, 16), silence[..., :16])
    assert not torch.equal(first.audio.window(0, 16), silence[..., :16])
    assert first.mask[:, :7].all() and not first.mask[:, 9:].any()
    assert torch.allclose(first.mask + second.mask, torch.ones(8, 16))


@pytest.mark.parametrize("start, offset, first, stop", [(0.0, 0.0, 8, 24), (0.25, 0.0, 4, 20), (0.75, 0.0, 0, 12),
                                                        (0.0, 0.25, 12, 28), (1.6, 0.0, 0, 0)])  # fmt: skip
def test_voices_are_trimmed_and_moved_with_what_is_heard(pack, start, offset, first, stop):
    spoken, mix = speakers(pack, (noise(2.0, 2), "left", 0.0, 0.0), (noise(1.0), "right", 0.5, 0.0))
    sound = driving(pack, spoken, mix, start=start, offset=offset)
    rest, (_, track) = sound.shared_out(cast(pack, sound), FPS)
    is_said = [not torch.equal(track.audio.window(i, i + 1), rest.window(i, i + 1)) for i in range(32)]
    assert [i for i, said in enumerate(is_said) if said] == list(range(first, stop))
    voice = SoundFeatures(spoken[1].sound, encode, fps=FPS).window(0, 16)
    if start < 0.5:
        assert torch.allclose(track.audio.window(first, stop), voice, atol=1e-5)


def test_a_noise_gate_is_for_every_voice(pack):
    hiss = torch.cat([noise(1.0)["waveform"], 0.001 * noise(1.0)["waveform"]], dim=2)
    spoken, mix = speakers(pack, ({"waveform": hiss, "sample_rate": RATE}, "left", 0.0, 0.0))
    (person,) = cast(pack, driving(pack, spoken, mix, noise_gate=-45.0)).people
    assert person.voices[0].sound.read(0, RATE).any() and not person.voices[0].sound.read(RATE + 8000, 2 * RATE).any()


def test_voices_in_one_region_are_one_person(pack):
    spoken, mix = speakers(
        pack, (noise(1.0), "left", 0.0, 0.0), (noise(1.0), "right", 0.0, 0.0), (noise(1.0), "left", 2.0, 0.0)
    )
    people = cast(pack, driving(pack, spoken, mix)).people
    assert [person.name for person in people] == ["speaker 1, 3", "speaker 2"]


def test_a_mask_is_where_the_speaker_is_and_must_have_the_pictures_shape(pack):
    voices = part(pack, "nodes.voices")
    mask = torch.zeros(1, 128, 256)
    mask[..., 128:] = 1
    spoken = voices.speak(noise(1.0), mask, BOXES["left"], start=0.0, end=0.0)
    (person,) = cast(pack, driving(pack, (spoken,), spoken.waveform)).people
    assert person.mask[:, 9:].all() and not person.mask[:, :7].any()
    wrong = voices.speak(noise(1.0), mask[..., :200], BOXES["left"], start=0.0, end=0.0)
    with pytest.raises(Exception, match="mask of speaker 1 is 200x128 and the picture 256x128"):
        cast(pack, driving(pack, (wrong,), spoken.waveform))
    with pytest.raises(Exception, match="black all over"):
        voices.speak(noise(1.0), 0 * mask, BOXES["left"], start=0.0, end=0.0)


def test_a_box_and_times_that_cannot_be_are_refused(pack):
    with pytest.raises(Exception, match="from its left to its right"):
        part(pack, "nodes.voices").speak(noise(1.0), None, (0.5, 0.0, 0.5, 1.0), start=0.0, end=0.0)
    with pytest.raises(Exception, match="a voice ends after it begins; got 2 to 1 s"):
        part(pack, "nodes.voices").speak(noise(1.0), None, BOXES["all"], start=2.0, end=1.0)


def test_speakers_and_driving_audio_are_not_both_taken(pack):
    spoken, mix = speakers(pack, (noise(1.0), "left", 0.0, 0.0))
    with pytest.raises(Exception, match="disconnect driving_audio or speakers"):
        part(pack, "nodes.audio").AudioEncode.execute(
            mix.as_audio(), None, 0.0, 0.0, 0.0, driving_audio=noise(1.0), speakers=spoken
        )


def test_who_speaks_when_is_found_where_the_sound_is_connected(pack, monkeypatch):
    voices, turn = part(pack, "nodes.voices"), part(pack, "s2v_core.speakers").Turn
    asked = []

    def find(sound, names, num_voices):
        asked.append((float(sound.duration), list(names), num_voices))
        return turn(start=0.0, end=1.25, speaker="anna"), turn(start=1.25, end=2.0, speaker="voice 3")

    monkeypatch.setattr(voices, "find_turns", find)
    spoken = [voices.stand(name, None, BOXES["all"]) for name in ("anna", "")]
    out = part(pack, "nodes.speaker").WhoSpeaks.execute(spoken, "not read", audio=noise(2.0), voices=3)
    assert asked == [(2.0, ["anna", "2"], 3)]
    shared, text = out.args
    assert [[(t.start, t.end) for t in one.turns] for one in shared] == [[(0.0, 1.25)], []]
    assert "0.00,1.25,anna" in text and "# 1.25,2.00,voice 3" in text


def test_a_storyboard_says_clip_by_clip_whose_the_sound_is(pack):
    timeline, types = part(pack, "s2v_core.video.timeline"), part(pack, "s2v_core.types")
    board, voices = part(pack, "s2v_core.video.storyboard"), part(pack, "nodes.voices")
    plans = timeline.plan_clips(64, types.ClipSettings(frames=16), seed=0, start_from_image=True)
    scenes = board.parse_storyboard("clip 2 [speaker anna] she talks\nclip 4 [speaker anna+ben]")
    _, scripts = board.direct(plans, board.place_scenes(scenes, plans, FPS))
    spoken = tuple(voices.stand(name, None, BOXES[box]) for name, box in (("anna", "left"), ("ben", "right")))
    sound = driving(pack, spoken, part(pack, "nodes.waveform").waveform_of(noise(4.0)))
    told = [script.speaker for script in scripts]
    anna, ben = cast(pack, sound).directed(plans, told, FPS).people
    assert [[(t.start, t.end) for t in one.turns] for one in (anna, ben)] == [[(1.0, 3.0), (3.0, 4.0)], [(3.0, 4.0)]]
    with pytest.raises(Exception, match="the storyboard's speaker 'ben' is nobody's name; the speakers are anna"):
        cast(pack, driving(pack, spoken[:1], sound.heard)).directed(plans, told, FPS)
    turned = voices.share_out(spoken, "0,1,anna")
    with pytest.raises(Exception, match="leave out one of the two"):
        cast(pack, driving(pack, turned, sound.heard)).directed(plans, told, FPS)


def test_a_face_of_the_picture_is_a_place_too_and_a_mask_comes_first(pack, monkeypatch):
    voices, core = part(pack, "nodes.voices"), part(pack, "s2v_core.cast")
    monkeypatch.setattr(core, "_face_box", lambda face, picture: ((face.number - 1) * 128, 0, face.number * 128, 128))
    one = voices.stand("anna", None, BOXES["left"], 2)
    shared = voices.share_out([one, voices.stand("ben", None, BOXES["all"], 1)], "0,1,anna")
    anna, ben = cast(pack, driving(pack, shared, part(pack, "nodes.waveform").waveform_of(noise(1.0)))).people
    assert anna.mask[:, 9:].all() and not anna.mask[:, :7].any() and ben.mask[:, :7].all()
    mask = torch.zeros(1, 128, 256)
    mask[..., :128] = 1
    masked = voices.speak(noise(1.0), mask, BOXES["all"], start=0.0, end=0.0, face=2)
    (person,) = cast(pack, driving(pack, (masked,), masked.waveform)).people
    assert person.mask[:, :7].all() and not person.mask[:, 9:].any()


# ---- in the model ----------------------------------------------------------------------------------------------------


def two_voices(seed=3):
    g = torch.Generator().manual_seed(seed)
    masks = torch.zeros(1, 2, T, SIDE, SIDE)
    masks[:, 0, ..., :4], masks[:, 1, ..., 4:] = 1, 0.5
    return torch.randn(1, 2, 25, CONFIG.audio_dim, 4 * T, generator=g), masks


def test_the_hosts_call_gives_the_cores_velocity_of_several_speakers(pack):
    plain, hosted = both_transformers(pack)
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()
    features, masks = two_voices()
    clip = plain.prepare_clip(
        prompt=plain.prepare_prompt(context), num_latents=T, reference_latent=given["reference_latent"],
        audio_features=given["audio_embed"], motion_latents=given["reference_motion"],
        pose_latents=given["control_video"], speaker_features=features, speaker_masks=masks,
    )  # fmt: skip
    timestep = torch.tensor([800.0])
    said = {"speaker_features": features.movedim(1, 3), "speaker_masks": masks}
    found = hosted(x, timestep, context, {}, **given, **said)
    assert torch.allclose(found, plain(x, timestep, clip), atol=1e-5)
    assert not torch.allclose(found, hosted(x, timestep, context, {}, **given), atol=1e-3)


def test_a_context_window_hears_its_own_stretch_of_every_speaker(pack):
    _, hosted = both_transformers(pack)
    x, context, given = torch.randn(1, 16, T, SIDE, SIDE), torch.randn(1, 5, CONFIG.text_dim), directions()
    features, masks = two_voices()
    given["control_video"] = None
    options = {"context_window": SimpleNamespace(index_list=[1, 2])}
    said = {"speaker_features": features.movedim(1, 3), "speaker_masks": masks}
    inside = hosted(x[:, :, 1:], torch.tensor([500.0]), context, options, **given, **said)
    given["audio_embed"] = given["audio_embed"][..., 4:]
    cut = {"speaker_features": features.movedim(1, 3)[..., 4:], "speaker_masks": masks[:, :, 1:]}
    assert torch.equal(inside, hosted(x[:, :, 1:], torch.tensor([500.0]), context, {}, **given, **cut))


def test_the_negative_side_hears_nobody(pack):
    features, masks = two_voices()
    inputs = SimpleNamespace(
        reference_latent=torch.zeros(1, 16, 1, SIDE, SIDE), motion_latents=None, pose_latents=None,
        audio_features=torch.ones(1, 25, CONFIG.audio_dim, 4 * T), speaker_features=features, speaker_masks=masks,
    )  # fmt: skip
    positive, negative = part(pack, "nodes.sampling").clip_keys(inputs)
    assert torch.equal(positive["speaker_features"], features.movedim(1, 3)) and positive["speaker_masks"] is masks
    assert not negative["audio_embed"].any() and not set(negative) & {"speaker_features", "speaker_masks"}


# ---- one sound of several people -------------------------------------------------------------------------------------


def people(pack, text, *names):
    """The named people from left to right, who share a sound out as the text says."""
    voices = part(pack, "nodes.voices")
    boxes = [(i / len(names), 0.0, (i + 1) / len(names), 1.0) for i in range(len(names))]
    return voices.share_out([voices.stand(name, None, box) for name, box in zip(names, boxes, strict=True)], text)


def test_a_shared_sound_is_heard_by_whose_turn_it_is_and_by_nobody_else(pack):
    heard = part(pack, "nodes.waveform").waveform_of(noise(2.0))
    sound = driving(pack, people(pack, "0,1,anna\n0:01,0:02,ben", "anna", "ben"), heard)
    rest, (anna, ben) = sound.shared_out(cast(pack, sound), FPS)
    whole, silence = sound.features(FPS).window(0, 32), rest.window(0, 32)
    assert not torch.equal(whole, silence)
    for track, (first, stop) in ((anna, (0, 16)), (ben, (16, 32))):
        found = track.audio.window(0, 32)
        assert torch.equal(found[..., first:stop], whole[..., first:stop])
        quiet = [frame for frame in range(32) if not first <= frame < stop]
        assert torch.equal(found[..., quiet], silence[..., quiet])
    assert anna.mask[:, :7].all() and ben.mask[:, 9:].all() and not anna.mask[:, 9:].any()


def test_turns_are_trimmed_and_moved_with_the_sound(pack):
    heard = part(pack, "nodes.waveform").waveform_of(noise(2.0))
    spoken = people(pack, "0.5,1,anna\n1,2,ben", "anna", "ben")
    sound = driving(pack, spoken, heard, start=0.75, offset=0.25)
    (anna, ben) = cast(pack, sound).people
    assert [(turn.start, turn.end) for person in (anna, ben) for turn in person.turns] == [(0, 0.5), (0.5, 1.5)]
    assert (anna.name, ben.name) == ("speaker anna", "speaker ben")


@pytest.mark.parametrize("text, names, error", [
    ("0,1,carl", ("anna", "ben"), "there is no speaker 'carl'; the speakers are anna, ben"),
    ("0,1,anna\n2,1,ben", ("anna", "ben"), "line 2 of the text of S2V Who Speaks: a turn ends after it begins"),
    ("0,1,anna", ("anna", "anna"), "two speakers are called anna"),
    ("", ("anna",), "says of nobody when they speak"),
])  # fmt: skip
def test_turns_that_cannot_be_are_refused(pack, text, names, error):
    with pytest.raises(Exception, match=error):
        people(pack, text, *names)


def test_voices_and_people_of_one_sound_are_not_mixed_and_people_need_their_turns(pack):
    voices, hear = part(pack, "nodes.voices"), part(pack, "nodes.audio").AudioEncode.execute
    person = voices.stand("anna", None, BOXES["left"])
    voice = voices.speak(noise(1.0), None, BOXES["right"], start=0.0, end=0.0)
    with pytest.raises(Exception, match="either S2V Speaker nodes"):
        voices.mixed((person, voice))
    with pytest.raises(Exception, match="no audio of their own"):
        voices.share_out((person, voice), "0,1,anna")
    with pytest.raises(Exception, match="switch isolate_voice off"):
        hear(noise(1.0), None, 0.0, 0.0, 0.0, speakers=(voice,), isolate_voice=True)
    sound = driving(pack, (person,), voice.waveform)
    with pytest.raises(Exception, match="nobody says when speaker anna speaks"):
        cast(pack, sound).directed((), (), FPS)


def test_the_vocals_of_a_shared_sound_are_shared_out_in_its_place(pack):
    spoken = people(pack, "0,1,anna", "anna")
    made = part(pack, "nodes.audio").AudioEncode.execute(
        noise(1.0), None, 0.0, 0.0, 0.0, driving_audio=noise(1.0, 5), speakers=spoken
    )
    sound = made.args[0]
    assert np.allclose(sound.sound.read(0, RATE), noise(1.0, 5)["waveform"][0, 0].numpy(), atol=1e-3)


def test_the_hosts_own_model_is_told_to_hear_one_sound(pack):
    with pytest.raises(Exception, match="load the model with S2V Load Model"):
        part(pack, "nodes.model").check_speakers(SimpleNamespace(model=object()))


def test_a_dub_takes_one_voice(pack):
    dub = part(pack, "nodes.dubbing").dub_video
    others = dict.fromkeys(
        ("model", "model_area", "positive", "negative", "vae", "mask", "side", "sampling", "node_id")
    )
    with pytest.raises(Exception, match="dub one person after the other"):
        dub(None, **others, sound=SimpleNamespace(speakers=("somebody",)))

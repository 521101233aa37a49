"""A storyboard: what is read, at which clip a scene begins, and what reaches the model there."""

from __future__ import annotations

import pytest
import torch

from s2v_core.errors import ConfigError
from s2v_core.types import ClipSettings, Direction
from s2v_core.video.generate import generate_clips
from s2v_core.video.storyboard import Scene, Script, direct, parse_storyboard, place_scenes, read_storyboard, unseen
from s2v_core.video.timeline import plan_clips

from .tiny_codec import TinyCodec, TinyDenoiser, tiny_conditioning

FPS = 16.0


def plans(seconds=20.0, seed=5, start_from_image=False):
    return plan_clips(round(seconds * FPS), ClipSettings(), seed=seed, start_from_image=start_from_image)


def clips_of(text, **options):
    return [one.clip for one in place_scenes(parse_storyboard(text), plans(**options), FPS)]


def scripts_of(text, **options):
    return direct(plans(**options), place_scenes(parse_storyboard(text), plans(**options), FPS))


def test_lines_begin_with_a_time_or_a_clip_and_may_change_more_than_the_prompt():
    text = "# nothing\n\na woman talks\n0:12.5  she laughs\n0:20 [seed 7, guidance=6.5, image b.png] she cries\n" \
        "1:02:03 [seed 9]\nclip 5: she leaves\nClip 16 16:9, in colour"  # fmt: skip
    assert parse_storyboard(text) == (
        Scene(prompt="a woman talks"),
        Scene(at=12.5, prompt="she laughs"),
        Scene(at=20.0, seed=7, guidance_scale=6.5, image="b.png", prompt="she cries"),
        Scene(at=3723.0, seed=9),
        Scene(clip=5, prompt="she leaves"),
        Scene(clip=16, prompt="16:9, in colour"),
    )


def test_lines_without_times_are_a_clip_each():
    assert [scene.clip for scene in parse_storyboard("one\ntwo\n\nthree")] == [1, 2, 3]
    assert scripts_of("one\ntwo")[1] == (Script(prompt="one"), *[Script(prompt="two")] * 4)


def test_yaml_says_the_same_and_pictures_lie_beside_it(tmp_path):
    path = tmp_path / "scenes.yaml"
    path.write_text("- prompt: a woman talks\n- {at: 0:12.5, prompt: she laughs}\n"
                    "- {at: 1:02, seed: 7, guidance: 6, image: b.png}\n- {clip: 30, prompt: she leaves}\n")  # fmt: skip
    text = tmp_path / "scenes.txt"
    text.write_text("a woman talks\n0:12.5 she laughs\n1:02 [seed 7, guidance 6, image b.png]\nclip 30 she leaves\n")
    assert read_storyboard(path) == read_storyboard(text)
    assert read_storyboard(path)[2].image == str(tmp_path / "b.png")


@pytest.mark.parametrize(
    "time, clip",
    [("0:00", 0), ("0:02.40", 0), ("0:02.41", 1), ("0:04.81", 1), ("0:07.31", 1), ("0:07.32", 2), ("0:19.9", 4)],
)
def test_a_scene_begins_at_the_clip_that_begins_nearest_to_its_time(time, clip):
    """Clips begin at 0, 77, 157, 237 and 317 of 320 frames."""
    assert clips_of(f"{time} she laughs") == [clip]


def test_a_video_that_starts_from_the_picture_has_its_clips_elsewhere():
    assert clips_of("0:02.45 x\n0:02.6 y", start_from_image=True) == [0, 1]


def test_what_a_scene_does_not_say_stays_and_seeds_count_from_its_first_clip():
    directed, scripts = scripts_of("[guidance 6] a\n0:05 [seed 90] b\n0:15 [image c.png]")
    assert [plan.seed for plan in directed] == [5, 90, 91, 92, 93]
    assert scripts == (
        Script(prompt="a", guidance_scale=6.0),
        *[Script(prompt="b", guidance_scale=6.0)] * 2,
        *[Script(prompt="b", guidance_scale=6.0, image="c.png")] * 2,
    )


def test_a_scene_may_say_whose_the_sound_is_from_there_on():
    _, scripts = scripts_of("a\n0:05 [speaker anna] b\n0:15 [speaker anna+ben]")
    assert [script.speaker for script in scripts] == [None, "anna", "anna", "anna+ben", "anna+ben"]


def test_without_a_storyboard_nothing_is_told_and_seeds_stay():
    directed, scripts = direct(plans(), ())
    assert directed == plans() and set(scripts) == {Script()}


def test_scenes_that_will_not_be_seen_are_named():
    scenes = parse_storyboard("a\n0:05 b\n0:05.5 c\n0:33 d\nclip 9 e")
    placed = place_scenes(scenes, plans(), FPS)
    assert [one.clip for one in placed] == [0, 1, 1] and scripts_of("a\n0:05 b\n0:05.5 c")[1][1].prompt == "c"
    said = " / ".join(unseen(scenes, placed))
    assert "the prompt of 0:05.00 is not seen: that of 0:05.50" in said
    assert "0:33.00 (d) lies past the end" in said and "clip 9 (e) lies past the end" in said


def test_the_plan_says_where_a_scene_begins_and_where_it_was_asked_to():
    first, second = place_scenes(parse_storyboard("a\n0:05.5 [seed 3] b"), plans(), FPS)
    assert str(first) == "from clip 1 (0:00.00): a"
    assert str(second) == "from clip 2 (0:04.81, asked for at 0:05.50): b, seed 3"
    *_, last = place_scenes(parse_storyboard("a\nclip 2 [guidance 5] b"), plans(), FPS)
    assert str(last) == "from clip 2 (0:04.81): b, guidance 5"


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "is empty"),
        ("# only this", "is empty"),
        ("0:1x she laughs", "line 1: '0:1x' is no time, such as 0:12.5"),
        ("a\n0:75 b", "line 2: '0:75' is no time"),
        ("0:05 a\n0:02 b", "in order: 0:02.00 comes after 0:05.00"),
        ("0:05 a\n0:05 b", "in order"),
        ("clip 3 a\nclip 2 b", "in order: clip 2 comes after clip 3"),
        ("clip 0 a", "counted from 1"),
        ("a\n0:05 b\nc", "scene 3 (c) has no time: begin it with one, such as 0:12.5, or with a clip"),
        ("- at: 0:05\n  prompt: a", "line 1: this is YAML, which is read from files named .yaml"),
        ("- {at: 0:05, prompt: a}", "line 1: this is YAML"),
        ("a\n12.5 b", "line 2: a time has minutes here: write 0:12.50 for 12.5"),
        ("0 a\n20 b", "line 1: a time has minutes here: write 0:00.00 for 0"),
        ("0:05", "line 1: a scene changes something"),
        ("0:05 [sed 3] a", "must hold seed, guidance, image"),
        ("0:05 [seed] a", "must hold seed, guidance, image"),
        ("0:05 [seed 3 a", "is not closed"),
        ("0:05 [seed 1.5] a", "seed must be a whole number, got '1.5'"),
        ("0:05 [guidance lots] a", "guidance must be a number, got 'lots'"),
        ("0:05 [guidance 0] a", "guidance must be 1 or more"),
    ],
)
def test_a_bad_line_is_one_sentence_that_names_it(text, says):
    with pytest.raises(ConfigError) as error:
        parse_storyboard(text)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("- {at: [", "line 1 is not YAML"),
        ("prompt: a", "must hold a list of scenes"),
        ("[]", "must hold a list of scenes"),
        ("- a", "scene 1 of"),
        ("- {prompt: a}\n- {at: 3, promt: b}", "scene 2 of"),
        ("- {at: yes, prompt: a}", "'True' is no time"),
        ("- {at: 3, clip: 2, prompt: a}", "not both"),
        ("- {at: -3, prompt: a}", "0 or more, got -3"),
        ("- {seed: 1.5}", "seed must be a whole number, got 1.5"),
        ("- {guidance: true}", "guidance must be a number, got True"),
    ],
)
def test_a_bad_yaml_file_is_one_sentence_that_names_it(tmp_path, text, says):
    path = tmp_path / "scenes.yml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_storyboard(path)
    assert says in str(error.value) and "scenes.yml" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the storyboard .*gone.txt: No such file"):
        read_storyboard(tmp_path / "gone.txt")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_storyboard(tmp_path / "picture.png")


def test_each_clip_is_given_its_own_prompt_picture_and_guidance():
    settings = ClipSettings(frames=8, motion_frames=9)
    codec, denoiser = TinyCodec(), TinyDenoiser()
    base = tiny_conditioning(codec)
    told = [
        Direction(prompt_embeds=base.prompt_embeds + i, reference_latent=base.reference_latent - i, guidance_scale=g)
        for i, g in enumerate((None, 2.0, 3.0))
    ]
    conditioning = type(base)(**{name: getattr(base, name) for name in base.__slots__} | {"directions": tuple(told)})
    clips = plan_clips(20, settings, seed=5, start_from_image=False)
    list(generate_clips(clips, conditioning, denoiser, codec, settings, on_step=lambda *_: None))
    assert [inputs.index for inputs in denoiser.seen] == [0, 1, 2]
    for inputs, expected in zip(denoiser.seen, told, strict=True):
        assert torch.equal(inputs.prompt_embeds, expected.prompt_embeds)
        assert torch.equal(inputs.reference_latent, expected.reference_latent)
        assert inputs.guidance_scale == expected.guidance_scale

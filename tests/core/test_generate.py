"""The loop over clips: what each clip sees, what is kept, and that a continued run is the same run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.config import VAEConfig
from s2v_core.errors import Interrupted
from s2v_core.models.vae import WanVAE, decoder_receptive_field
from s2v_core.types import ClipSettings, MotionMemory, PoseControl
from s2v_core.video.generate import Past, decode_again, generate_clips, pose_weights
from s2v_core.video.memory import after, blank_memory, memory_from_image
from s2v_core.video.timeline import plan_clips

from .tiny_codec import REACH, SIZE, FramePoses, TinyCodec, TinyDecoder, TinyDenoiser, tiny_conditioning

SETTINGS = ClipSettings(frames=8, motion_frames=9)


def nothing(done, total):
    pass


def run(num_frames=30, *, start_from_image=False, pose=None, denoiser=None, codec=None, **options):
    codec = codec or TinyCodec()
    conditioning = tiny_conditioning(codec, pose=pose)
    codec.encoded.clear()
    plans = plan_clips(num_frames, SETTINGS, seed=5, start_from_image=start_from_image)
    options = {"on_step": nothing, **options}
    return generate_clips(plans, conditioning, denoiser or TinyDenoiser(), codec, SETTINGS, **options)


def video_of(clips):
    return torch.cat([clip.frames for clip in clips], dim=2)


def past_of(clips, *, memory=True):
    return Past(
        num_clips=len(clips),
        memory=clips[-1].memory if memory else None,
        latents=lambda i: clips[i].latents,
    )


@pytest.mark.parametrize("continuity", ["exact", "carry"])
@pytest.mark.parametrize("start_from_image", [False, True])
@pytest.mark.parametrize("num_frames", [1, 4, 5, 13, 30])
def test_the_video_has_exactly_the_frames_that_were_asked_for(num_frames, start_from_image, continuity):
    video = video_of(run(num_frames, start_from_image=start_from_image, continuity=continuity))
    assert video.shape == (1, 3, num_frames, SIZE.height, SIZE.width)
    assert video.dtype == torch.float32 and video.abs().max() <= 1


def test_kept_frames_are_the_last_of_a_decode_behind_what_came_before():
    """The reference's decode in one piece: [reference | latents] for the first clip, [motion | latents] later."""
    codec, denoiser = TinyCodec(), TinyDenoiser()
    clips = list(run(30, denoiser=denoiser, codec=codec))
    for clip, inputs in zip(clips, denoiser.seen, strict=True):
        opening = inputs.reference_latent if clip.plan.index == 0 else inputs.motion_latents
        decoded = torch.cat(list(TinyDecoder().decode(torch.cat([opening, clip.latents], dim=2))), dim=2)
        new = decoded[:, :, -SETTINGS.frames :]
        stop = SETTINGS.frames - clip.plan.trim_end
        assert torch.equal(clip.frames, new[:, :, clip.plan.trim_start : stop])


def test_a_clip_sees_the_frames_before_it_and_the_first_sees_none():
    denoiser, codec = TinyDenoiser(), TinyCodec()
    clips = list(run(30, denoiser=denoiser, codec=codec))
    memory = blank_memory(SIZE, SETTINGS.motion_frames)
    for clip, inputs in zip(clips, denoiser.seen, strict=True):
        if clip.plan.index == 0:
            assert inputs.motion_latents is None
        else:
            assert torch.equal(inputs.motion_latents, codec.encode(memory.frames))
        memory = after(memory, clip.frames)
        assert torch.equal(clip.memory.frames, memory.frames)


def test_a_video_from_the_picture_remembers_the_picture():
    denoiser, codec = TinyDenoiser(), TinyCodec()
    next(iter(run(30, start_from_image=True, denoiser=denoiser, codec=codec)))
    picture = tiny_conditioning(codec).reference_frames
    memory = memory_from_image(picture, SETTINGS.motion_frames).frames
    assert torch.equal(memory[:, :, -6:], picture.expand(-1, -1, 6, -1, -1)) and not memory[:, :, :-6].any()
    assert torch.equal(denoiser.seen[0].motion_latents, codec.encode(memory))


def test_a_memory_shorter_than_the_still_is_the_still():
    picture = torch.rand(1, 3, 1, 8, 8)
    assert torch.equal(memory_from_image(picture, 5).frames, picture.expand(-1, -1, 5, -1, -1))


@pytest.mark.parametrize("num_seen", [1, 3, 9, 20])
def test_memory_holds_the_newest_frames_oldest_first(num_seen):
    before = torch.arange(9.0).view(1, 1, 9, 1, 1)
    seen = 100 + torch.arange(float(num_seen)).view(1, 1, -1, 1, 1)
    expected = torch.cat([before, seen], dim=2)[:, :, -9:]
    assert torch.equal(after(MotionMemory(frames=before), seen).frames, expected)


def test_memory_does_not_keep_a_whole_clip_alive():
    clip = torch.zeros(1, 3, 100, 4, 4)
    kept = after(MotionMemory(frames=torch.zeros(1, 3, 9, 4, 4)), clip).frames
    assert kept.untyped_storage().nbytes() == kept.numel() * 4


def test_each_denoised_frame_hears_the_sound_of_its_own_time():
    denoiser = TinyDenoiser()
    clips = list(run(30, denoiser=denoiser))
    for clip, inputs in zip(clips, denoiser.seen, strict=True):
        heard = inputs.audio_features[0, 0, 0].mul(100).round().int().tolist()
        assert heard == list(range(clip.plan.start_frame, clip.plan.stop_frame))
        assert heard[clip.plan.trim_start] == clip.plan.first_kept


def test_pose_latents_follow_the_clip_and_hold_the_first_frame_in_the_warm_up():
    denoiser, pose, codec = TinyDenoiser(), FramePoses(), TinyCodec()
    list(run(20, pose=pose, denoiser=denoiser, codec=codec))
    assert pose.asked == [(0, 5), (5, 13), (13, 21)]
    frames = [[0, 0, 0, 0, 0, 1, 2, 3, 4], [5, *range(5, 13)], [13, *range(13, 21)]]
    for numbers, inputs in zip(frames, denoiser.seen, strict=True):
        values = torch.tensor(numbers).float().div(1000).view(1, 1, -1, 1, 1).expand(1, 3, -1, SIZE.height, SIZE.width)
        assert torch.equal(inputs.pose_latents, codec.encode(values)[:, :, 1:])


def test_nothing_is_encoded_or_decoded_in_vain(monkeypatch):
    codec, decoded = TinyCodec(), []

    def counting(self, latents, original=TinyDecoder.decode):
        decoded.append(latents.shape[2])
        return original(self, latents)

    monkeypatch.setattr(TinyDecoder, "decode", counting)
    list(run(5 + 8 + 2, codec=codec))
    assert codec.encoded == [9, 9]                  # no past for clip 0, no encode after the last clip, no pose
    assert decoded == [1, 2, 3, 2, 3, 1]            # reference or motion, then the clip; the last one stops at its end
    assert codec.streams == 3


def test_carry_decodes_the_reference_once_and_then_only_new_frames():
    codec = TinyCodec()
    clips = list(run(30, codec=codec, continuity="carry"))
    assert codec.streams == 1
    reference = tiny_conditioning(codec).reference_latent
    stream = torch.cat([reference, *(clip.latents for clip in clips)], dim=2)
    decoded = torch.cat(list(TinyDecoder().decode(stream)), dim=2)
    assert torch.equal(video_of(clips), decoded[:, :, 4:34])


def test_noise_comes_from_the_seed_of_the_clip_alone():
    drawn = []

    class Listening(TinyDenoiser):
        def __call__(self, inputs, noise, on_step):
            drawn.append(noise)
            return super().__call__(inputs, noise, on_step)

    list(run(30, denoiser=Listening()))
    for r, noise in enumerate(drawn):
        assert torch.equal(noise, torch.randn(1, 16, 2, 10, 8, generator=torch.Generator().manual_seed(5 + r)))


@pytest.mark.parametrize("continuity", ["exact", "carry"])
@pytest.mark.parametrize("start_from_image", [False, True])
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("reach", [REACH, None])
def test_a_continued_run_is_bit_equal_to_an_uninterrupted_one(continuity, start_from_image, memory, reach):
    options = {"start_from_image": start_from_image, "continuity": continuity}
    whole = list(run(40, **options))
    for num_finished in range(1, len(whole) + 1):
        past = past_of(whole[:num_finished], memory=memory)
        denoiser = TinyDenoiser()
        rest = list(run(40, past=past, decoder_reach=reach, denoiser=denoiser, **options))
        assert len(denoiser.seen) == len(rest) == len(whole) - num_finished   # nothing is sampled twice
        for ours, theirs in zip(rest, whole[num_finished:], strict=True):
            assert ours.plan == theirs.plan
            assert torch.equal(ours.frames, theirs.frames) and torch.equal(ours.latents, theirs.latents)
            assert torch.equal(ours.memory.frames, theirs.memory.frames)


@pytest.mark.parametrize("continuity", ["exact", "carry"])
def test_clips_decoded_again_from_their_latents_are_the_same(continuity):
    whole = list(run(30, continuity=continuity))
    codec = TinyCodec()
    again = decode_again(
        [clip.plan for clip in whole], tiny_conditioning(codec), codec, SETTINGS,
        continuity=continuity, latents=lambda i: whole[i].latents,
    )  # fmt: skip
    assert torch.equal(video_of(again), video_of(whole))


def test_a_continued_exact_run_decodes_no_finished_clip_again():
    codec = TinyCodec()
    whole = list(run(40))
    next(iter(run(40, past=past_of(whole[:3]), codec=codec)))
    assert codec.streams == 1 and codec.encoded == [9]


def test_a_continued_carry_run_decodes_only_what_the_decoder_can_still_see():
    whole, fed = list(run(80, continuity="carry")), []
    past = Past(num_clips=8, memory=whole[7].memory, latents=lambda i: fed.append(i) or whole[i].latents)
    rest = list(run(80, continuity="carry", past=past, decoder_reach=REACH))
    assert fed == [6, 7] and torch.equal(rest[0].frames, whole[8].frames)


def test_a_decoder_may_give_its_frames_in_any_pieces(monkeypatch):
    whole = video_of(run(22))

    def in_ones(self, latents, original=TinyDecoder.decode):
        for frames in original(self, latents):
            yield from frames.split(1, dim=2)

    def all_at_once(self, latents, original=TinyDecoder.decode):
        yield torch.cat(list(original(self, latents)), dim=2)

    for pieces in (in_ones, all_at_once):
        with monkeypatch.context() as patch:
            patch.setattr(TinyDecoder, "decode", pieces)
            assert torch.equal(video_of(run(22)), whole)


def test_an_interruption_reaches_the_caller_and_earlier_clips_are_out():
    done = []

    def on_step(step, total):
        if len(done) == 2 and step == 2:
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        for clip in run(40, on_step=on_step):
            done.append(clip)
    assert len(done) == 2


def test_the_loop_leaves_gradients_as_it_found_them():
    clips = run(20)
    next(clips)
    assert torch.is_grad_enabled()
    assert not next(clips).frames.requires_grad


# ---- with the real autoencoder, small ----------------------------------------------------------------------------

VAE = VAEConfig(dim=4, num_res_blocks=1)
LONG = ClipSettings(frames=32, motion_frames=9)


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WanVAE(VAE).eval()


def vae_run(vae, num_clips, **options):
    plans = plan_clips(num_clips * LONG.frames - 25, LONG, seed=5, start_from_image=False)
    assert len(plans) == num_clips
    return generate_clips(plans, tiny_conditioning(vae), TinyDenoiser(), vae, LONG, on_step=nothing, **options)


@pytest.fixture(scope="module")
def carried(vae):
    return list(vae_run(vae, 6, continuity="carry"))


@pytest.fixture(scope="module")
def exact(vae):
    return list(vae_run(vae, 3))


@pytest.mark.parametrize("reach, is_enough", [(decoder_receptive_field(VAE), True), (1, False)])
def test_a_carried_decode_continues_bit_for_bit_from_as_far_back_as_the_decoder_sees(vae, carried, reach, is_enough):
    fed = []
    past = Past(num_clips=5, memory=carried[4].memory, latents=lambda i: fed.append(i) or carried[i].latents)
    rest = list(vae_run(vae, 6, continuity="carry", past=past, decoder_reach=reach))
    assert fed == ([1, 2, 3, 4] if is_enough else [4])
    assert torch.equal(rest[0].frames, carried[5].frames) == is_enough


@pytest.mark.parametrize("memory", [True, False])
def test_an_exact_run_continues_bit_for_bit_with_the_real_autoencoder(vae, exact, memory):
    rest = list(vae_run(vae, 3, past=past_of(exact[:2], memory=memory)))
    assert torch.equal(rest[0].frames, exact[2].frames) and torch.equal(rest[0].latents, exact[2].latents)


def test_carrying_on_parts_from_decoding_anew_at_the_second_clip(carried, exact):
    assert torch.equal(carried[0].frames, exact[0].frames)
    assert not torch.equal(carried[1].frames, exact[1].frames)


# ---- pose control ---------------------------------------------------------------------------------------------------


def posed_inputs(control, num_frames=30, *, start_from_image=False):
    """What each clip of 8 frames is told, and the poses that were asked for."""
    codec, denoiser, poses = TinyCodec(), TinyDenoiser(), FramePoses()
    conditioning = replace(tiny_conditioning(codec, pose=poses), pose_control=control)
    plans = plan_clips(num_frames, SETTINGS, seed=5, start_from_image=start_from_image)
    list(generate_clips(plans, conditioning, denoiser, codec, SETTINGS, on_step=nothing))
    return denoiser.seen, poses.asked


def test_a_poses_strength_multiplies_what_it_adds():
    full, _ = posed_inputs(PoseControl())
    half, _ = posed_inputs(PoseControl(strength=0.5))
    for one, other in zip(full, half, strict=True):
        assert torch.equal(0.5 * one.pose_latents, other.pose_latents)
    assert all(inputs.pose_latents is None for inputs in posed_inputs(PoseControl(strength=0))[0])


def test_a_pose_is_followed_between_its_start_and_its_end_alone():
    whole, _ = posed_inputs(PoseControl(), start_from_image=True)
    some, asked = posed_inputs(PoseControl(start_frame=10, stop_frame=22), start_from_image=True)
    followed = [s.pose_latents[0, 0, :, 0, 0].ne(0).tolist() for s in some[1:3]]
    assert followed == [[False, True], [True, False]]   # frames 12 to 19: of 8 to 11 and 20 to 23 only two are followed
    assert some[0].pose_latents is None and some[3].pose_latents is None and asked == [(8, 16), (16, 24)]
    assert torch.equal(some[1].pose_latents[:, :, 1], whole[1].pose_latents[:, :, 1])


def test_a_pose_from_the_beginning_holds_in_the_warm_up_too():
    plan = plan_clips(30, SETTINGS, seed=0, start_from_image=False)[0]
    assert plan.start_frame < 0 and pose_weights(PoseControl(), plan).tolist() == [1.0, 1.0]
    assert pose_weights(PoseControl(start_frame=2), plan).tolist() == [0.0, 1.0]


# ---- continuity -----------------------------------------------------------------------------------------------------


def darker(plan, frames):
    return frames.sub_(0.25 * (plan.index + 1)).clamp_(-1, 1)


@pytest.mark.parametrize("continuity", ["exact", "carry"])
def test_graded_frames_are_shown_and_remembered_and_a_continued_run_is_the_same(continuity):
    plain = list(run(30, continuity=continuity))
    graded = list(run(30, continuity=continuity, grade=darker))
    assert torch.equal(graded[0].frames, (plain[0].frames - 0.25).clamp(-1, 1))
    assert torch.equal(graded[0].memory.frames[:, :, -1], graded[0].frames[:, :, -1])
    assert not torch.equal(graded[1].latents, plain[1].latents)
    for memory in (True, False):
        rest = list(run(30, continuity=continuity, grade=darker, past=past_of(graded[:2], memory=memory)))
        assert torch.equal(video_of(rest), video_of(graded[2:]))


def test_the_first_window_can_hold_the_picture_all_along():
    codec, denoiser = TinyCodec(), TinyDenoiser()
    conditioning = tiny_conditioning(codec)
    settings = replace(SETTINGS, still_frames=SETTINGS.motion_frames)
    plans = plan_clips(8, settings, seed=5, start_from_image=True)
    list(generate_clips(plans, conditioning, denoiser, codec, settings, on_step=nothing))
    still = conditioning.reference_frames.expand(-1, -1, SETTINGS.motion_frames, -1, -1)
    assert torch.equal(denoiser.seen[0].motion_latents, codec.encode(still))

"""The objective: what is drawn, what is dropped, and that loss and gradients are those of the formula."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2v_core.conditioning.text import byte_tokenizer, encode_prompt
from s2v_core.training.config import ObjectiveConfig
from s2v_core.training.objective import Draw, draw, draw_sigmas, mix, swap_prompts, velocity_loss
from s2v_core.training.student import checkpoint_blocks, compile_blocks

from .tiny import tiny_batch, tiny_student

CONFIG = ObjectiveConfig(face_weight=2.0, mouth_weight=3.0, mouth_loss=0.5)


def by_the_book(student, batch, drawn, config):
    """The documented objective, sample by sample, in plain autograd."""
    model, total, weights, mouth, boxes = student.transformer, 0, 0, 0, 0
    for i in range(batch.latents.shape[0]):
        one = slice(i, i + 1)
        embeds = student.negative if drawn.drops_prompt[i] else batch.prompt_embeds[one]
        sound = batch.audio_features[one] * (0 if drawn.drops_sound[i] else 1)
        reference = batch.reference_latent[one] * (0 if drawn.drops_reference[i] else 1)
        motion = batch.motion_latents
        if motion is not None:
            motion = motion[one] + (0 if drawn.motion_noise is None else drawn.motion_noise[one])
            motion = motion if drawn.keeps_far else torch.cat([0 * motion[:, :, :16], motion[:, :, 16:]], 2)
        clip = model.prepare_clip(
            prompt=model.prepare_prompt(embeds), num_latents=batch.latents.shape[2], reference_latent=reference,
            audio_features=sound, motion_latents=motion, num_near=drawn.num_near,
            pose_latents=None if batch.pose_latents is None else batch.pose_latents[one],
            **{name: None if drawn.drops_sound[i] or getattr(batch, name) is None else getattr(batch, name)[one]
               for name in ("speaker_features", "speaker_masks")},
        )  # fmt: skip
        s = drawn.sigmas[i].to(batch.latents)
        clean, noise = batch.latents[one], drawn.noise[one]
        v = model(s * noise + (1 - s) * clean, 1000 * drawn.sigmas[one], clip)
        error = ((v - (noise - clean)) ** 2).mean(1)[0]
        w = 1.0
        if batch.face_mask is not None:
            box = batch.mouth_mask[i]
            w = (1 + (config.face_weight - 1) * batch.face_mask[i]) * (1 + (config.mouth_weight - 1) * box)
            mouth, boxes = mouth + (box * error).sum(), boxes + box.sum()
        total, weights = total + (w * error).sum(), weights + (w * torch.ones_like(error)).sum()
    loss = total / weights
    return loss + config.mouth_loss * mouth / boxes if batch.face_mask is not None else loss


def gradients(student, loss):
    student.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def drawn_for(batch, **changes):
    drawn = draw(batch, replace(CONFIG, drop_near=0, drop_far=0), np.random.default_rng(3))
    drops = {name: torch.tensor(flags) for name, flags in changes.items() if isinstance(flags, list)}
    return replace(drawn, **{**changes, **drops})


CASES = {
    "everything at once": ({"pose": True}, {"drops_prompt": [True, False], "drops_sound": [False, True]}),
    "first clip": ({"motion": False}, {"drops_reference": [True, False]}),
    "no masks": ({"masks": False}, {}),
    "two speakers": ({"speakers": 2}, {"drops_sound": [False, True]}),
    "near motion dropped": ({}, {"num_near": 1}),
    "far motion dropped": ({}, {"num_near": 2, "keeps_far": False}),
}


def prepared(student, how):
    if how == "checkpointed":
        checkpoint_blocks(student.transformer)
    if how == "compiled":
        compile_blocks(student.transformer, backend="aot_eager")
    return student


@pytest.mark.parametrize("how", ["plain", "checkpointed", "compiled"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_the_formula(case, how):
    options, changes = CASES[case]
    batch = tiny_batch(dtype=torch.float64, **options)
    drawn = drawn_for(batch, **changes)
    expected = tiny_student(dtype=torch.float64)
    by_book = by_the_book(expected, batch, drawn, CONFIG)
    student = prepared(tiny_student(dtype=torch.float64), how)
    loss = velocity_loss(student(batch, drawn), batch, drawn, CONFIG)
    # Layer mix, time embedding, rope and head compute in float32 whatever the weights are, and the formula sums sample
    # by sample: hence some float32 roundings (6e-8 each) and not 1e-12.
    torch.testing.assert_close(loss, by_book, atol=1e-7, rtol=1e-6)
    ours, theirs = gradients(student, loss), gradients(expected, by_book)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        scale = gradient.abs().max().item()
        off = (ours[name] - gradient).abs().max().item()
        assert off <= 1e-5 * scale + 1e-9, f"{name} is off by {off:.1e}, where its largest gradient is {scale:.1e}"


@pytest.mark.parametrize("learns_text", [False, True])
def test_gradients_reach_every_weight(learns_text):
    student = tiny_student(learns_text=learns_text)
    batch = tiny_batch(pose=True, embeds=not learns_text)
    drawn = drawn_for(batch)
    found = gradients(student, velocity_loss(student(batch, drawn), batch, drawn, CONFIG))
    without = [name for name, p in student.named_parameters() if name not in found or not found[name].abs().max() > 0]
    assert without == []


def test_the_audio_modules_can_be_trained_alone():
    student = tiny_student()
    student.choose_trained("audio")
    assert {name.split(".")[1] for name in student.trained()} == {"casual_audio_encoder", "audio_injector"}
    batch = tiny_batch()
    drawn = drawn_for(batch)
    found = gradients(student, velocity_loss(student(batch, drawn), batch, drawn, CONFIG))
    assert found.keys() == student.trained().keys()


def test_sigma_zero_is_clean_and_sigma_one_is_noise():
    clean, noise = torch.randn(2, 16, 2, 8, 8), torch.randn(2, 16, 2, 8, 8)
    mixed = mix(clean, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(mixed[0], clean[0]) and torch.equal(mixed[1], noise[1])


def test_the_right_velocity_costs_nothing():
    batch = tiny_batch()
    drawn = drawn_for(batch)
    assert velocity_loss(drawn.noise - batch.latents, batch, drawn, CONFIG) == 0


def test_an_error_in_the_mouth_costs_more_than_one_beside_it():
    batch = tiny_batch()
    mask = torch.zeros(2, 2, 8, 8)
    mask[:, :, 4:6, 3:5] = 1
    batch = replace(batch, face_mask=None, mouth_mask=mask)
    drawn = drawn_for(batch)
    right = drawn.noise - batch.latents
    inside, beside = right.clone(), right.clone()
    inside[..., 4, 3] += 1
    beside[..., 0, 0] += 1
    config = ObjectiveConfig(mouth_weight=3.0)
    assert velocity_loss(inside, batch, drawn, config) == 3 * velocity_loss(beside, batch, drawn, config) > 0


@pytest.mark.parametrize("sampling", ["logit-normal", "uniform"])
def test_shift_raises_the_noise_levels_as_it_does_at_sampling(sampling):
    config = ObjectiveConfig(sigma_sampling=sampling, shift=1.0)
    plain = draw_sigmas(4000, config, np.random.default_rng(0))
    shifted = draw_sigmas(4000, replace(config, shift=3.0), np.random.default_rng(0))
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert 0.48 < plain.median() < 0.52 and plain.min() > 0 and plain.max() < 1


def test_drops_are_as_frequent_as_asked():
    config = ObjectiveConfig(
        drop_prompt=0.2, drop_sound=0.1, drop_both=0.1, drop_reference=0.3, drop_near=0.4, drop_far=0.2
    )
    batch = tiny_batch(size=1, masks=False)
    draws = [draw(batch, config, np.random.default_rng([1, i])) for i in range(1500)]

    def share(of):
        return float(np.mean([bool(of(d)) for d in draws]))

    for expected, of in (
        (1 - 0.8 * 0.9, lambda d: d.drops_prompt),
        (1 - 0.9 * 0.9, lambda d: d.drops_sound),
        (0.3, lambda d: d.drops_reference),
        (0.4, lambda d: d.num_near < 2),
        (0.2, lambda d: not d.keeps_far),
    ):
        assert abs(share(of) - expected) < 0.05
    assert {d.num_near for d in draws} == {0, 1, 2}
    both = share(lambda d: bool(d.drops_prompt & d.drops_sound))
    assert both > 0.09, "the unconditional branch is what guidance leans on"


def test_motion_noise_has_the_stds_of_the_beta_distribution():
    batch = tiny_batch(size=400, masks=False)
    stds = draw(batch, ObjectiveConfig(), np.random.default_rng(0)).motion_noise.flatten(1).std(1)
    a, b = 0.93, 3.79
    assert abs(stds.mean() - a / (a + b)) < 0.03 and stds.max() < 1
    quiet = draw(batch, ObjectiveConfig(motion_noise=False), np.random.default_rng(0))
    assert quiet.motion_noise is None


def test_a_draw_is_its_seeds_alone():
    batch = tiny_batch()
    a, b, c = (draw(batch, CONFIG, np.random.default_rng(seed)) for seed in ([1, 5], [1, 5], [1, 6]))
    assert torch.equal(a.noise, b.noise) and torch.equal(a.sigmas, b.sigmas)
    assert not torch.equal(a.noise, c.noise)


def test_a_dropped_prompt_is_the_negative_one_whatever_their_lengths():
    embeds, negative = torch.randn(2, 3, 4), torch.randn(1, 5, 4)
    swapped = swap_prompts(embeds, negative, torch.tensor([True, False]))
    assert torch.equal(swapped[0], negative[0])
    assert torch.equal(swapped[1], torch.cat([embeds[1], torch.zeros(2, 4)]))


def test_prompts_that_learn_are_encoded_as_generate_encodes_them():
    prompts = tiny_student(learns_text=True).prompts
    texts = ("a man nods", "", "a woman with red hair talks")   # the last is cut: 24 tokens
    together = prompts(texts)
    for text, row in zip(texts, together, strict=True):
        alone = encode_prompt(prompts.encoder, byte_tokenizer, text, max_tokens=24)[0]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=1e-4)
        assert not row[len(alone):].any()


def test_draws_of_first_clips_have_no_motion_noise():
    assert isinstance(drawn := draw(tiny_batch(motion=False), CONFIG, np.random.default_rng(0)), Draw)
    assert drawn.motion_noise is None

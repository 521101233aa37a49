"""The training loop in memory: it learns, repeats itself, and its averages and rates are what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from s2v_core.errors import CheckpointError, OutputError
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.training.config import ObjectiveConfig, OptimizerConfig
from s2v_core.training.initialise import add_nothing_yet, initialise
from s2v_core.training.student import Student
from s2v_core.training.trainer import Average, Trainer, learning_rate

from .tiny import CONFIG, Batches, tiny_batch, tiny_student, tiny_transformer

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2, decay_fraction=0.4, ema=0.9)


def make_trainer(source=None, *, steps=6, student=None, **changes):
    return Trainer(
        student or tiny_student(),
        source or Batches(),
        **{"objective": ObjectiveConfig(), "optimizer": OPTIMIZER, "steps": steps, "seed": 5} | changes,
    )


def losses(trainer, num):
    return [trainer.train_step().loss for _ in range(num)]


def test_the_loss_of_clips_learnt_by_heart_falls():
    wide = WanS2VTransformer(replace(CONFIG, dim=96, ffn_dim=128))   # a token is 64 values, all of them needed
    initialise(wide, seed=0)
    source = Batches(1, size=4, embeds=False)
    plain = source.items[0].latents[:, :, :1, :1, :1].expand(-1, -1, 2, 8, 8)   # each sample one colour
    source.items = [replace(source.items[0], latents=plain)]
    trainer = make_trainer(
        source,
        student=Student(wide, prompts=tiny_student(learns_text=True).prompts, negative=""),
        steps=40,
        optimizer=replace(OPTIMIZER, learning_rate=5e-3, weight_decay=0.0),
    )
    seen = losses(trainer, 40)
    assert np.mean(seen[-8:]) < 0.6 * np.mean(seen[:4])


def test_the_same_seed_gives_the_same_losses_and_another_does_not():
    assert losses(make_trainer(), 4) == losses(make_trainer(), 4)
    assert losses(make_trainer(), 4) != losses(make_trainer(seed=6), 4)


def test_a_state_carried_over_goes_on_bit_for_bit():
    whole = make_trainer()
    expected = losses(whole, 6)
    first, second = make_trainer(), make_trainer(student=tiny_student(seed=9))
    losses(first, 3)
    second.load_state_dict(first.state_dict())
    assert losses(second, 3) == expected[3:]
    for name, weights in whole.average.weights.items():
        assert torch.equal(weights, second.average.weights[name])


@pytest.mark.parametrize("offload", [False, True])
def test_changed_settings_of_the_optimiser_hold_from_the_next_step_on(offload):
    first = make_trainer(optimizer=replace(OPTIMIZER, offload=offload))
    losses(first, 3)
    state = first.state_dict()
    changed = replace(OPTIMIZER, offload=offload, weight_decay=0.5, betas=(0.5, 0.6), eps=1e-3)
    second = make_trainer(optimizer=changed)
    second.load_state_dict(state)
    losses(first, 1)
    losses(second, 1)
    (group,) = second.optimizer.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.5, (0.5, 0.6), 1e-3)
    pairs = [(p, second.student.trained()[name]) for name, p in first.student.trained().items()]
    assert any((a - b).abs().max() > 1e-4 for a, b in pairs), "and they do something"


def test_an_average_that_was_not_kept_before_begins_with_the_weights_that_were_saved():
    first = make_trainer(optimizer=replace(OPTIMIZER, ema=0.0))
    losses(first, 3)
    second = make_trainer(student=tiny_student(seed=9))
    second.load_state_dict(first.state_dict())
    for name, parameter in first.student.trained().items():
        assert torch.equal(second.average.weights[name], parameter)


def test_the_state_of_another_model_or_of_other_parts_is_refused():
    state = make_trainer().state_dict()
    wider = WanS2VTransformer(replace(CONFIG, ffn_dim=48))
    initialise(wider, seed=0)
    with pytest.raises(CheckpointError, match=r"is \[32.*\] there and \[48.*\] here; name another"):
        make_trainer(student=Student(wider, negative=torch.ones(1, 3, 12))).load_state_dict(state)
    part = tiny_student()
    part.choose_trained("audio")
    with pytest.raises(CheckpointError, match="only one of the two trains transformer"):
        make_trainer(student=part).load_state_dict(state)


def test_two_halves_of_a_batch_accumulate_to_its_gradients():
    class Halves:
        def batch(self, index):
            return tiny_batch(seed=index, size=2, masks=False)

    strict = replace(OPTIMIZER, max_grad_norm=0.1)
    accumulated, alone = make_trainer(Halves(), accumulate=2, optimizer=strict), make_trainer(Halves())
    accumulated.train_step()
    for index in (0, 1):
        _, loss = alone.loss_of(index)
        (loss / 2).backward()
    wanted = {n: p.grad.clone() for n, p in alone.student.trained().items() if p.grad is not None}
    norm = torch.cat([gradient.flatten() for gradient in wanted.values()]).norm()
    assert norm > 0.1 and len(wanted) > 50
    for name, gradient in wanted.items():
        found = accumulated.student.trained()[name].grad
        torch.testing.assert_close(found, 0.1 * gradient / norm, atol=1e-6, rtol=1e-4)


def test_the_learning_rate_rises_stays_and_falls_to_nothing():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay_fraction=0.5)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0] and set(rates[4:11]) == {2.0}
    assert rates[11:] == pytest.approx([2.0 * n / 10 for n in range(9, 0, -1)])
    assert {learning_rate(step, 20, replace(config, decay_fraction=0.0)) for step in range(5, 20)} == {2.0}


def test_the_average_forgets_the_start_and_can_stand_in_for_the_weights():
    weight = torch.nn.Parameter(torch.zeros(3))
    average = Average({"w": weight}, decay=0.5)
    value = 0.0
    for update in range(1, 9):
        with torch.no_grad():
            weight.fill_(float(update))
        average.update()
        keep = min(0.5, (1 + update) / (10 + update))
        value = keep * value + (1 - keep) * update
    assert average.weights["w"].tolist() == pytest.approx([value] * 3)
    with average.in_place():
        assert weight.tolist() == pytest.approx([value] * 3)
    assert weight.tolist() == [8.0] * 3


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched():
    batch = tiny_batch()
    batch.latents[0, 0, 0, 0, 0] = float("nan")
    source = Batches(1)
    source.items = [batch]
    trainer = make_trainer(source)
    before = {name: p.clone() for name, p in trainer.student.trained().items()}
    with pytest.raises(OutputError, match="loss of step 1 is nan.*learning_rate"):
        trainer.train_step()
    assert all(torch.equal(before[name], p) for name, p in trainer.student.trained().items())


def test_training_the_audio_modules_moves_nothing_else():
    student = tiny_student()
    student.choose_trained("audio")
    before = {name: p.clone() for name, p in student.named_parameters()}
    losses(make_trainer(student=student), 2)
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(student.trained())


def test_bf16_blocks_keep_float32_weights():
    student = tiny_student()
    student.transformer.compute_dtype = torch.bfloat16
    exact, half = losses(make_trainer(), 3), losses(make_trainer(student=student), 3)
    assert exact != half and half == pytest.approx(exact, rel=0.05)
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_fresh_weights_are_finite_seeded_and_begin_by_predicting_nothing():
    a, b, c = (tiny_transformer(seed=1) for _ in range(3))
    for model, seed in ((a, 3), (b, 3), (c, 4)):
        initialise(model, seed=seed)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.blocks[0].ffn[0].weight, c.blocks[0].ffn[0].weight)
    assert all(p.isfinite().all() for p in a.parameters())
    velocity, _ = _velocity(a)
    assert velocity.isfinite().all() and velocity.abs().max() == 0


def test_modules_added_to_a_text_to_video_model_begin_without_effect():
    model = tiny_transformer()
    add_nothing_yet(model)
    velocity, batch = _velocity(model)
    louder, _ = _velocity(model, replace(batch, audio_features=batch.audio_features + 1))
    posed, _ = _velocity(model, replace(batch, pose_latents=torch.ones_like(batch.latents)))
    assert torch.equal(velocity, louder) and torch.equal(velocity, posed)
    assert velocity.abs().max() > 0


@torch.no_grad()
def _velocity(model, batch=None):
    batch = batch or tiny_batch()
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(batch.prompt_embeds), num_latents=2, reference_latent=batch.reference_latent,
        audio_features=batch.audio_features, motion_latents=batch.motion_latents, pose_latents=batch.pose_latents,
    )  # fmt: skip
    return model(batch.latents, torch.full((2,), 500.0), clip), batch


def test_a_source_is_asked_for_every_batch_once_and_in_order():
    source = Batches()
    losses(make_trainer(source, accumulate=2), 3)
    assert source.asked == [0, 1, 2, 3, 4, 5]

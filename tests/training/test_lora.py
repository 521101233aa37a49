"""LoRA: its gradients, what it leaves alone, and its file in the hands of those who load it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from s2v_core.checkpoints.lora import apply_lora, load_lora
from s2v_core.config import ModelConfig
from s2v_core.errors import ConfigError
from s2v_core.ops.quantized import QuantizedLinear
from s2v_core.training.command import dry_run
from s2v_core.training.config import ModelSource, ObjectiveConfig, OptimizerConfig, TrainConfig
from s2v_core.training.estimate import num_trained
from s2v_core.training.lora import add_lora, export_lora
from s2v_core.training.objective import draw, velocity_loss
from s2v_core.training.setup import build_student, build_transformer
from s2v_core.training.student import Student, checkpoint_blocks, store_weights
from s2v_core.training.trainer import Trainer

from ..core import checkpoints_tiny as files
from .test_estimate import FULL
from .tiny import Batches, tiny_batch, tiny_student, tiny_transformer

RANK, ALPHA = 4, 8.0


def lora_student(dtype=torch.float32):
    student = tiny_student(dtype=dtype)
    add_lora(student.transformer, rank=RANK, alpha=ALPHA, seed=1)
    with torch.no_grad():
        for name, parameter in student.trained().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    student.transformer.to(dtype)
    return student


def test_its_gradients_are_those_of_the_low_rank_product():
    student, plain = lora_student(torch.float64), tiny_student(dtype=torch.float64)
    batch = tiny_batch(dtype=torch.float64)
    drawn = draw(batch, ObjectiveConfig(), np.random.default_rng(0))
    loss = velocity_loss(student(batch, drawn), batch, drawn, ObjectiveConfig())
    loss.backward()
    factors = {name: p.detach().clone().requires_grad_() for name, p in student.trained().items()}
    weights = dict(plain.named_parameters())
    for name in [name for name in factors if "lora_A" in name]:
        up, layer = factors[name.replace("lora_A", "lora_B")], name.split(".lora_A")[0]
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"].detach() + ALPHA / RANK * up @ factors[name]
    expected = velocity_loss(functional_call(plain, weights, (batch, drawn)), batch, drawn, ObjectiveConfig())
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-7, rtol=1e-6)
    assert len(factors) > 40
    for name, parameter in student.trained().items():
        torch.testing.assert_close(parameter.grad, factors[name].grad, atol=1e-8, rtol=1e-4)


def test_a_fresh_one_changes_nothing_and_training_it_moves_nothing_else():
    student = tiny_student()
    batch = tiny_batch()
    drawn = draw(batch, ObjectiveConfig(), np.random.default_rng(0))
    before = student(batch, drawn)
    add_lora(student.transformer, rank=RANK, alpha=ALPHA, seed=1)
    torch.testing.assert_close(student(batch, drawn), before)
    frozen = {name: p.clone() for name, p in student.named_parameters() if not p.requires_grad}
    trainer = Trainer(student, Batches(), objective=ObjectiveConfig(), optimizer=OptimizerConfig(), steps=3, seed=0)
    learnt = {name: p.clone() for name, p in student.trained().items()}
    for _ in range(3):
        trainer.train_step()
    assert all(torch.equal(p, frozen[n]) for n, p in student.named_parameters() if n in frozen)
    assert all("lora_" in name and not torch.equal(p, learnt[name]) for name, p in student.trained().items())


def test_its_file_gives_a_plain_model_what_was_learnt(tmp_path):
    student = lora_student()
    (path,) = export_lora(student.transformer, tmp_path, dtype=torch.float32)
    names = set(load_file(path))
    for part in ("lora_A.weight", "lora_B.weight", "alpha"):
        assert f"diffusion_model.blocks.1.ffn.2.{part}" in names
        assert f"diffusion_model.audio_injector.injector.0.q.{part}" in names
    plain = tiny_transformer()
    apply_lora(plain, load_lora(path), 1.0)
    batch = tiny_batch()
    with torch.no_grad():
        ours, theirs = velocity(student.transformer, batch), velocity(plain, batch)
        untouched = velocity(tiny_transformer(), batch)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert (ours - untouched).abs().max() > 0.05


def test_its_alpha_is_stored_exactly(tmp_path):
    student = tiny_student()
    add_lora(student.transformer, rank=RANK, alpha=100.7, seed=1)
    (path,) = export_lora(student.transformer, tmp_path, dtype=torch.bfloat16)
    scales = [change.scale for change in load_lora(path).changes]
    assert scales == pytest.approx([100.7 / RANK] * len(scales), rel=1e-6)


def velocity(model, batch):
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(batch.prompt_embeds), num_latents=2, reference_latent=batch.reference_latent,
        audio_features=batch.audio_features, motion_latents=batch.motion_latents,
    )  # fmt: skip
    return model(batch.latents, torch.full((2,), 500.0), clip)


def test_frozen_weights_may_be_kept_in_bf16():
    student = lora_student()
    exact = velocity(student.transformer, tiny_batch())
    store_weights(student.transformer, frozen=torch.bfloat16)
    assert {p.dtype for p in student.trained().values()} == {torch.float32}
    assert student.transformer.blocks[0].ffn[0].base_layer.weight.dtype == torch.bfloat16
    assert 0 < (velocity(student.transformer, tiny_batch()) - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("rank", [4, 8])
def test_its_size_is_known_before_it_is_made(rank):
    student = tiny_student()
    config = replace(FULL, model=replace(FULL.model, trained="lora", lora_rank=rank))
    expected = num_trained(student.transformer, config)
    add_lora(student.transformer, rank=rank, alpha=1.0, seed=0)
    assert sum(p.numel() for p in student.trained().values()) == expected


# ---- beside packed weights -----------------------------------------------------------------------------------------

PACKED = ModelConfig(name="packed", transformer=files.CONFIG)
SAVES = {"fp8": files.save_fp8_scaled, "gguf": files.save_gguf}


def gradients_beside(path):
    model = build_transformer(PACKED, path, seed=0)
    add_lora(model, rank=2, alpha=2.0, seed=0)
    student = Student(model, negative=torch.ones(1, 3, files.CONFIG.text_dim))
    store_weights(model, frozen=torch.float32)
    checkpoint_blocks(model)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.trained().items():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=g)
    batch = replace(
        tiny_batch(),
        audio_features=torch.randn(2, 25, files.CONFIG.audio_dim, 8, generator=g),
        prompt_embeds=torch.randn(2, 5, files.CONFIG.text_dim, generator=g),
    )
    drawn = draw(batch, ObjectiveConfig(), np.random.default_rng(0))
    velocity_loss(student(batch, drawn), batch, drawn, ObjectiveConfig()).backward()
    return model, {name: p.grad for name, p in student.trained().items()}


@pytest.mark.parametrize("kind", SAVES)
def test_beside_packed_weights_it_learns_as_beside_the_numbers_that_they_stand_for(tmp_path, kind):
    meant = SAVES[kind](tmp_path / "packed", files.transformer_weights())
    save_file(meant, tmp_path / "plain")
    model, found = gradients_beside(tmp_path / "packed")
    assert isinstance(model.blocks[1].ffn[0].base_layer, QuantizedLinear), "it stays packed"
    _, expected = gradients_beside(tmp_path / "plain")
    assert found.keys() == expected.keys() and len(found) == 50
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("trained", ["all", "audio"])
def test_packed_weights_cannot_learn_themselves(tmp_path, monkeypatch, trained):
    path = tmp_path / "fp8.safetensors"
    files.save_fp8_scaled(path, files.transformer_weights())
    monkeypatch.setattr("s2v_core.training.setup.model_config", lambda config: PACKED)
    config = TrainConfig(name="packed", model=ModelSource(weights=path, trained=trained))
    with pytest.raises(ConfigError, match=rf"packs \d+ matrices as F8_E4M3: trained: {trained} starts from the bf16"):
        build_student(config, device=torch.device("cpu"))


def test_a_dry_run_counts_packed_weights_as_their_file_packs_them(tmp_path, monkeypatch):
    path = tmp_path / "fp8.safetensors"
    files.save_fp8_scaled(path, files.transformer_weights())
    monkeypatch.setattr("s2v_core.training.command.model_config", lambda config: PACKED)
    config = TrainConfig(name="packed", model=ModelSource(weights=path, trained="lora", frozen_dtype="bf16"))
    model = build_transformer(PACKED, path, seed=0)
    rest = sum(2 * p.numel() for p in model.parameters())
    packed = sum(layer.packed.nbytes for layer in model.modules() if isinstance(layer, QuantizedLinear))
    found = {gpus: dry_run(config, num_gpus=gpus, gpu_bytes=24e9).parts["weights that do not"] for gpus in (1, 2)}
    assert found == {1: packed + rest, 2: packed + rest / 2}, "what is packed is on every GPU"

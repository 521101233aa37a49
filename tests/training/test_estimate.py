"""The cost of a run on paper, against what small models really keep, and against the paper's claim."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.config import TransformerConfig
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.training.config import DataConfig, ModelSource, OptimizerConfig, PrecomputeConfig, TrainConfig
from s2v_core.training.estimate import estimate_training, kept_bytes, layouts, sample_layout
from s2v_core.training.initialise import initialise
from s2v_core.training.student import checkpoint_blocks

FULL = TrainConfig(
    name="full",
    model=ModelSource(compute_dtype="bf16", checkpoint_blocks=True),
    precompute=PrecomputeConfig(clip_frames=48, max_tokens=44_544),
)
MODEL = TransformerConfig()
CARD = 80e9


def estimate(config=FULL, gpus=8, card=CARD):
    return estimate_training(config, MODEL, sample_layout(config, MODEL), num_gpus=gpus, gpu_bytes=card)


def test_the_papers_sample_is_counted_token_by_token():
    layout = sample_layout(FULL, MODEL)
    assert (layout.num_video, layout.num_reference, layout.num_motion, layout.total) == (36_864, 3_072, 4_608, 44_544)


def test_all_weights_of_the_14b_train_on_eight_cards_of_80_gb():
    found = estimate()
    assert found.fits and found.num_parameters == found.num_trained == 16_295_755_609
    sharded = sum(found.parts[name] for name in found.parts if name.startswith(("weights", "Adam", "gradients")))
    assert sharded == 16 * found.num_parameters / 8
    assert found.layout.data * found.layout.context == 8


def test_without_sharing_the_sequence_it_would_not_fit():
    found = estimate()
    assert found.layout.context > 1, "the smallest group that fits is chosen"
    alone = [layout for layout in layouts(8, 40) if layout.context < found.layout.context]
    assert alone


def test_too_few_cards_are_said_to_be_too_few():
    found = estimate(gpus=2)
    assert not found.fits and "does NOT fit" in str(found)


def test_the_audio_modules_alone_need_far_less():
    audio = replace(FULL, model=replace(FULL.model, trained="audio"))
    assert estimate(audio).num_trained < 0.2 * estimate().num_trained
    assert estimate(audio, gpus=4).fits and not estimate(gpus=4).fits


def test_an_average_costs_a_copy():
    averaged = estimate(replace(FULL, optimizer=OptimizerConfig(ema=0.999)))
    assert averaged.parts["averaged weights"] == 4 * averaged.num_trained / 8


def test_moments_in_8_bits_or_on_the_cpu_leave_room():
    plain, small, away = (
        estimate(replace(FULL, optimizer=OptimizerConfig(**kind)))
        for kind in ({}, {"moments": "8bit"}, {"offload": True})
    )
    share = plain.num_trained / 8
    assert plain.total - small.total == pytest.approx(2 * (3 - 4 / 256) * share)
    assert plain.total - away.total == 8 * share


def test_layouts_share_by_heads_first_and_by_ring_for_the_rest():
    assert [str(layout) for layout in layouts(8, 40)] == [
        "8 x data, 1 x ring, 1 x Ulysses", "4 x data, 1 x ring, 2 x Ulysses",
        "2 x data, 1 x ring, 4 x Ulysses", "1 x data, 1 x ring, 8 x Ulysses",
    ]  # fmt: skip
    assert str(layouts(16, 40)[-1]) == "1 x data, 2 x ring, 8 x Ulysses"


def test_what_is_said_names_every_part():
    text = str(estimate(replace(FULL, data=DataConfig(batch_size=1, accumulate=2))))
    for part in ("16,295,755,609", "weights that learn", "Adam's second moments", "activations kept", "of 80 GB: fits"):
        assert part in text
    found = estimate(replace(FULL, data=DataConfig(accumulate=2)))
    assert found.samples_per_step == 2 * found.layout.data


def kept(config, *, checkpointed, dtype):
    """Bytes that a real forward pass of a small model keeps, its weights not counted."""
    model = WanS2VTransformer(config)
    initialise(model, seed=0)
    model.to(dtype).compute_dtype = dtype   # as FSDP gathers weights
    if checkpointed:
        checkpoint_blocks(model)
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(torch.randn(1, 4, config.text_dim).to(dtype)), num_latents=6,
        reference_latent=torch.randn(1, 16, 1, 12, 16), motion_latents=torch.randn(1, 16, 19, 12, 16),
        audio_features=torch.randn(1, config.num_audio_layers, config.audio_dim, 24),
    )  # fmt: skip
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(model(torch.randn(1, 16, 6, 12, 16), torch.tensor([500.0]), clip))
    return sum(storages.values()), clip.layout


@pytest.mark.parametrize("dtype, item", [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_what_a_real_model_keeps(checkpointed, dtype, item):
    few = TransformerConfig(dim=64, ffn_dim=192, num_heads=4, num_layers=2, text_dim=8, text_len=4, audio_dim=8,
                            num_audio_layers=2, audio_inject_layers=(0,))  # fmt: skip
    blocks, audio = replace(few, num_layers=6), replace(few, num_layers=6, audio_inject_layers=(0, 2, 3, 4))
    config = replace(FULL, model=replace(FULL.model, checkpoint_blocks=checkpointed))
    (fewest, layout), (more, _), (most, _) = (
        kept(model, checkpointed=checkpointed, dtype=dtype) for model in (few, blocks, audio)
    )
    expected = [kept_bytes(config, model, layout, item) for model in (few, blocks, audio)]
    exact = 1e-9 if checkpointed else 0.06
    assert more - fewest == pytest.approx(expected[1] - expected[0], rel=exact)
    assert most - more == pytest.approx(expected[2] - expected[1], rel=exact)



def test_with_checkpointing_one_float32_input_of_every_block_and_audio_layer_is_kept():
    found = estimate()
    assert found.parts["activations kept"] * found.layout.context == (40 + 12) * 44_544 * 5120 * 4

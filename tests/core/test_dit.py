"""What the transformer promises beyond the recorded tensors."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from s2v_core.config import TransformerConfig
from s2v_core.errors import ShapeError
from s2v_core.models.dit import ClipContext, WanS2VTransformer

from ..golden.case import ROOT
from .checkpoints_tiny import transformer

CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=3, text_dim=12, text_len=16, audio_dim=10, audio_inject_layers=(0, 2)
)
T, H, W = 2, 8, 12


def clip(model: WanS2VTransformer, seed: int = 1, batch: int = 1, **changes: object) -> ClipContext:
    g = torch.Generator().manual_seed(seed)
    inputs = {
        "prompt": model.prepare_prompt(torch.randn(batch, 5, 12, generator=g)),
        "num_latents": T,
        "reference_latent": torch.randn(batch, 16, 1, H, W, generator=g),
        "audio_features": torch.randn(batch, 25, 10, 4 * T, generator=g),
        "motion_latents": torch.randn(batch, 16, 19, H, W, generator=g),
        "pose_latents": torch.randn(batch, 16, T, H, W, generator=g),
    }
    return model.prepare_clip(**inputs | changes)


def noise(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, T, H, W, generator=torch.Generator().manual_seed(9))


def test_parameters_are_the_released_checkpoints() -> None:
    recorded = json.loads((ROOT / "keys_14b.json").read_text())
    model = WanS2VTransformer(TransformerConfig(), device="meta", dtype=torch.bfloat16)
    ours = {name: list(p.shape) for name, p in model.state_dict().items()}
    assert ours == {name: entry["shape"] for name, entry in recorded["keys"].items()}
    assert sum(p.numel() for p in model.parameters()) == recorded["total_parameters"] == 16_295_755_609


def test_a_batch_is_its_samples_one_by_one(model: WanS2VTransformer) -> None:
    both = clip(model, batch=2)
    x, t = noise(2), torch.tensor([900.0, 300.0])
    g = torch.Generator().manual_seed(1)
    prompt = torch.randn(2, 5, 12, generator=g)
    names = ("reference_latent", "audio_features", "motion_latents", "pose_latents")
    shapes = ((16, 1, H, W), (25, 10, 4 * T), (16, 19, H, W), (16, T, H, W))
    drawn = {name: torch.randn(2, *shape, generator=g) for name, shape in zip(names, shapes, strict=True)}
    together = model(x, t, both)
    for i in (0, 1):
        one = model.prepare_clip(
            prompt=model.prepare_prompt(prompt[i : i + 1]),
            num_latents=T,
            **{name: value[i : i + 1] for name, value in drawn.items()},
        )
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1], one), together[i : i + 1], atol=2e-5, rtol=1e-4)


@pytest.fixture
def long_prompts() -> WanS2VTransformer:
    """A model whose prompts have 300 tokens."""
    return transformer(replace(CONFIG, text_len=300))


@torch.no_grad()
def test_one_key_stands_for_the_rows_of_zeros_after_a_prompt(long_prompts: WanS2VTransformer) -> None:
    told = torch.randn(1, 70, 12, generator=torch.Generator().manual_seed(3))
    prompt = long_prompts.prepare_prompt(told)
    with torch.enable_grad():   # gradients want them all
        whole = long_prompts.prepare_prompt(told)
    assert [(keys.shape[1], last_counts) for keys, _, last_counts in prompt.keys_values] == [(128, 173)] * 3
    assert [(keys.shape[1], last_counts) for keys, _, last_counts in whole.keys_values] == [(300, 1)] * 3
    padded = long_prompts.prepare_prompt(F.pad(told, (0, 0, 0, 230)))
    assert padded.keys_values[2].last_counts == 173
    x, t = noise(), torch.tensor([500.0])
    velocities = [long_prompts(x, t, clip(long_prompts, prompt=given)) for given in (prompt, whole, padded)]
    torch.testing.assert_close(velocities[0], velocities[1], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(velocities[2], velocities[0], atol=0, rtol=0)


@torch.no_grad()
def test_prompts_of_all_lengths_join(long_prompts: WanS2VTransformer) -> None:
    g = torch.Generator().manual_seed(3)
    told = [torch.randn(1, length, 12, generator=g) for length in (5, 130, 300)]
    clips = [clip(long_prompts, prompt=long_prompts.prepare_prompt(one)) for one in told]
    x, t = noise(), torch.tensor([500.0])
    together = long_prompts(x, t, clips[0].joined(*clips[1:]))
    alone = torch.cat([long_prompts(x, t, one) for one in clips])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)


def test_joined_clips_give_what_each_gives_alone(model: WanS2VTransformer) -> None:
    first = clip(model)
    g = torch.Generator().manual_seed(1)
    torch.randn(1, 5, 12, generator=g)
    second = model.prepare_clip(
        prompt=model.prepare_prompt(torch.ones(1, 3, 12)),
        num_latents=T,
        reference_latent=torch.randn(1, 16, 1, H, W, generator=g),
        audio_features=0 * torch.randn(1, 25, 10, 4 * T, generator=g),
        motion_latents=torch.randn(1, 16, 19, H, W, generator=g),
        pose_latents=torch.randn(1, 16, T, H, W, generator=g),
    )
    x, t = noise(), torch.tensor([500.0])
    together = model(x.expand(2, -1, -1, -1, -1), t.expand(2), first.joined(second))
    alone = torch.cat([model(x, t, first), model(x, t, second)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_a_prepared_timestep_is_the_timestep(model: WanS2VTransformer) -> None:
    t = torch.tensor([731])
    assert torch.equal(model(noise(), t, clip(model)), model(noise(), model.embed_time(t), clip(model)))


def test_sound_changes_no_earlier_latent_frame_before_attention_mixes_them(model: WanS2VTransformer) -> None:
    features = torch.randn(1, 25, 10, 4 * T, generator=torch.Generator().manual_seed(3))
    louder = features.clone()
    louder[..., 4:] += 1
    before, after = (model.casual_audio_encoder(f, 73)[0] for f in (features, louder))
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3


def test_no_pose_is_a_pose_of_zero_latents(model: WanS2VTransformer) -> None:
    x, t = noise(), torch.tensor([500.0])
    without = model(x, t, clip(model, pose_latents=None))
    zeros = model(x, t, clip(model, pose_latents=torch.zeros(1, 16, T, H, W)))
    torch.testing.assert_close(without, zeros, atol=1e-5, rtol=1e-5)


def test_a_clip_without_a_past_has_no_motion_tokens(model: WanS2VTransformer) -> None:
    layout = clip(model, motion_latents=None).layout
    assert layout.num_motion == 0 and layout.total == layout.num_video + layout.num_reference


def test_sound_must_cover_the_clip(model: WanS2VTransformer) -> None:
    with pytest.raises(ShapeError, match="8 frames of audio features, got 4"):
        clip(model, audio_features=torch.zeros(1, 25, 10, 4))


def test_bf16_blocks_stay_near_float32(model: WanS2VTransformer) -> None:
    x, t = noise(), torch.tensor([500.0])
    exact = model(x, t, clip(model))
    half = WanS2VTransformer(CONFIG, dtype=torch.bfloat16).eval().requires_grad_(False)
    half.load_state_dict(model.state_dict())
    rounded = WanS2VTransformer(CONFIG).eval().requires_grad_(False)
    rounded.load_state_dict(half.state_dict())
    close = half(x, t, clip(half))
    exact = rounded(x, t, clip(rounded))
    assert close.dtype == torch.float32
    assert (close - exact).norm() / exact.norm() < 7e-3


def without_sound(model: WanS2VTransformer, like: ClipContext) -> ClipContext:
    prompt = model.prepare_prompt(torch.ones(1, 3, 12))
    return model.with_other(like, prompt=prompt, audio_features=torch.zeros(1, 25, 10, 4 * T))


@torch.no_grad()
def test_branches_share_the_first_self_attention_and_are_bit_equal_to_forwards(model: WanS2VTransformer) -> None:
    x, t, first = noise(), torch.tensor([500.0]), clip(model)
    second = without_sound(model, first)
    calls = []
    handles = [block.self_attn.register_forward_hook(lambda *_: calls.append(1)) for block in model.blocks]
    together = model.branches(x, t, (first, second))
    shared = len(calls)
    alone = [model(x, t, first), model(x, t, second)]
    for handle in handles:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert (shared, len(calls) - shared) == (5, 6)
    assert (alone[0] - alone[1]).abs().max() > 0.1


@torch.no_grad()
def test_clips_that_look_different_share_nothing(model: WanS2VTransformer) -> None:
    x, t, first, second = noise(), torch.tensor([500.0]), clip(model), clip(model, seed=2)
    together = model.branches(x, t, (first, second))
    assert all(torch.equal(a, model(x, t, c)) for a, c in zip(together, (first, second), strict=True))


def test_what_is_written_over_without_gradients_gives_the_same_numbers(model: WanS2VTransformer) -> None:
    x, t, one = noise(), torch.tensor([500.0]), clip(model)
    with torch.enable_grad():
        fresh = model(x, t, one)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, one), fresh, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("part", ["all", "self", "rest", "video"])
def test_a_block_leaves_its_tokens_as_they_are(model: WanS2VTransformer, part: str) -> None:
    one = clip(model)
    x = torch.randn(1, one.layout.total, CONFIG.dim)
    before = x.clone()
    time = model.embed_time(torch.tensor([500.0])).modulation
    model.blocks[1](x, time, one.rope, one.prompt.keys_values[1], one.layout.num_video, part)
    assert torch.equal(x, before)


@torch.no_grad()
def test_parts_of_a_block_make_a_whole(model: WanS2VTransformer) -> None:
    one, block = clip(model), model.blocks[1]
    x = torch.randn(1, one.layout.total, CONFIG.dim)
    given = (model.embed_time(torch.tensor([500.0])).modulation, one.rope, one.prompt.keys_values[1])
    V = one.layout.num_video
    whole = block(x, *given, V)
    assert torch.equal(block(block(x, *given, V, "self"), *given, V, "rest"), whole)
    torch.testing.assert_close(block(x, *given, V, "video"), whole[:, :V], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_tokens_in_chunks_come_out_of_a_feed_forward_the_same(model: WanS2VTransformer) -> None:
    ffn, x = model.blocks[0].ffn, torch.randn(1, 50, CONFIG.dim)
    expected, widths = ffn(x), []
    handle = ffn[2].register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    ffn.chunk_tokens = 16
    torch.testing.assert_close(ffn(x), expected, atol=1e-6, rtol=1e-5)
    ffn.chunk_tokens = None
    handle.remove()
    assert widths == [16, 16, 16, 2]

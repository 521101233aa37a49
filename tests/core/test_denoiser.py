"""Our denoiser: guidance over both branches, prepared once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.config import TransformerConfig
from s2v_core.denoiser import TransformerDenoiser
from s2v_core.errors import Interrupted
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.placement import BlockStreamer
from s2v_core.types import ClipInputs, SamplerSettings

CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=3, text_dim=12, text_len=16, audio_dim=10, audio_inject_layers=(0, 2)
)
T, H, W = 2, 8, 8


def inputs() -> ClipInputs:
    g = torch.Generator().manual_seed(1)
    return ClipInputs(
        prompt_embeds=torch.randn(1, 5, 12, generator=g),
        negative_prompt_embeds=torch.randn(1, 3, 12, generator=g),
        reference_latent=torch.randn(1, 16, 1, H, W, generator=g),
        motion_latents=torch.randn(1, 16, 19, H, W, generator=g),
        audio_features=torch.randn(1, 25, 10, 4 * T, generator=g),
        pose_latents=None,
    )


NOISE = torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(2))


def settings(scale: float) -> SamplerSettings:
    return SamplerSettings(steps=3, guidance_scale=scale)


def quiet(_done: int, _total: int) -> None:
    pass


def test_both_branches_in_one_pass_are_the_two_one_by_one(model: WanS2VTransformer) -> None:
    one_by_one = TransformerDenoiser(model, settings(4.5))(inputs(), NOISE, quiet)
    together = TransformerDenoiser(model, settings(4.5), batch_branches=True)(inputs(), NOISE, quiet)
    torch.testing.assert_close(one_by_one, together, atol=1e-4, rtol=1e-4)


def test_without_guidance_there_is_one_evaluation_a_step(model: WanS2VTransformer) -> None:
    calls = []
    handle = model.head.register_forward_hook(lambda *_: calls.append(1))
    TransformerDenoiser(model, settings(1.0))(inputs(), NOISE, quiet)
    unguided = len(calls)
    TransformerDenoiser(model, settings(2.0))(inputs(), NOISE, quiet)
    handle.remove()
    assert (unguided, len(calls) - unguided) == (3, 6)


def test_a_prompt_is_prepared_once_for_all_clips(model: WanS2VTransformer) -> None:
    calls = []
    handle = model.text_embedding.register_forward_hook(lambda *_: calls.append(1))
    denoiser, shared = TransformerDenoiser(model, settings(2.0)), inputs()
    for _ in range(3):
        denoiser(shared, NOISE, quiet)
    handle.remove()
    assert len(calls) == 2


def test_streamed_blocks_give_the_same_latents(model: WanS2VTransformer) -> None:
    expected = TransformerDenoiser(model, settings(2.0))(inputs(), NOISE, quiet)
    streamer = BlockStreamer(model.blocks, torch.device("cpu"))
    streamed = TransformerDenoiser(model, settings(2.0))(inputs(), NOISE, quiet)
    streamer.stop()
    assert torch.equal(streamed, expected)


def test_a_stop_is_heard_within_a_step(model: WanS2VTransformer) -> None:
    steps = []

    def stop_after_one(done: int, _total: int) -> None:
        steps.append(done)
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        TransformerDenoiser(model, settings(2.0))(inputs(), NOISE, stop_after_one)
    assert len(steps) == 1


def test_a_pose_can_be_followed_in_the_first_steps_only(model: WanS2VTransformer) -> None:
    posed = replace(inputs(), pose_latents=torch.randn(1, 16, T, H, W, generator=torch.Generator().manual_seed(3)))

    def walk(pose_steps: int | None, which: ClipInputs = posed) -> list[torch.Tensor]:
        velocities = []
        handle = model.register_forward_hook(lambda _module, _inputs, velocity: velocities.append(velocity))
        TransformerDenoiser(model, settings(1))(replace(which, pose_steps=pose_steps), NOISE, quiet)
        handle.remove()
        return velocities

    always, twice, never = walk(None), walk(2), walk(None, inputs())
    assert all(torch.equal(a, b) for a, b in zip(walk(3), always, strict=True))
    assert torch.equal(twice[0], always[0]) and torch.equal(twice[1], always[1])
    assert not torch.equal(twice[2], always[2]) and not torch.equal(always[0], never[0])
    assert torch.equal(walk(1)[0], always[0]) and not torch.equal(walk(1)[1], always[1])

"""How long a step takes follows from one block: by counted products, where no clock is in the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from s2v_core import pace
from s2v_core.config import TransformerConfig, VAEConfig
from s2v_core.geometry import TokenLayout
from s2v_core.models.dit import ClipContext, WanS2VTransformer
from s2v_core.models.dit_blocks import Block
from s2v_core.models.vae import WanVAE
from s2v_core.pace import BlockTime, Copies, seconds_per_step, time_block, time_codec, time_copy

CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    dim=128, ffn_dim=384, num_heads=4, num_layers=4, text_dim=32, text_len=16, audio_dim=16, num_audio_layers=3,
    audio_inject_layers=(0, 2),
)  # fmt: skip
T, SIDE = 4, 8


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As plain products, which are counted everywhere."""
    weights = torch.softmax(q.transpose(1, 2) @ k.permute(0, 2, 3, 1), dim=-1)
    return (weights @ v.transpose(1, 2)).transpose(1, 2)


def products(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def make_clip(model: WanS2VTransformer) -> ClipContext:
    return model.prepare_clip(
        prompt=model.prepare_prompt(torch.empty(1, 5, CONFIG.text_dim)),
        num_latents=T,
        reference_latent=torch.empty(1, 16, 1, SIDE, SIDE),
        audio_features=torch.empty(1, CONFIG.num_audio_layers, CONFIG.audio_dim, 4 * T),
        motion_latents=torch.empty(1, 16, 19, SIDE, SIDE),
    )


@torch.no_grad()
def block_of(model: WanS2VTransformer, clip: ClipContext) -> BlockTime:
    """A block's products in the place of its seconds."""
    block, time = model.blocks[1], model.embed_time(torch.empty(1)).modulation
    x = torch.empty(1, clip.layout.total, CONFIG.dim)
    whole = products(lambda: block(x, time, clip.rope, clip.prompt.keys_values[1], clip.layout.num_video))
    q = torch.empty(1, clip.layout.total, CONFIG.num_heads, CONFIG.head_dim)
    of_attention = products(lambda: attention(q, q, q))
    return BlockTime(linear=whole - of_attention, attention=of_attention)


@pytest.mark.parametrize("branches", [1, 2, 3])
@torch.no_grad()
def test_a_step_has_the_products_that_are_counted_up_from_a_block(branches: int) -> None:
    with torch.device("meta"):   # nothing is computed
        counted, foretold = count_and_foretell(branches)
    assert foretold == pytest.approx(counted, rel=0.02)


def count_and_foretell(branches: int) -> tuple[float, float]:
    model = WanS2VTransformer(CONFIG, attention=attention)
    clip = make_clip(model)
    prompt, features = clip.prompt, torch.empty(1, CONFIG.num_audio_layers, CONFIG.audio_dim, 4 * T)
    clips = [clip, *(model.with_other(clip, prompt=prompt, audio_features=features) for _ in range(branches - 1))]
    time = model.embed_time(torch.empty(1))
    counted = products(lambda: model.branches(torch.empty(1, 16, T, SIDE, SIDE), time, clips))
    return counted, seconds_per_step(CONFIG, clip.layout, block_of(model, clip), branches=branches)


def test_with_more_tokens_products_grow_with_their_number_and_attention_with_its_square() -> None:
    assert BlockTime(linear=3.0, attention=2.0).scaled(4) == BlockTime(linear=12.0, attention=32.0)


def test_a_block_that_takes_long_is_timed_on_a_part_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves a second at a look: nothing but the first tokens is within the budget."""
    seen: list[int] = []
    timed = pace._timed

    def watched(block: Block, config: TransformerConfig, num_tokens: int, *rest: object) -> BlockTime:
        seen.append(num_tokens)
        return timed(block, config, num_tokens, *rest)

    monkeypatch.setattr(pace, "_timed", watched)
    clock = itertools.count(0.0, 1.0)
    layout = TokenLayout(num_video=4000, num_reference=60, num_motion=60, tokens_per_frame=200)
    found = time_block(
        CONFIG, layout, dtype=torch.float32, device=CPU, attention=attention, clock=lambda: next(clock)
    )
    assert seen == [pace.FIRST_TOKENS]
    factor = layout.total / pace.FIRST_TOKENS
    assert found == BlockTime(linear=0.0, attention=factor**2)   # a second for either: all of it was attention


def test_blocks_are_waited_for_where_copying_takes_longer_than_computing() -> None:
    layout = TokenLayout(num_video=64, num_reference=16, num_motion=16, tokens_per_frame=16)
    block = BlockTime(linear=0.6, attention=0.4)
    alone = seconds_per_step(CONFIG, layout, block, branches=1)
    quick, slow = (
        seconds_per_step(CONFIG, layout, block, branches=1, copies=Copies(seconds=s, num=3)) for s in (0.9, 1.5)
    )
    assert quick == alone and slow == pytest.approx(alone + 3 * 0.5)


def test_a_clip_has_the_products_of_the_autoencoder_that_are_counted_up_from_a_small_picture() -> None:
    """Of one that goes on from another. The clock counts products."""
    config, T, motion, (width, height) = VAEConfig(dim=4, num_res_blocks=1), 6, 5, (160, 96)
    vae = WanVAE(config).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        clock = counter.get_total_flops
        found = time_codec(config, width * height, motion, dtype=torch.float32, device=CPU, clock=clock)
        before = clock()
        latents = vae.encode(torch.zeros(1, 3, 4 * motion - 3, height, width))
        decoder = vae.decoder()
        decoder.prime(latents)
        frames = list(decoder.decode(torch.zeros(1, 16, T, height // 8, width // 8)))
        counted = clock() - before
    assert len(frames) == T
    assert found.clip(T, motion) == pytest.approx(counted, rel=0.1)


def test_a_copy_is_counted_up_from_a_piece() -> None:
    clock = itertools.count(0.0, 1.0)
    assert time_copy(10 * pace.COPIED, CPU, clock=lambda: next(clock)) == 10

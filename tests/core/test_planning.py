"""The fastest way that fits is chosen, and what does not fit is run in the smallest one."""

from __future__ import annotations

from dataclasses import replace

import torch

from s2v_core.config import TransformerConfig
from s2v_core.geometry import VideoSize, token_layout
from s2v_core.placement import GIB
from s2v_core.planning import Way, Work, choose_way

BF16, FP32 = torch.bfloat16, torch.float32
SIZE = VideoSize(width=832, height=480)


def work(*dtypes: torch.dtype, is_host: bool = False) -> Work:
    """Of the 14B model at 480p."""
    return Work(
        config=TransformerConfig(),
        layout=token_layout(SIZE.latent_grid(20), has_motion=True),
        transformer={dtype: 16_300_000_000 * dtype.itemsize for dtype in dtypes},
        others=GIB // 2,
        beside=0,
        decoding={1: 6 * GIB, 2: 4 * GIB, 4: 3 * GIB},
        encoding=11 * GIB,
        decoded=GIB // 4,
        host=GIB,
        is_host=is_host,
    )


def test_a_large_card_keeps_everything_and_a_smaller_one_as_many_blocks_as_it_holds() -> None:
    chosen = {
        free: choose_way(work(BF16), ("none", "blocks"), free * GIB) for free in (80, 36, 24, 18)
    }
    ways = {free: way for free, (way, _) in chosen.items()}
    assert ways[80] == Way(dtype=BF16, offload="none")
    assert [ways[free].offload for free in (36, 24, 18)] == ["blocks"] * 3
    stay = [ways[free].resident_blocks for free in (36, 24, 18)]
    assert stay[0] > stay[1] > stay[2] >= 0
    for free, (_, estimate) in chosen.items():
        assert estimate.device_peak <= free * GIB, free
    block = 2 * 16_300_000_000 // 40
    assert chosen[24][1].device_peak + block > 0.9 * 24 * GIB   # another one would have had no room


def test_what_asked_for_stays_though_it_does_not_fit() -> None:
    way, estimate = choose_way(work(BF16), ("none",), 24 * GIB)
    assert way.offload == "none" and estimate.device_peak > estimate.available
    assert "may NOT fit" in str(estimate)


def test_where_float32_does_not_fit_the_stored_dtype_does() -> None:
    large, small = (choose_way(work(FP32, BF16, is_host=True), ("none",), free * GIB)[0] for free in (128, 56))
    assert large == Way(dtype=FP32, offload="none") and small == Way(dtype=BF16, offload="none")


def test_feed_forwards_go_in_chunks_before_blocks_leave_the_device() -> None:
    wide = replace(work(BF16), config=replace(TransformerConfig(), ffn_dim=40_000), decoding={1: GIB})
    needed = wide.estimate(Way(dtype=BF16, offload="none"), 0).device_peak
    ample, short = (choose_way(wide, ("none", "blocks"), int(needed / share))[0] for share in (0.89, 0.91))
    assert ample == Way(dtype=BF16, offload="none")
    assert short.offload == "none" and short.chunk_tokens is not None


def test_the_autoencoder_goes_tile_by_tile_before_blocks_leave_the_device() -> None:
    small = replace(work(BF16), layout=token_layout(VideoSize(width=256, height=256).latent_grid(20), has_motion=True))
    needed = {tiles: small.estimate(Way(dtype=BF16, offload="none", vae_tiles=tiles), 0) for tiles in (1, 2, 4)}
    found = {}
    for tiles, estimate in needed.items():
        way, _ = choose_way(small, ("none", "blocks"), int(estimate.device_peak / 0.89))
        found[tiles] = way
        assert estimate.host == GIB + (GIB // 4 if tiles > 1 else 0)
    assert all(way == Way(dtype=BF16, offload="none", vae_tiles=tiles) for tiles, way in found.items()), found
    assert choose_way(small, ("none", "blocks"), needed[4].device_peak)[0].offload == "blocks"


def test_a_way_says_what_it_does() -> None:
    way = Way(dtype=BF16, offload="blocks", chunk_tokens=4385, resident_blocks=12)
    assert str(way) == "bfloat16, blocks visit the device, 12 stay, feed-forward 4385 tokens at a time"
    assert str(Way(dtype=FP32, offload="none")) == "float32"
    assert str(Way(dtype=FP32, offload="none", vae_tiles=4)) == "float32, autoencoder in 4 tiles"

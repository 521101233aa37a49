"""A picture worked on in tiles: the numbers of the whole, and less memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s2v_core.config import VAEConfig
from s2v_core.models.tiles import TiledVAE, cut, halo, tiled_share
from s2v_core.models.vae import WanVAE

from ..benchmarks.traffic import Traffic

CONFIG = VAEConfig(dim=4, num_res_blocks=1)
H, W = 2, 30   # latent cells; a tile of 10 with its surroundings is not yet the whole
NUM_TILES = 3


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(CONFIG).eval().requires_grad_(False)


def decoded(codec: WanVAE | TiledVAE, past: Tensor, calls: list[Tensor]) -> Tensor:
    stream = codec.decoder()
    stream.prime(past)
    return torch.cat([frames for latents in calls for frames in stream.decode(latents)], 2)


def test_tiles_and_their_surroundings_are_less_than_the_picture() -> None:
    runs = cut(W, NUM_TILES, halo(CONFIG))
    assert [run[:2] for run in runs] == [(0, 10), (10, 20), (20, 30)]
    assert all(stop - start < W for _, _, start, stop in runs)
    assert tiled_share(CONFIG, W, NUM_TILES) == max(stop - start for _, _, start, stop in runs) / W


def test_frames_are_those_of_the_whole_picture_over_several_calls(vae: WanVAE) -> None:
    past, first, second = torch.randn(1, 16, 6, H, W).split([3, 2, 1], 2)
    tiled, whole = (decoded(codec, past, [first, second]) for codec in (TiledVAE(vae, NUM_TILES), vae))
    assert tiled.shape == whole.shape == (1, 3, 12, 8 * H, 8 * W)
    assert (tiled - whole).abs().max() < 1e-5


def test_fewer_surroundings_would_be_seen_in_the_frames(vae: WanVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    past, latents = torch.randn(1, 16, 3, H, W).split([2, 1], 2)
    monkeypatch.setattr("s2v_core.models.tiles.halo", lambda config: 1)
    tiled, whole = (decoded(codec, past, [latents]) for codec in (TiledVAE(vae, NUM_TILES), vae))
    assert (tiled - whole).abs().max() > 1e-4


@pytest.mark.parametrize("num_frames", [1, 6, 9])
def test_latents_are_those_of_the_whole_picture(vae: WanVAE, num_frames: int) -> None:
    frames = torch.rand(1, 3, num_frames, 8 * H, 8 * W) * 2 - 1
    tiled, whole = TiledVAE(vae, NUM_TILES).encode(frames), vae.encode(frames)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 1e-5


@torch.no_grad()
def test_work_on_a_tile_takes_its_share_of_the_memory() -> None:
    config = VAEConfig(dim=4, num_res_blocks=1)
    vae, latents = WanVAE(config, device="meta"), torch.empty(1, 16, 4, 16, 60, device="meta")
    with Traffic() as whole:
        for _ in vae.decoder().decode(latents):
            pass
    runs = cut(60, 4, halo(config))
    left, _, start, stop = max(runs, key=lambda run: run[3] - run[2])
    with Traffic() as tile:
        for _ in vae.decoder().decode(latents[..., start:stop]):
            pass
    assert left == 15 and tile.peak / whole.peak == pytest.approx(tiled_share(config, 60, 4), rel=0.05)

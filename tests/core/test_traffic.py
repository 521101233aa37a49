"""What a forward of the 14B model asks of a device, counted at real shapes; and what torch.compile makes of a block."""

from __future__ import annotations

import pytest
import torch

from s2v_core.config import TransformerConfig
from s2v_core.geometry import VideoSize
from s2v_core.models.dit import ClipContext, WanS2VTransformer

from ..benchmarks.traffic import Traffic, make_model, measure

T, H, W = 2, 8, 12


@pytest.fixture(scope="module")
def large() -> WanS2VTransformer:
    return make_model()


@pytest.mark.parametrize(
    ("size", "tokens", "elementwise_gb", "peak_gb"),
    [(VideoSize(width=832, height=480), 35_074, 1100, 3.3), (VideoSize(width=1280, height=720), 80_960, 2540, 7.6)],
    ids=str,
)
def test_a_forward_moves_no_more_than_it_must(
    large: WanS2VTransformer, size: VideoSize, tokens: int, elementwise_gb: float, peak_gb: float
) -> None:
    traffic, clip = measure(large, size)
    assert clip.layout.total == tokens
    assert traffic.kernels <= 1400
    assert traffic.moved <= elementwise_gb * 1e9
    assert traffic.peak <= peak_gb * 1e9


def test_the_count_knows_bytes_kernels_and_what_is_alive() -> None:
    a = torch.empty(1000, device="meta")   # 4 kB
    with Traffic() as traffic:
        b = a + a.view(10, 100).view(-1)   # reads 8, writes 4
        b.mul_(2)                          # reads 4, writes 4
        c = torch.empty(2, 1000, device="meta")
        torch.add(a, b, out=c[0])          # reads 8, writes 4
        del b
        d = a.expand(5, 1000) * 1          # reads 4, writes 20
    assert d.shape == (5, 1000)
    assert traffic.kernels == 4
    assert traffic.moved == 56_000
    assert traffic.peak == 8_000 + 20_000


CONFIG = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=12, text_len=16, audio_dim=10, audio_inject_layers=(0,)
)


def make_clip(model: WanS2VTransformer, *, has_past: bool, seed: int) -> ClipContext:
    g = torch.Generator().manual_seed(seed)
    return model.prepare_clip(
        prompt=model.prepare_prompt(torch.randn(1, 5, 12, generator=g)),
        num_latents=T,
        reference_latent=torch.randn(1, 16, 1, H, W, generator=g),
        audio_features=torch.randn(1, 25, 10, 4 * T, generator=g),
        motion_latents=torch.randn(1, 16, 19, H, W, generator=g) if has_past else None,
    )


@torch.no_grad()
def test_compiled_blocks_have_no_graph_breaks_and_are_not_compiled_again_from_clip_to_clip() -> None:
    torch.manual_seed(0)
    model = WanS2VTransformer(CONFIG, dtype=torch.bfloat16).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    latents, t = torch.randn(1, 16, T, H, W), torch.tensor([500.0])
    clips = [make_clip(model, has_past=seed > 0, seed=seed) for seed in range(4)]
    expected = [model(latents, t, clip) for clip in clips]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for block in model.blocks:
        block.compile(backend="eager", fullgraph=True)
    compiled = []
    for clip, eager in zip(clips, expected, strict=True):
        assert (model(latents, t, clip) - eager).norm() / eager.norm() < 2e-2
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not torch._dynamo.utils.counters["graph_break"]
    assert compiled[0] < compiled[1] == compiled[2] == compiled[3], compiled
    assert compiled[1] <= 4   # whole blocks and the last, without a past and with one

"""What a forward of the 14B model asks of a device, counted at real shapes; and what torch.compile makes of a block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from s2v_core.config import TransformerConfig, VAEConfig
from s2v_core.geometry import VideoSize
from s2v_core.models.cost import activation_bytes, decoder_bytes, prepared_bytes
from s2v_core.models.dit import ClipContext, WanS2VTransformer
from s2v_core.models.vae import WanVAE

from ..benchmarks.traffic import Traffic, compiled_forward, make_model, measure
from ..benchmarks.traffic import make_clip as make_meta_clip
from ..benchmarks.traffic import prepared_bytes as measured_bytes

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


def test_compiled_blocks_move_half_of_the_bytes(large: WanS2VTransformer) -> None:
    traffic, clip = measure(large, VideoSize(width=832, height=480))
    kernels, moved = compiled_forward(large, clip, traffic)
    assert moved <= 0.5 * traffic.moved
    assert kernels < traffic.kernels


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


SIZES = [VideoSize(width=832, height=480), VideoSize(width=1280, height=720)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_estimate_of_a_forwards_memory_is_right_within_a_twentieth(dtype: torch.dtype) -> None:
    few = replace(TransformerConfig(), num_layers=3, audio_inject_layers=(0, 2))   # blocks are alike
    model = make_model(dtype, few)
    for size in SIZES:
        traffic, clip = measure(model, size)
        estimated = activation_bytes(few, clip.layout, dtype.itemsize)
        assert abs(estimated / traffic.peak - 1) < 0.05, (size, estimated, traffic.peak)


@pytest.mark.parametrize("dim, dtype", [(512, torch.bfloat16), (512, torch.float32), (256, torch.bfloat16)], ids=str)
@torch.no_grad()
def test_the_estimate_of_a_forwards_memory_on_a_cpu_is_too(dim: int, dtype: torch.dtype) -> None:
    """Where a norm takes several passes, and few channels are less than scores. Run with numbers, as the meta device
    has the kernels of a GPU."""
    sizes = {"dim": dim, "ffn_dim": 11 * dim // 4, "num_heads": dim // 128, "num_layers": 2}
    wide = replace(TransformerConfig(), **sizes, audio_inject_layers=(0,))
    model = WanS2VTransformer(wide, device="cpu", dtype=dtype).eval().requires_grad_(False)
    clip = model.prepare_clip(
        prompt=model.prepare_prompt(torch.zeros(1, 5, wide.text_dim)),
        num_latents=12,
        reference_latent=torch.zeros(1, 16, 1, H, W),
        audio_features=torch.zeros(1, wide.num_audio_layers, wide.audio_dim, 48),
        motion_latents=torch.zeros(1, 16, 19, H, W),
    )
    time = model.embed_time(torch.tensor([500.0]))
    with Traffic() as traffic:
        model(torch.zeros(1, 16, 12, H, W), time, clip)
    estimated = activation_bytes(wide, clip.layout, dtype.itemsize, on_cpu=True)
    assert abs(estimated / traffic.peak - 1) < 0.05, (estimated, traffic.peak)


def test_the_estimate_of_chunks_is_right_within_a_twentieth() -> None:
    wide = replace(TransformerConfig(), num_layers=2, audio_inject_layers=(0,), ffn_dim=40_000)
    model = make_model(torch.bfloat16, wide)
    for chunk in (None, 8_000):
        for block in model.blocks:
            block.ffn.chunk_tokens = chunk
        traffic, clip = measure(model, SIZES[0])
        estimated = activation_bytes(wide, clip.layout, 2, chunk_tokens=chunk)
        assert abs(estimated / traffic.peak - 1) < 0.05, (chunk, estimated, traffic.peak)


def test_the_estimate_of_what_is_prepared_is_right_within_a_tenth() -> None:
    few = replace(TransformerConfig(), num_layers=3, audio_inject_layers=(0, 2))
    clip = make_meta_clip(make_model(torch.bfloat16, few), SIZES[0], 20)
    estimated = prepared_bytes(few, clip.layout, 2, branches=1)
    posed = (clip.layout.num_video - 1) * few.dim * 2   # the estimate allows for a pose, which the clip has not
    assert abs((estimated - posed) / measured_bytes(clip) - 1) < 0.1


BUNDLED_VAE = VAEConfig(dim=16, num_res_blocks=1)


@pytest.mark.parametrize(
    "config, size, dtype", [(BUNDLED_VAE, (128, 128), torch.float32), (VAEConfig(), (832, 480), torch.bfloat16)]
)
@torch.no_grad()
def test_the_estimate_of_a_decode_is_right_within_a_twentieth(
    config: VAEConfig, size: tuple[int, int], dtype: torch.dtype
) -> None:
    vae, (width, height) = WanVAE(config, device="meta", dtype=dtype), size
    latents = torch.empty(1, config.latent_channels, 4, height // 8, width // 8, device="meta")
    with Traffic() as traffic:
        assert sum(frames.shape[2] for frames in vae.decoder().decode(latents)) == 13
    assert abs(decoder_bytes(config, width * height, dtype.itemsize) / traffic.peak - 1) < 0.05

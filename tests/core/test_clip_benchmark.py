"""The clip benchmark's logic, with tiny models on a CPU; on a GPU it is the same with large ones."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from s2v_core.config import (
    WAN_S2V_14B,
    AudioEncoderConfig,
    ModelConfig,
    TextEncoderConfig,
    TransformerConfig,
    VAEConfig,
)
from s2v_core.geometry import VideoSize, token_layout

TINY = ModelConfig(
    name="tiny",
    transformer=TransformerConfig(
        dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=12, text_len=200, audio_dim=16, num_audio_layers=3,
        audio_inject_layers=(0,),
    ),
    vae=VAEConfig(dim=4, num_res_blocks=1),
    text_encoder=TextEncoderConfig(vocab_size=50, dim=12, attention_dim=12, ffn_dim=16, num_heads=2, num_layers=1),
    audio_encoder=AudioEncoderConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    ),
)  # fmt: skip


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which imports the one beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("clip")


@pytest.mark.parametrize(("size", "tflop"), [((832, 480), 1903), ((1280, 720), 7432)], ids=str)
def test_the_work_of_a_forward_is_the_published_count(clip: ModuleType, size: tuple[int, int], tflop: float) -> None:
    layout = token_layout(VideoSize(width=size[0], height=size[1]).latent_grid(20), has_motion=True)
    assert clip.forward_tflop(WAN_S2V_14B.transformer, layout) == pytest.approx(tflop, rel=0.003)


@pytest.mark.parametrize("guidance", ["1", "4.5"])
def test_a_clip_passes_every_stage(clip: ModuleType, guidance: str) -> None:
    args = clip.parse(["--device", "cpu", "--dtype", "fp32", "--steps", "2", "--guidance", guidance])
    row = clip.measure(TINY, "64x64", args)
    assert list(row["stages"]) == ["text", "sound", "encode", "denoise", "decode"] == list(row["peak_gb"])
    assert row["frames"] == 80 and row["finite"] and row["tokens"] == 20 * 16 + 16 + 16 + 4 + 4
    assert row["end_to_end"] == pytest.approx(sum(row["stages"].values()), abs=1e-2)
    assert row["stages"]["denoise"] > row["seconds_per_forward"] > 0


def test_its_parity_figure_is_rounding_alone(clip: ModuleType) -> None:
    exact, rounded = (
        clip.parity(TINY.transformer, clip.parse(["--device", "cpu", "--dtype", dtype])) for dtype in ("fp32", "bf16")
    )
    assert exact == 0 and 1e-4 < rounded < 3e-2

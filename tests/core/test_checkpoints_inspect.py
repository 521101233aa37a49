"""A report says what a file is, what it fits, how it is stored and what it lacks, from its header alone."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from s2v_core.checkpoints.inspect import inspect_file
from s2v_core.config import ModelConfig
from s2v_core.errors import CheckpointError

from . import checkpoints_tiny as tiny


@pytest.fixture
def folder(tmp_path):
    """With the config.json that the small transformer needs."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.OFFICIAL))
    return tmp_path


def test_complete_transformer(folder):
    tensors = tiny.transformer_weights(torch.bfloat16)
    save_file(tensors, folder / "x.safetensors")
    report = inspect_file(folder / "x.safetensors")
    assert report.kind == "a Wan S2V transformer" and report.fits == "an S2V transformer of width 64"
    assert report.num_parameters == sum(t.numel() for t in tensors.values())
    assert [(u.format, u.num_tensors, u.num_bytes) for u in report.formats] == [
        ("BF16", len(tensors), 2 * report.num_parameters)
    ]
    assert not report.missing and not report.unexpected and not report.misshapen
    assert "BF16" in str(report) and f"{report.num_parameters:,}" in str(report) and "missing" not in str(report)


def test_incomplete_transformer_lists_what_is_wrong(folder):
    tensors = tiny.transformer_weights()
    del tensors["head.head.bias"]
    tensors["stray"] = torch.zeros(1)
    tensors["head.modulation"] = torch.zeros(1, 2, 3)
    save_file(tensors, folder / "x.safetensors")
    report = inspect_file(folder / "x.safetensors")
    assert report.missing == ("head.head.bias",)
    assert report.unexpected == ("stray",) and report.misshapen == ("head.modulation",)
    assert "but is incomplete" in str(report) and "head.head.bias" in str(report)


def test_fp8_scaled_counts_weights_and_not_scales(folder):
    tensors = tiny.transformer_weights()
    tiny.save_fp8_scaled(folder / "x.safetensors", tensors)
    report = inspect_file(folder / "x.safetensors")
    assert {use.format for use in report.formats} == {"F8_E4M3", "F32"}
    assert report.num_parameters == sum(t.numel() for t in tensors.values())
    assert not report.missing and not report.unexpected


def test_gguf_names_its_block_formats(folder):
    tiny.save_gguf(folder / "x.gguf", tiny.transformer_weights(), "Q4_0")
    report = inspect_file(folder / "x.gguf")
    assert report.kind == "a Wan S2V transformer in GGUF"
    assert {use.format for use in report.formats} == {"Q4_0", "F16", "F32"}
    assert not report.missing and not report.misshapen


def test_text_to_video_says_what_it_lacks(tmp_path):
    tensors = tiny.transformer_weights()
    deaf = {n: t for n, t in tensors.items() if not n.startswith(("casual_audio_encoder", "audio_injector"))}
    save_file(deaf, tmp_path / "x.safetensors")
    report = inspect_file(tmp_path / "x.safetensors")
    assert report.kind == "a Wan text-to-video transformer" and report.fits.startswith("not Wan-S2V")
    assert "audio_injector.injector.0.q.weight" in report.missing


def test_a_transformer_of_unknown_layout_says_what_it_needs(tmp_path):
    save_file(tiny.transformer_weights(), tmp_path / "x.safetensors")
    assert "config.json" in inspect_file(tmp_path / "x.safetensors").fits


@pytest.mark.parametrize(
    "make,kind",
    [
        (tiny.vae_weights, "a Wan 2.1 VAE"),
        (tiny.text_weights, "a umT5 text encoder"),
        (tiny.audio_weights, "a wav2vec2 sound encoder"),
    ],
)
def test_companions(tmp_path, make, kind):
    torch.save(make(), tmp_path / "x.pth")
    report = inspect_file(tmp_path / "x.pth")
    assert report.kind == kind and report.fits.startswith("another size")
    assert not report.missing and not report.unexpected and not report.misshapen


def test_parts_of_our_own_layout_are_called_by_the_model_s_name(tmp_path):
    config = ModelConfig(name="tiny", transformer=tiny.CONFIG, vae=tiny.VAE)
    (tmp_path / "model.json").write_text(json.dumps(asdict(config)))
    save_file(tiny.transformer_weights(), tmp_path / "transformer.safetensors")
    report = inspect_file(tmp_path / "transformer.safetensors")
    assert report.fits == "tiny" and not report.missing


def lora(target: str, num_out: int, num_in: int, rank: int = 4) -> dict[str, torch.Tensor]:
    down, up = torch.zeros(rank, num_in), torch.zeros(num_out, rank)
    return {f"{target}.lora_down.weight": down, f"{target}.lora_up.weight": up}


def test_lora_for_the_14b_model(tmp_path):
    tensors = lora("diffusion_model.blocks.0.self_attn.q", 5120, 5120) | lora("diffusion_model.img_emb.proj.1", 8, 8)
    save_file(tensors, tmp_path / "x.safetensors")
    report = inspect_file(tmp_path / "x.safetensors")
    assert report.kind == "a LoRA of rank 4 for 2 modules"
    assert report.fits == "Wan2.2-S2V-14B: 2 of 4 keys" and report.unexpected == ("img_emb.proj.1",)


def test_lora_of_another_model(tmp_path):
    save_file(lora("double_blocks.0.img_attn.qkv", 8, 8), tmp_path / "x.safetensors")
    assert "0 of 2 keys; it looks like a LoRA for FLUX" in inspect_file(tmp_path / "x.safetensors").fits


def test_unknown_weights_are_said_to_be(tmp_path):
    save_file({"model.layers.0.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    report = inspect_file(tmp_path / "x.safetensors")
    assert "no kind that is known" in report.kind and report.num_parameters == 3


def test_what_is_no_weight_file_is_an_error(tmp_path):
    (tmp_path / "x.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="text, not weights"):
        inspect_file(tmp_path / "x.safetensors")

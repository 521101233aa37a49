"""Weights into models: every published form gives the same model, nothing is copied, and what does not fit is said."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from s2v_core.checkpoints import loading
from s2v_core.checkpoints.files import open_weights
from s2v_core.checkpoints.loading import fold_scales, load_into, load_model, main_dtype, read_component
from s2v_core.errors import CheckpointError
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.models.sound_encoder import SoundEncoder
from s2v_core.models.text_encoder import build_text_encoder
from s2v_core.models.vae import WanVAE
from s2v_core.ops.quantized import QuantizedEmbedding, QuantizedLinear

from . import checkpoints_tiny as tiny


def load(path, dtype=None) -> WanS2VTransformer:
    return load_model(path, "transformer", lambda: WanS2VTransformer(tiny.CONFIG), dtype=dtype)


def with_weights(tensors) -> WanS2VTransformer:
    """The model that these numbers mean."""
    model = tiny.transformer()
    for name, parameter in model.named_parameters():
        parameter.data = tensors[name].float()
    return model


def fault(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    return str(caught.value)


# ---- the transformer in every form


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_safetensors_gives_back_the_model(tmp_path, prefix):
    save_file(tiny.transformer_weights(prefix=prefix), tmp_path / "x.safetensors")
    assert torch.equal(tiny.velocity(load(tmp_path / "x.safetensors")), tiny.velocity(tiny.transformer()))


def test_sharded_set_gives_back_the_model(tmp_path):
    index = tiny.save_sharded(tmp_path, tiny.transformer_weights())
    assert torch.equal(tiny.velocity(load(index)), tiny.velocity(tiny.transformer()))


def test_torch_pickle_gives_back_the_model(tmp_path):
    torch.save(tiny.transformer_weights(), tmp_path / "x.pth")
    assert torch.equal(tiny.velocity(load(tmp_path / "x.pth")), tiny.velocity(tiny.transformer()))


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_fp8_scaled_stays_packed_and_means_its_scaled_numbers(tmp_path, spelling, prefix):
    path = tmp_path / "x.safetensors"
    meant = tiny.save_fp8_scaled(path, tiny.transformer_weights(prefix=prefix), spelling=spelling)
    model = load(path, torch.float32)
    packed = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(packed) == sum(tiny.is_matrix(name, t) for name, t in tiny.transformer_weights().items()) > 20
    assert {m.packed_format for m in packed} == {"F8_E4M3"}
    expected = with_weights({name.removeprefix(prefix): t for name, t in meant.items()})
    assert torch.equal(tiny.velocity(model), tiny.velocity(expected))


def test_plain_fp8_stays_packed_where_it_can(tmp_path):
    tensors = tiny.transformer_weights(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "x.safetensors")
    model = load(tmp_path / "x.safetensors", torch.float32)
    assert isinstance(model.blocks[0].ffn[0], QuantizedLinear)
    assert model.patch_embedding.weight.dtype == model.blocks[0].modulation.dtype == torch.float32
    assert torch.equal(tiny.velocity(model), tiny.velocity(with_weights(tensors)))


@pytest.mark.parametrize("matrices", ["Q8_0", "Q4_0", "Q5_1"])
def test_gguf_stays_packed_and_means_its_numbers(tmp_path, matrices):
    meant = tiny.save_gguf(tmp_path / "x.gguf", tiny.transformer_weights(), matrices)
    model = load(tmp_path / "x.gguf", torch.float32)
    assert model.blocks[1].cross_attn.k.packed_format == matrices
    assert torch.equal(tiny.velocity(model), tiny.velocity(with_weights(meant)))


def test_packed_model_takes_less_memory(tmp_path):
    tiny.save_gguf(tmp_path / "x.gguf", tiny.transformer_weights(), "Q4_0")
    linears = [m for m in load(tmp_path / "x.gguf").modules() if isinstance(m, QuantizedLinear)]
    assert sum(m.packed.nbytes for m in linears) == sum(m.in_features * m.out_features for m in linears) * 18 // 32


def test_packed_table_is_unpacked_on_loading(tmp_path):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 8)

    values = torch.randn(3, 8).to(torch.float8_e4m3fn)
    save_file({"table.weight": values, "table.scale_weight": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    model = Table()
    load_into(model, fold_scales(open_weights(tmp_path / "x.safetensors")), path=tmp_path, dtype=torch.float32)
    assert torch.equal(model.table.weight, values.float() * 2)


def test_scale_of_an_unpacked_weight_is_applied(tmp_path):
    tensors = tiny.transformer_weights()
    expected = tiny.velocity(with_weights(tensors))
    tensors["head.head.weight"] = tensors["head.head.weight"] / 4
    tensors["head.head.scale_weight"] = torch.tensor(4.0)
    save_file(tensors, tmp_path / "x.safetensors")
    assert torch.equal(tiny.velocity(load(tmp_path / "x.safetensors")), expected)


# ---- memory and dtypes


def test_weights_that_need_no_cast_are_the_mapped_file(tmp_path):
    save_file(tiny.transformer_weights(torch.bfloat16), tmp_path / "x.safetensors")
    model = load(tmp_path / "x.safetensors", torch.bfloat16)
    size = (tmp_path / "x.safetensors").stat().st_size
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    assert list(storages.values()) == [size]


def test_packed_weights_are_the_mapped_file_too(tmp_path):
    tiny.save_gguf(tmp_path / "x.gguf", tiny.transformer_weights())
    packed = [m.packed for m in load(tmp_path / "x.gguf").modules() if isinstance(m, QuantizedLinear)]
    assert len({p.untyped_storage().data_ptr() for p in packed}) == 1


def test_matrices_take_the_dtype_and_small_weights_keep_their_precision(tmp_path):
    save_file(tiny.transformer_weights(), tmp_path / "x.safetensors")
    model = load(tmp_path / "x.safetensors", torch.bfloat16)
    assert model.blocks[0].ffn[0].weight.dtype == model.patch_embedding.weight.dtype == torch.bfloat16
    assert model.blocks[0].modulation.dtype == model.blocks[0].norm3.weight.dtype == torch.float32
    assert model.compute_dtype == torch.bfloat16
    assert tiny.velocity(model).isfinite().all()


def test_dtype_none_keeps_what_is_stored(tmp_path):
    save_file(tiny.transformer_weights(torch.float16), tmp_path / "x.safetensors")
    assert {p.dtype for p in load(tmp_path / "x.safetensors").parameters()} == {torch.float16}


def test_nothing_asks_for_gradients_and_all_is_in_eval_mode(tmp_path):
    tiny.save_gguf(tmp_path / "x.gguf", tiny.transformer_weights())
    model = load(tmp_path / "x.gguf")
    assert not any(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())


@pytest.mark.parametrize(
    "save,dtype",
    [
        (lambda p: save_file(tiny.transformer_weights(torch.bfloat16), p), torch.bfloat16),
        (lambda p: save_file(tiny.transformer_weights(torch.float8_e4m3fn), p), torch.float8_e4m3fn),
        (lambda p: tiny.save_gguf(p, tiny.transformer_weights()), torch.uint8),
    ],
)
def test_main_dtype_is_what_most_bytes_are(tmp_path, save, dtype):
    save(tmp_path / "x")
    tensors = read_component(tmp_path / "x", "transformer")
    assert main_dtype(t for n, t in tensors.items() if not n.startswith("frame_packer")) == dtype   # large only here


# ---- the companions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vae_of_both_published_precisions(tmp_path, dtype):
    tensors = tiny.vae_weights(dtype)
    torch.save(tensors, tmp_path / "x.pth")
    vae = load_model(tmp_path / "x.pth", "vae", lambda: WanVAE(tiny.VAE), dtype=torch.float32)
    assert {p.dtype for p in vae.parameters()} == {torch.float32}
    assert all(torch.equal(p, tensors[name].float()) for name, p in vae.named_parameters())
    assert vae.encode(torch.zeros(1, 3, 1, 64, 64)).isfinite().all()


def text_states(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 1]])).last_hidden_state


def load_text(path, dtype=None):
    return load_model(path, "text_encoder", lambda: build_text_encoder(tiny.TEXT), dtype=dtype)


def test_text_encoder_with_its_tokenizer_inside(tmp_path):
    tensors = tiny.text_weights()
    save_file({**tensors, "spiece_model": torch.zeros(9, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    model = load_text(tmp_path / "x.safetensors")
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert torch.equal(text_states(model), text_states(tiny.randomised(build_text_encoder(tiny.TEXT), 2)))


def test_text_encoder_in_fp8_with_mixed_precision_runs(tmp_path):
    tensors = {n: t if "norm" in n else t.half() for n, t in tiny.text_weights().items()}
    meant = tiny.save_fp8_scaled(tmp_path / "x.safetensors", tensors)
    model = load_text(tmp_path / "x.safetensors")
    assert isinstance(model.encoder.block[0].layer[0].SelfAttention.q, QuantizedLinear)
    assert model.shared.weight.dtype == model.encoder.final_layer_norm.weight.dtype == torch.bfloat16
    exact = build_text_encoder(tiny.TEXT)
    for name, parameter in exact.named_parameters():
        parameter.data = meant[name].float()
    assert (text_states(model) - text_states(exact)).abs().max() < 0.05 * text_states(exact).abs().max()


@pytest.mark.parametrize("save", [tiny.save_fp8_scaled, tiny.save_gguf])
def test_vocabulary_stays_packed_under_both_its_names(tmp_path, monkeypatch, save):
    monkeypatch.setattr(loading, "_LARGE_TABLE", tiny.TEXT.vocab_size)
    meant = save(tmp_path / "x", tiny.text_weights())
    model = load_text(tmp_path / "x", torch.float32)
    assert isinstance(model.shared, QuantizedEmbedding) and model.shared is model.encoder.embed_tokens
    exact = build_text_encoder(tiny.TEXT)
    for name, parameter in exact.named_parameters():
        parameter.data = meant[name].float()
    assert torch.equal(model.shared(torch.arange(9)), exact.shared(torch.arange(9)))
    torch.testing.assert_close(text_states(model), text_states(exact), rtol=1e-5, atol=1e-5)   # sums in another order


def test_text_encoder_in_gguf_spelling(tmp_path):
    from .test_checkpoints_keymaps import gguf_t5_name

    tiny.save_gguf(tmp_path / "x.gguf", {gguf_t5_name(name): t for name, t in tiny.text_weights().items()})
    model = load_text(tmp_path / "x.gguf", torch.float32)
    exact = text_states(tiny.randomised(build_text_encoder(tiny.TEXT), 2))
    assert (text_states(model) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("spelling", ["new", "old", "bare"])
def test_sound_encoder_spellings(tmp_path, spelling):
    tensors = tiny.audio_weights()
    stored = {"lm_head.weight": torch.zeros(3, 64), "wav2vec2.masked_spec_embed": torch.zeros(64), **tensors}
    if spelling == "old":
        for i, old in enumerate(("weight_g", "weight_v")):
            stored = {n.replace(f"parametrizations.weight.original{i}", old): t for n, t in stored.items()}
    if spelling == "bare":
        stored = {n.removeprefix("wav2vec2."): t for n, t in stored.items()}
    save_file(stored, tmp_path / "x.safetensors")
    path = tmp_path / "x.safetensors"
    model = load_model(path, "audio_encoder", lambda: SoundEncoder(tiny.AUDIO), dtype=torch.float32)
    sound = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    expected = tiny.randomised(SoundEncoder(tiny.AUDIO), 3).hidden_states(sound)
    assert torch.equal(model.hidden_states(sound), expected)


# ---- what does not fit


def test_another_kind_of_file_is_named(tmp_path):
    save_file(tiny.vae_weights(), tmp_path / "vae.safetensors")
    assert "is a Wan 2.1 VAE, where the Wan2.2-S2V transformer (" in fault(tmp_path / "vae.safetensors")


def test_a_text_to_video_checkpoint_is_named(tmp_path):
    tensors = tiny.transformer_weights()
    deaf = {n: t for n, t in tensors.items() if not n.startswith(("casual_audio_encoder", "audio_injector"))}
    save_file(deaf, tmp_path / "t2v.safetensors")
    assert "is a Wan text-to-video transformer" in fault(tmp_path / "t2v.safetensors")


def test_missing_unknown_and_misshapen_weights_are_counted_and_named(tmp_path):
    tensors = tiny.transformer_weights()
    total = len(tensors)
    del tensors["head.head.bias"], tensors["blocks.1.ffn.0.bias"]
    tensors["extra.weight"] = torch.zeros(1)
    tensors["head.modulation"] = torch.zeros(1, 2, 65)
    save_file(tensors, tmp_path / "x.safetensors")
    text = fault(tmp_path / "x.safetensors")
    assert "\n" not in text
    assert f"2 of {total} weights are missing (blocks.1.ffn.0.bias, head.head.bias)" in text
    assert f"1 of {total - 1} weights are unknown (extra.weight)" in text
    assert "head.modulation is [1, 2, 65] where [1, 2, 64] belongs" in text


@pytest.mark.parametrize("where", ["tensor", "metadata"])
def test_other_quantisations_are_refused_by_name(tmp_path, where):
    tensors, metadata = tiny.transformer_weights(), {}
    if where == "tensor":
        note = json.dumps({"format": "nvfp4"}).encode()
        tensors["head.head.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    else:
        metadata["_quantization_metadata"] = json.dumps({"layers": {"head.head": {"format": "nvfp4"}}})
    save_file(tensors, tmp_path / "x.safetensors", metadata=metadata)
    assert "quantised as nvfp4" in fault(tmp_path / "x.safetensors")


def test_block_scales_are_refused(tmp_path):
    tensors = tiny.transformer_weights()
    tensors["blocks.0.ffn.0.weight_scale"] = torch.ones(3, 4)
    save_file(tensors, tmp_path / "x.safetensors")
    assert "one scale a tensor or one a row" in fault(tmp_path / "x.safetensors")


def test_whole_numbers_are_no_weights(tmp_path):
    tensors = tiny.transformer_weights()
    tensors["head.head.weight"] = torch.zeros(64, 64, dtype=torch.int8)
    save_file(tensors, tmp_path / "x.safetensors")
    assert "stores head.head.weight as I8" in fault(tmp_path / "x.safetensors")


def test_iq_quants_are_refused_by_name(tmp_path):
    import gguf
    import numpy as np

    tensors = tiny.transformer_weights()
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "wan")
    for name, tensor in tensors.items():
        if name == "blocks.0.ffn.0.weight":
            kind = gguf.GGMLQuantizationType.IQ4_NL
            writer.add_tensor(name, np.zeros((96, 2 * 18), dtype=np.uint8), raw_dtype=kind)
        elif tensor.dim() == 5:
            writer.add_tensor(name, tensor.numpy().reshape(len(tensor), -1))
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
        else:
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "IQ4_NL" in fault(tmp_path / "x.gguf")


def test_loading_says_nothing_when_all_is_well(tmp_path, caplog):
    save_file(tiny.transformer_weights(), tmp_path / "x.safetensors")
    with caplog.at_level(logging.WARNING):
        load(tmp_path / "x.safetensors")
    assert not caplog.records

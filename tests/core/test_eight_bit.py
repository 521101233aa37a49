"""8-bit products: errors are what rounding gives, weights take a byte a number, and a device that is wrong is left."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from s2v_core.checkpoints.loading import load_model
from s2v_core.checkpoints.lora import apply_lora, load_lora
from s2v_core.components import Components
from s2v_core.errors import ConfigError
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.ops import eight_bit
from s2v_core.ops.eight_bit import FP8, INT8, KINDS, EightBit, EightBitLinear, make_eight_bit
from s2v_core.ops.quantized import QuantizedLinear
from s2v_core.placement import BlockStreamer, num_bytes

from . import checkpoints_tiny as tiny

HALF_BF16 = 2**-8   # half a step of bf16, relative


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_layer(kind: str, weight: Tensor, bias: Tensor | None = None) -> EightBitLinear:
    arithmetic = EightBit(kind)
    packed, scale = arithmetic.pack(weight)
    bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return EightBitLinear(packed, scale=scale, bias=bias, arithmetic=arithmetic)


def load(path, kind: str | None = None, dtype: torch.dtype | None = torch.float32) -> WanS2VTransformer:
    arithmetic = None if kind is None else EightBit(kind)
    return load_model(path, "transformer", lambda: WanS2VTransformer(tiny.CONFIG), dtype=dtype, eight_bit=arithmetic)


def components(**options: object) -> Components:
    """Of the bundled model, in bf16."""
    usual = {"device": "cpu", "attention": "sdpa", "offload": "none", "loras": (), "load_weights": True}
    return Components.find(None, dtype=torch.bfloat16, **usual, **options)


def eight_bit_layers(model: nn.Module) -> dict[str, EightBitLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, EightBitLinear)}


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture
def weights_file(tmp_path):
    save_file(tiny.transformer_weights(torch.bfloat16), tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


# ---- one layer -------------------------------------------------------------------------------------------------------


def test_int8_is_off_by_no_more_than_half_steps_can_add_up_to():
    x, weight, bias = draw(40, 96), draw(32, 96, seed=1), draw(32, seed=2)
    layer = make_layer("int8", weight, bias)
    kept = layer.dense_weight(torch.float64, x.device)
    half_x, half_w = INT8.scale_of(x).double() / 2, INT8.scale_of(weight).double() / 2
    bound = half_w.T * x.abs().sum(1, keepdim=True) + half_x * kept.abs().sum(1)
    error = (layer(x) - (x.double() @ weight.double().T + bias)).abs()
    assert (error <= bound * (1 + 1e-5)).all()
    assert error.max() > 0


def test_int8_error_is_that_of_evenly_spread_rounding():
    x, weight = draw(200, 512), draw(256, 512, seed=1)
    error = make_layer("int8", weight)(x) - x @ weight.T
    variance = INT8.scale_of(x) ** 2 / 12 * weight.square().sum(1)
    variance = variance + INT8.scale_of(weight).T ** 2 / 12 * x.square().sum(1, keepdim=True)
    assert error.square().mean().sqrt().item() == pytest.approx(variance.mean().sqrt().item(), rel=0.02)


@pytest.mark.parametrize("way", KINDS["fp8"].ways)
def test_fp8_is_off_by_no_more_than_half_steps_can_add_up_to(way):
    x, weight, bias = draw(40, 96), draw(32, 96, seed=1), draw(32, seed=2)
    layer = make_layer("fp8", weight, bias)
    kept = layer.dense_weight(torch.float32, x.device)
    scale = FP8.scale_of(x).amax()

    def half_step(values: Tensor, scale: Tensor) -> Tensor:   # 3 bits after the first, and 2^-9 of the scale at least
        return torch.maximum(2**-4 * values.abs(), 2**-10 * scale)

    error_x, error_w = half_step(x, scale), half_step(weight, FP8.scale_of(weight).amax())
    exact = x @ weight.T + bias
    bound = x.abs() @ error_w.T + error_x @ kept.abs().T
    out = layer.multiplied(x, way)
    assert ((out - exact).abs() <= bound + HALF_BF16 * (out.abs() + bias.abs())).all()
    assert relative(out, exact) > 0.01   # so it was fp8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_results_have_the_input_s_shape_and_dtype(kind, dtype):
    layer = make_layer(kind, draw(32, 64), draw(32, seed=1))
    x = draw(2, 3, 20, 64, seed=2).to(dtype)
    out = layer(x)
    assert out.shape == (2, 3, 20, 32) and out.dtype == dtype
    assert relative(out.float(), layer.unpacked(x.float())) < KINDS[kind].max_error
    assert layer.arithmetic.way(layer, x.flatten(0, -2)) is KINDS[kind].ways[0]


def test_whole_numbers_are_multiplied_exactly_by_int8():
    g = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-127, 128, shape, generator=g).float() for shape in ((33, 64), (16, 64)))
    x[:, 0] = weight[:, 0] = 127
    assert torch.equal(make_layer("int8", weight)(x), x @ weight.T)


def test_numbers_of_fp8_are_multiplied_exactly_up_to_bf16():
    g = torch.Generator().manual_seed(3)
    x, weight = (torch.randint(-7, 8, shape, generator=g).float() for shape in ((33, 64), (16, 64)))
    x[:, 0] = weight[:, 0] = 7   # 448 / 64: what is left of the scale is a power of two
    for way in KINDS["fp8"].ways:
        assert torch.equal(make_layer("fp8", weight).multiplied(x, way), (x @ weight.T).bfloat16().float())


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_in_parts_changes_nothing(kind, monkeypatch):
    layer, x = make_layer(kind, draw(48, 64)), draw(70, 64, seed=1)
    whole = layer(x)
    monkeypatch.setattr(eight_bit, "AT_ONCE", 20 * 64)
    assert torch.equal(layer(x), whole)
    assert torch.equal(make_layer(kind, draw(48, 64)).packed, layer.packed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens,num_in,num_out", [(16, 64, 32), (40, 72, 32), (40, 64, 24)])
def test_few_tokens_and_odd_sizes_meet_the_weight_unpacked(kind, tokens, num_in, num_out):
    layer, x = make_layer(kind, draw(num_out, num_in), draw(num_out, seed=1)), draw(tokens, num_in, seed=2)
    assert torch.equal(layer(x), F.linear(x, layer.dense_weight(x.dtype, x.device), layer.bias))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_zeros_give_the_bias_or_zeros(kind, caplog):
    bias, x = torch.arange(16.0), torch.eye(20, 32)
    assert torch.equal(make_layer(kind, torch.zeros(16, 32), bias)(x), bias.expand(20, 16))
    assert not make_layer(kind, torch.zeros(16, 32))(x).any()
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_is_no_number_stays_so_and_alone(kind):
    layer, x = make_layer(kind, draw(16, 32)), draw(20, 32, seed=1)
    layer(x)
    x[3, 5] = torch.nan
    assert layer(x).isnan().all(1).tolist() == [i == 3 for i in range(20)]


@pytest.mark.parametrize("kind", KINDS)
def test_casting_the_module_leaves_bytes_and_scale_alone(kind):
    layer = make_layer(kind, draw(16, 32) * 1e-6, draw(16, seed=1))
    before = layer.packed.clone(), layer.scale_bits.clone()
    layer.half()
    assert layer.bias.dtype == torch.float16
    assert torch.equal(layer.packed, before[0]) and torch.equal(layer.scale_bits, before[1])


def test_a_weight_takes_a_byte_a_number():
    weight = draw(48, 64)
    assert num_bytes(make_layer("fp8", weight)) == weight.numel() + 4
    assert num_bytes(make_layer("int8", weight)) == weight.numel() + 4 * 48


# ---- a device that cannot --------------------------------------------------------------------------------------------


def refuses(*_arguments: object) -> Tensor:
    raise RuntimeError("no kernel image is available\nsecond line")


def is_wrong(x: Tensor, weight: Tensor, *_others: object) -> Tensor:
    return x @ weight.to(x.dtype).T   # the scale is forgotten


def with_ways(monkeypatch, *ways) -> None:
    monkeypatch.setitem(KINDS, "fp8", replace(KINDS["fp8"], ways=ways))


@pytest.mark.parametrize("way,said", [(refuses, "does not run (no kernel image is available)"), (is_wrong, "off by")])
def test_a_wrong_product_is_dropped_with_one_warning(monkeypatch, caplog, way, said):
    with_ways(monkeypatch, way)
    layer, x = make_layer("fp8", draw(32, 64)), draw(40, 64, seed=1)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(layer(x), layer.unpacked(x)) and torch.equal(layer(x), layer.unpacked(x))
    (record,) = caplog.records
    assert said in record.getMessage() and "second line" not in record.getMessage()
    assert "fp8" in record.getMessage() and "cpu" in record.getMessage() and "float32" in record.getMessage()


def test_the_first_way_that_is_right_is_taken(monkeypatch, caplog):
    by_tensor = KINDS["fp8"].ways[1]
    with_ways(monkeypatch, refuses, is_wrong, by_tensor)
    layer, x = make_layer("fp8", draw(32, 64)), draw(40, 64, seed=1)
    assert torch.equal(layer(x), layer.multiplied(x, by_tensor))
    assert not caplog.records


# ---- a whole model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_audio_layers_alone_multiply_in_8_bits(weights_file, kind):
    layers = eight_bit_layers(load(weights_file, kind))
    ten, four = 2 * (4 + 4 + 2), 4   # of two blocks: two attentions and the feed-forward; of one audio layer
    assert len(layers) == ten + four
    assert all(name.startswith(("blocks.", "audio_injector.injector.")) for name in layers)
    assert len({id(layer.arithmetic) for layer in layers.values()}) == 1


@pytest.mark.parametrize("kind,largest", [("int8", 0.02), ("fp8", 0.06)])
def test_a_model_in_8_bits_is_near_the_exact_one(weights_file, kind, largest):
    model = load(weights_file, kind)
    error = relative(tiny.velocity(model), tiny.velocity(load(weights_file)))
    assert 1e-4 < error < largest
    (way,) = model.blocks[0].ffn[0].arithmetic._ways.values()
    assert way is KINDS[kind].ways[0]


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
def test_fp8_scaled_files_are_multiplied_as_stored(tmp_path, spelling):
    path = tmp_path / "x.safetensors"
    meant = tiny.save_fp8_scaled(path, tiny.transformer_weights(), spelling=spelling)
    model, plain = load(path, "fp8"), load(path)
    for name, layer in eight_bit_layers(model).items():
        assert torch.equal(layer.packed, plain.get_submodule(name).packed)
        assert torch.equal(layer.dense_weight(torch.float32, torch.device("cpu")), meant[f"{name}.weight"])
    assert 1e-4 < relative(tiny.velocity(model), tiny.velocity(plain)) < 0.06


def test_fp8_without_scales_is_multiplied_as_stored(tmp_path):
    save_file(tiny.transformer_weights(torch.float8_e4m3fn), tmp_path / "x.safetensors")
    model = load(tmp_path / "x.safetensors", "fp8")
    assert all(layer.scale_bits is None for layer in eight_bit_layers(model).values())
    assert relative(tiny.velocity(model), tiny.velocity(load(tmp_path / "x.safetensors"))) < 0.06


def test_fp8_with_a_scale_a_row_is_right_both_ways():
    weight, x = draw(32, 64).to(torch.float8_e4m3fn), draw(40, 64, seed=1)
    rows = torch.rand(32, 1, generator=torch.Generator().manual_seed(2)) + 0.5
    layer = EightBitLinear(
        weight.view(torch.uint8), scale=rows, bias=nn.Parameter(draw(32, seed=3)), arithmetic=EightBit("fp8")
    )
    for way in KINDS["fp8"].ways:
        assert relative(layer.multiplied(x, way), x @ (weight.float() * rows).T + layer.bias) < KINDS["fp8"].max_error


@pytest.mark.parametrize("save", [tiny.save_gguf, tiny.save_fp8_scaled])
def test_packed_files_of_another_kind_are_rounded_anew(tmp_path, save):
    path = tmp_path / ("x.gguf" if save is tiny.save_gguf else "x.safetensors")
    save(path, tiny.transformer_weights())
    model = load(path, "int8")
    assert {layer.packed_format for layer in eight_bit_layers(model).values()} == {"INT8"}
    assert isinstance(model.time_projection[1], QuantizedLinear)
    assert relative(tiny.velocity(model), tiny.velocity(load(path))) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_is_let_go_before_the_next_is_rounded(weights_file, kind, monkeypatch):
    alive: list[weakref.ref] = []
    pack = EightBit.pack

    def packs(arithmetic: EightBit, weight: Tensor) -> tuple[Tensor, Tensor]:
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(weight))
        return pack(arithmetic, weight)

    monkeypatch.setattr(EightBit, "pack", packs)
    load(weights_file, kind)
    assert len(alive) == 24


@pytest.mark.parametrize("kind", KINDS)
def test_loras_are_added_beside_and_taken_off_again(weights_file, tmp_path, kind):
    down, up = draw(4, 64) * 0.1, draw(64, 4, seed=1)
    target = "diffusion_model.blocks.0.self_attn.q"
    save_file({f"{target}.lora_down.weight": down, f"{target}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    model, x = load(weights_file, kind), draw(40, 64, seed=2)
    layer = model.blocks[0].self_attn.q
    before, bytes_before = layer(x), layer.packed.clone()
    applied = apply_lora(model, load_lora(tmp_path / "lora.safetensors"), 0.5)
    torch.testing.assert_close(layer(x), before + 0.5 * (x @ down.T @ up.T))
    assert torch.equal(layer.packed, bytes_before)
    applied.remove()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_blocks_give_the_same_numbers(weights_file, kind):
    model = load(weights_file, kind)
    expected = tiny.velocity(model)
    streamer = BlockStreamer(model.blocks, torch.device("cpu"))
    assert torch.equal(tiny.velocity(model), expected)
    streamer.stop()


# ---- a pipeline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_s_transformer_multiplies_as_asked_and_takes_what_was_planned(kind):
    plain, asked = components(), components(matmul=kind)
    layers = eight_bit_layers(asked._transformer).values()
    saved = sum(layer.packed.numel() - 4 * layer.scale_bits.numel() for layer in layers)
    assert saved > 1e6
    assert num_bytes(plain._transformer) - num_bytes(asked._transformer) == saved
    assert plain._weights["transformer"] - asked._weights["transformer"] == saved


def test_other_numbers_make_another_run():
    runs = [components(), components(matmul="int8"), components(matmul="fp8"), components(vae_dtype=torch.bfloat16)]
    identities = [run.identity() for run in runs]
    assert all(identities.count(identity) == 1 for identity in identities)


def test_the_autoencoder_computes_as_asked_and_hands_out_float32():
    exact, half = components().codec, components(vae_dtype=torch.bfloat16).codec
    frames = draw(1, 3, 5, 32, 32).clamp(-1, 1)
    latents = half.encode(frames)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert latents.dtype == torch.float32
    assert 1e-5 < relative(latents, exact.encode(frames)) < 0.02


def test_an_unknown_product_is_refused():
    assert make_eight_bit("off") is None
    with pytest.raises(ConfigError, match="matmul must be off, fp8 or int8; got 'int4'"):
        make_eight_bit("int4")

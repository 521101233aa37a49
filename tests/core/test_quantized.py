"""Packed weights: the numbers are gguf's own, the layer is a Linear, and casts leave the bytes alone."""

from __future__ import annotations

import copy

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s2v_core.errors import ConfigError
from s2v_core.ops import quantized
from s2v_core.ops.quantized import PACKED_FORMATS, QuantizedEmbedding, QuantizedLinear, unpack

GGUF_FORMATS = [name for name in PACKED_FORMATS if name.startswith("Q")]


def random_blocks(name: str, rows: int, blocks_per_row: int, seed: int = 0) -> torch.Tensor:
    """Any bytes are valid blocks but for their float16 scales, which must be finite."""
    form = PACKED_FORMATS[name]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * blocks_per_row, form.num_bytes), dtype=np.uint8)
    for offset in HALVES[name]:
        blocks[:, offset : offset + 2] = rng.normal(0, 0.1, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    return torch.from_numpy(blocks).view(rows, -1)


HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_blocks_unpack_to_exactly_what_gguf_says(name):
    packed = random_blocks(name, rows=6, blocks_per_row=3)
    theirs = gguf.quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType[name])
    assert torch.equal(unpack(packed, name), torch.from_numpy(theirs))


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_block_sizes_are_gguf_s(name):
    form = PACKED_FORMATS[name]
    assert (form.num_values, form.num_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


@pytest.mark.parametrize("name,dtype", [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_fp8_number_unpacks_to_torch_s_value(name, dtype):
    packed = torch.arange(256, dtype=torch.uint8).view(4, 64)
    theirs = packed.view(dtype).float()
    assert torch.equal(unpack(packed, name).nan_to_num(nan=12345.0), theirs.nan_to_num(nan=12345.0))


def test_unpacking_in_chunks_changes_nothing(monkeypatch):
    packed = random_blocks("Q4_K", rows=7, blocks_per_row=2)
    scale = torch.rand(7, 1)
    whole = unpack(packed, "Q4_K", scale=scale)
    monkeypatch.setattr(quantized, "CHUNK", 2 * 512)
    assert torch.equal(unpack(packed, "Q4_K", scale=scale), whole)


def test_scale_of_one_number_and_of_one_per_row():
    weight = torch.randn(3, 8).to(torch.float8_e4m3fn)
    packed = weight.view(torch.uint8)
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    assert torch.equal(unpack(packed, "F8_E4M3", scale=torch.tensor(0.5)), weight.float() * 0.5)
    assert torch.equal(unpack(packed, "F8_E4M3", scale=rows), weight.float() * rows)


def test_unknown_format_is_named():
    with pytest.raises(ConfigError, match="IQ4_XS.*Q4_K"):
        unpack(torch.zeros(1, 32, dtype=torch.uint8), "IQ4_XS")


def fp8_layer(scale: float | None = 3e-5) -> tuple[QuantizedLinear, torch.Tensor]:
    weight = torch.randn(5, 8).to(torch.float8_e4m3fn)
    factor = None if scale is None else torch.tensor(scale)
    layer = QuantizedLinear(weight.view(torch.uint8), "F8_E4M3", scale=factor, bias=nn.Parameter(torch.randn(5)))
    return layer, weight.float() * (1 if scale is None else scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layer_is_a_linear_in_the_input_s_dtype(dtype):
    layer, weight = fp8_layer()
    x = torch.randn(2, 3, 8, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, weight.to(dtype), layer.bias.to(dtype)))


def test_layer_without_scale_or_bias():
    packed = random_blocks("Q8_0", rows=4, blocks_per_row=2)
    layer = QuantizedLinear(packed, "Q8_0", scale=None, bias=None)
    assert (layer.in_features, layer.out_features) == (64, 4)
    x = torch.randn(3, 64)
    assert torch.equal(layer(x), F.linear(x, unpack(packed, "Q8_0")))


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.float16)])
def test_casting_the_module_leaves_bytes_and_scale_alone(cast):
    layer, weight = fp8_layer(scale=1.2345e-6)   # a scale that float16 cannot hold
    before = layer.packed.clone()
    cast(layer)
    assert layer.packed.dtype == torch.uint8 and torch.equal(layer.packed, before)
    assert torch.equal(layer.dense_weight(torch.float32, torch.device("cpu")), weight)


def test_moving_the_module_moves_bytes_and_scale():
    layer, _ = fp8_layer()
    layer.to("meta")
    assert layer.packed.is_meta and layer.scale_bits.is_meta and layer.bias.is_meta


def test_layer_copies_and_saves():
    layer, weight = fp8_layer()
    twin = copy.deepcopy(layer)
    assert set(layer.state_dict()) == {"packed", "scale_bits", "bias"}
    assert torch.equal(twin.dense_weight(torch.float32, torch.device("cpu")), weight)


def test_gradients_reach_the_input():
    layer, weight = fp8_layer(scale=1.0)
    x = torch.randn(2, 8, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, weight.sum(0).expand(2, 8))


@pytest.mark.parametrize("scale", [None, torch.tensor(0.5), torch.arange(1.0, 7.0).view(6, 1)])
def test_table_unpacks_the_rows_that_are_looked_up(scale):
    packed = random_blocks("Q8_0", rows=6, blocks_per_row=1)
    table = QuantizedEmbedding(packed, "Q8_0", scale=scale, dtype=torch.bfloat16).half()
    whole = unpack(packed, "Q8_0", scale=scale, dtype=torch.bfloat16)
    ids = torch.tensor([[5, 0, 0], [2, 3, 5]])
    assert torch.equal(table(ids), whole[ids]) and table.weight.dtype == torch.uint8

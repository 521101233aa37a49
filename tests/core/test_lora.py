"""LoRA files of every spelling change the model by strength * alpha/rank * up @ down, live or merged."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from s2v_core.checkpoints.loading import load_model
from s2v_core.checkpoints.lora import apply_lora, load_lora
from s2v_core.components import Components
from s2v_core.errors import CheckpointError, ConfigError
from s2v_core.geometry import VideoSize
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.types import ClipSettings

from . import checkpoints_tiny as tiny

RANK, ALPHA = 3, 6.0
TARGETS = {"blocks.0.self_attn.q": (64, 64), "blocks.1.ffn.0": (96, 64), "head.head": (64, 64)}
DIFFUSERS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj",
    "head.head": "proj_out",
}


@pytest.fixture(scope="module")
def base() -> WanS2VTransformer:
    return tiny.transformer()


@pytest.fixture
def model(base) -> WanS2VTransformer:
    return copy.deepcopy(base)


def matrices(seed: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Down and up by official module name."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(RANK, num_in, generator=g) * 0.2, torch.randn(num_out, RANK, generator=g) * 0.2)
        for name, (num_out, num_in) in TARGETS.items()
    }


def spelled(spelling: str) -> dict[str, torch.Tensor]:
    out = {}
    for name, (down, up) in matrices().items():
        prefix, a, b = {
            "lycoris": (f"lycoris_{name.replace('.', '_')}", "lora_down", "lora_up"),
            "kohya": (f"lora_unet_{name.replace('.', '_')}", "lora_down", "lora_up"),
            "comfyui": (f"diffusion_model.{name}", "lora_down", "lora_up"),
            "peft": (f"base_model.model.{name}", "lora_A", "lora_B"),
            "peft default": (f"base_model.model.{name}", "lora_A.default", "lora_B.default"),
            "diffusers": (f"transformer.{DIFFUSERS[name]}", "lora_A", "lora_B"),
            "kohya diffusers": (f"lora_unet_{DIFFUSERS[name].replace('.', '_')}", "lora_down", "lora_up"),
            "bare": (name, "lora_A", "lora_B"),
        }[spelling]
        out |= {f"{prefix}.{a}.weight": down, f"{prefix}.{b}.weight": up, f"{prefix}.alpha": torch.tensor(ALPHA)}
    return out


def changed(base: WanS2VTransformer, factor: float) -> WanS2VTransformer:
    """By hand."""
    model = copy.deepcopy(base)
    for name, (down, up) in matrices().items():
        model.get_submodule(name).weight.data += factor * up @ down
    return model


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    torch.testing.assert_close(tiny.velocity(ours), tiny.velocity(theirs), atol=1e-5, rtol=1e-4)


@pytest.fixture
def kohya(tmp_path):
    save_file(spelled("kohya"), tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


SPELLINGS = ["kohya", "lycoris", "comfyui", "peft", "peft default", "diffusers", "kohya diffusers", "bare"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_the_same_change(tmp_path, model, base, spelling):
    save_file(spelled(spelling), tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors")
    assert lora.ranks == (RANK,) and {change.scale for change in lora.changes} == {ALPHA / RANK}
    applied = apply_lora(model, lora, merge=True)
    assert applied.num_keys == lora.num_keys == 9
    assert_same(model, changed(base, ALPHA / RANK))


def test_live_equals_merged(kohya, model, base):
    apply_lora(model, load_lora(kohya), 0.7)
    expected = changed(base, 0.7 * ALPHA / RANK)
    assert_same(model, expected)
    assert (tiny.velocity(expected) - tiny.velocity(base)).abs().max() > 1e-2   # and it does something


def test_a_live_lora_leaves_the_weights_alone_and_comes_off(kohya, model, base):
    applied = apply_lora(model, load_lora(kohya))
    assert torch.equal(model.head.head.weight, base.head.head.weight)
    applied.remove()
    assert torch.equal(tiny.velocity(model), tiny.velocity(base))
    assert model.state_dict().keys() == base.state_dict().keys()


def test_live_loras_stack_and_come_off_in_any_order(kohya, model, base):
    lora = load_lora(kohya)
    first, second = apply_lora(model, lora, 0.5), apply_lora(model, lora, 0.25)
    assert_same(model, changed(base, 0.75 * ALPHA / RANK))
    first.remove()
    assert_same(model, changed(base, 0.25 * ALPHA / RANK))
    second.remove()
    assert torch.equal(tiny.velocity(model), tiny.velocity(base))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_whole_differences_of_stacked_loras_come_off_in_any_order(tmp_path, model, base, order):
    differences = {"blocks.0.self_attn.k.diff_b": 64, "blocks.0.self_attn.norm_q.diff": 64}
    tensors = {f"diffusion_model.{name}": torch.full((size,), 0.25) for name, size in differences.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = load_lora(tmp_path / "lora.safetensors")
    applied = [apply_lora(model, lora, strength) for strength in (-0.5, 2.0)]
    first, last = (applied[i] for i in order)
    first.remove()
    left = (-0.5, 2.0)[order[1]] * 0.25
    torch.testing.assert_close(model.blocks[0].self_attn.k.bias, base.blocks[0].self_attn.k.bias + left)
    last.remove()
    assert_same(model, base)


def test_a_copied_model_has_its_own_branches(kohya, model):
    applied = apply_lora(model, load_lora(kohya))
    twin = copy.deepcopy(model)
    expected = tiny.velocity(model)
    applied.remove()
    assert torch.equal(tiny.velocity(twin), expected)


def test_branches_move_with_the_layer(kohya, model):
    apply_lora(model, load_lora(kohya))
    layer = model.blocks[0].self_attn.q.to("meta")
    assert all(buffer.is_meta for buffer in layer.buffers()) and len(list(layer.buffers())) == 2


def test_a_merged_lora_cannot_be_removed(kohya, model):
    with pytest.raises(ConfigError, match="load the model again"):
        apply_lora(model, load_lora(kohya), merge=True).remove()


def test_bf16_weights_are_merged_in_float32(kohya, model, base):
    model.bfloat16()
    weight = model.head.head.weight.float()
    down, up = matrices()["head.head"]
    apply_lora(model, load_lora(kohya), 0.01, merge=True)
    exact = (weight + 0.01 * ALPHA / RANK * (up @ down)).bfloat16()
    assert torch.equal(model.head.head.weight, exact)


def test_packed_layers_take_it_live_even_when_merging(tmp_path, kohya):
    tiny.save_gguf(tmp_path / "x.gguf", tiny.transformer_weights())
    factory = lambda: WanS2VTransformer(tiny.CONFIG)   # noqa: E731
    merged, live, plain = (
        load_model(tmp_path / "x.gguf", "transformer", factory, dtype=torch.float32) for _ in range(3)
    )
    apply_lora(merged, load_lora(kohya), merge=True)
    apply_lora(live, load_lora(kohya))
    assert torch.equal(tiny.velocity(merged), tiny.velocity(live))
    assert torch.equal(merged.head.head.packed, plain.head.head.packed)
    assert (tiny.velocity(live) - tiny.velocity(plain)).abs().max() > 1e-2


def test_without_alpha_the_product_counts_once(tmp_path, model, base):
    tensors = {name: t for name, t in spelled("comfyui").items() if not name.endswith("alpha")}
    save_file(tensors, tmp_path / "lora.safetensors")
    apply_lora(model, load_lora(tmp_path / "lora.safetensors"))
    assert_same(model, changed(base, 1.0))


@pytest.mark.parametrize("use_rslora,factor", [(False, ALPHA / RANK), (True, ALPHA / RANK**0.5)])
def test_peft_folder_scales_by_its_config(tmp_path, model, base, use_rslora, factor):
    tensors = {name: t for name, t in spelled("peft").items() if not name.endswith("alpha")}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"lora_alpha": ALPHA, "r": RANK, "use_rslora": use_rslora}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    apply_lora(model, load_lora(tmp_path))
    assert_same(model, changed(base, factor))


def bundled_with(*loras):
    settings = {"dtype": None, "device": "cpu", "attention": "auto", "offload": "auto", "load_weights": False}
    return Components.find(None, loras=[(lora, 1.0) for lora in loras], **settings)


def of_the_bundled_model(seed=0, target="blocks.0.self_attn.q"):
    g = torch.Generator().manual_seed(seed)
    down, up = torch.randn(8, 128, generator=g).half(), torch.randn(128, 8, generator=g).half()
    return {f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": up}


def test_a_peft_folder_can_be_told_from_another(tmp_path):
    def seen(seed):
        save_file(of_the_bundled_model(seed), tmp_path / "adapter_model.safetensors")
        return bundled_with(tmp_path).identity()["loras"]

    assert seen(0) == seen(0) != seen(1)


def test_the_estimate_counts_what_lies_beside_the_layers(tmp_path):
    def weights(*loras):
        return bundled_with(*loras).estimate(VideoSize(width=64, height=64), ClipSettings()).weights

    tensors, lora = of_the_bundled_model(), tmp_path / "lora.safetensors"
    save_file(tensors, lora)
    assert weights(lora, lora) - weights() == 2 * sum(tensor.nbytes for tensor in tensors.values())


def test_a_lora_of_another_model_is_refused_before_anything_is_read(tmp_path):
    save_file(of_the_bundled_model(target="double_blocks.0.img_attn.qkv"), tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="0 of 2 keys fit this model; it looks like a LoRA for FLUX"):
        bundled_with(tmp_path / "lora.safetensors")


def test_diffusers_header_gives_alpha(tmp_path, model, base):
    tensors = {name: t for name, t in spelled("diffusers").items() if not name.endswith("alpha")}
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": ALPHA, "transformer.r": RANK})}
    save_file(tensors, tmp_path / "lora.safetensors", metadata=header)
    apply_lora(model, load_lora(tmp_path / "lora.safetensors"))
    assert_same(model, changed(base, ALPHA / RANK))


@pytest.mark.parametrize("merge", [True, False])
def test_convolutions(tmp_path, model, base, merge):
    down, up = torch.randn(2, 16, 1, 2, 2) * 0.2, torch.randn(64, 2, 1, 1, 1) * 0.2
    layer = "diffusion_model.patch_embedding"
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    apply_lora(model, load_lora(tmp_path / "lora.safetensors"), 0.5, merge=merge)
    expected = copy.deepcopy(base)
    expected.patch_embedding.weight.data += 0.5 * torch.einsum("or,rithw->oithw", up.flatten(1), down)
    assert_same(model, expected)


@pytest.mark.parametrize("merge", [True, False])
def test_whole_differences(tmp_path, model, base, merge):
    g = torch.Generator().manual_seed(2)
    differences = {
        "blocks.0.ffn.2.diff": ("blocks.0.ffn.2.weight", (64, 96)),
        "blocks.0.ffn.2.diff_b": ("blocks.0.ffn.2.bias", (64,)),
        "blocks.1.norm3.diff": ("blocks.1.norm3.weight", (64,)),
        "patch_embedding.diff": ("patch_embedding.weight", (64, 16, 1, 2, 2)),
        "blocks.1.diff_m": ("blocks.1.modulation", (1, 6, 64)),
    }
    tensors = {key: torch.randn(shape, generator=g) * 0.1 for key, (_, shape) in differences.items()}
    save_file({f"diffusion_model.{key}": t for key, t in tensors.items()}, tmp_path / "lora.safetensors")
    applied = apply_lora(model, load_lora(tmp_path / "lora.safetensors"), 0.5, merge=merge)
    expected = copy.deepcopy(base)
    for key, (name, _) in differences.items():
        expected.get_parameter(name).data += 0.5 * tensors[key]
    assert_same(model, expected)
    if not merge:
        applied.remove()
        assert torch.equal(tiny.velocity(model), tiny.velocity(base))


def test_a_difference_beside_a_low_rank_change(tmp_path, model, base):
    down, up = matrices()["head.head"]
    tensors = {"head.head.lora_A.weight": down, "head.head.lora_B.weight": up, "head.head.diff_b": torch.ones(64)}
    tensors["head.head.diff"] = torch.eye(64)
    save_file(tensors, tmp_path / "lora.safetensors")
    apply_lora(model, load_lora(tmp_path / "lora.safetensors"))
    expected = copy.deepcopy(base)
    expected.head.head.weight.data += up @ down + torch.eye(64)
    expected.head.head.bias.data += 1
    assert_same(model, expected)


# ---- what does not fit


@pytest.mark.parametrize(
    "target,shape,says",
    [
        ("diffusion_model.double_blocks.0.img_attn.qkv", (8, 8), "FLUX or HunyuanVideo"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", (8, 8), "Stable Diffusion"),
        ("diffusion_model.blocks.0.self_attn.q", (1536, 1536), "another Wan model"),
        ("diffusion_model.mystery", (8, 8), "a model with modules like 'mystery'"),
    ],
)
def test_a_lora_of_another_model_is_refused(tmp_path, model, target, shape, says):
    down, up = torch.zeros(2, shape[1]), torch.zeros(shape[0], 2)
    save_file({f"{target}.lora_down.weight": down, f"{target}.lora_up.weight": up}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="0 of 2 keys fit this model") as caught:
        apply_lora(model, load_lora(tmp_path / "lora.safetensors"))
    assert says in str(caught.value)


def test_what_does_not_fit_among_what_does_is_counted_in_the_log(tmp_path, model, base, caplog):
    strangers = {"lora_te1_x.lora_down.weight": torch.zeros(2, 4), "lora_te1_x.lora_up.weight": torch.zeros(4, 2)}
    save_file({**spelled("kohya"), **strangers}, tmp_path / "lora.safetensors")
    with caplog.at_level(logging.WARNING):
        apply_lora(model, load_lora(tmp_path / "lora.safetensors"))
    assert "9 of 11 keys fit" in caplog.text
    assert_same(model, changed(base, ALPHA / RANK))


@pytest.mark.parametrize("stranger", ["head.head.weight", "blocks.0.self_attn.q.lora_B.bias", "blocks.0.norm3.w_norm"])
def test_what_is_no_change_that_can_be_applied_is_counted_in_the_log(tmp_path, caplog, stranger):
    """PEFT also saves whole modules, biases of its matrices, ..."""
    save_file({**spelled("peft"), f"base_model.model.{stranger}": torch.ones(64)}, tmp_path / "lora.safetensors")
    with caplog.at_level(logging.WARNING):
        assert load_lora(tmp_path / "lora.safetensors").num_keys == 9
    told = "1 of 10 tensors are of no kind of change that can be applied, and are left out: base_model.model."
    assert told + stranger in caplog.text


@pytest.mark.parametrize("ending,kind", [(".dora_scale", "DoRA"), (".hada_w1_a", "LoHa"), (".lokr_w1", "LoKr")])
def test_other_adapters_are_refused_by_name(tmp_path, ending, kind):
    extra = {f"diffusion_model.head.head{ending}": torch.ones(1)}
    save_file(spelled("comfyui") | extra, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=f"is a {kind}"):
        load_lora(tmp_path / "lora.safetensors")


def test_half_a_pair_is_incomplete(tmp_path):
    tensors = spelled("comfyui")
    del tensors["diffusion_model.head.head.lora_up.weight"]
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="head.head has only one of its two"):
        load_lora(tmp_path / "lora.safetensors")


def test_a_model_is_no_lora(tmp_path):
    save_file(tiny.vae_weights(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is a Wan 2.1 VAE, not a LoRA"):
        load_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize("spelling, end", [("peft", r"self_attn\.q"), ("diffusers", "blocks.0.attn1.to_q")])
def test_pefts_alpha_of_some_layers_counts_there(tmp_path, spelling, end):
    tensors = {name: t for name, t in spelled(spelling).items() if not name.endswith("alpha")}
    settings = {"lora_alpha": ALPHA, "alpha_pattern": {end: 2 * ALPHA}}
    save_file(tensors, tmp_path / "l", metadata={"lora_adapter_metadata": json.dumps(settings)})
    scales = {change.target: change.scale for change in load_lora(tmp_path / "l").changes}
    usual = ALPHA / RANK
    assert scales == {"blocks.0.self_attn.q": 2 * usual, "blocks.1.ffn.0": usual, "head.head": usual}


@pytest.mark.parametrize("settings", [{"alpha_pattern": {"(": 1}}, {"alpha_pattern": [1]}, {"lora_alpha": "much"}])
def test_settings_that_make_no_sense_are_named(tmp_path, settings):
    save_file(spelled("peft"), tmp_path / "l", metadata={"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(CheckpointError, match="settings of the LoRA .* cannot be read"):
        load_lora(tmp_path / "l")

"""Small transformers of the big model's layout, and LoRAs for them.

Knows names and shapes; the numbers are random.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from s2v_core.checkpoints.files import open_weights
from s2v_core.checkpoints.official import find_components
from s2v_core.components import BUNDLED
from s2v_core.config import TransformerConfig
from s2v_core.models.dit import WanS2VTransformer
from s2v_core.training.lora import add_lora, export_lora

TINY = TransformerConfig(dim=128, ffn_dim=256, num_heads=1)   # the rest, 40 layers and 12 that hear, is the big one's


def tiny_weights():
    torch.manual_seed(0)
    model = WanS2VTransformer(TINY)
    for name, parameter in model.named_parameters():
        if name.endswith(("modulation", "padding_tokens", "weights")):
            parameter.data = torch.randn_like(parameter) * 0.1 + name.endswith("weights")
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_lora(path, weights, *, rank=4, size=1.0, prefix="diffusion_model."):
    """A LoRA of all self-attention queries and outputs."""
    torch.manual_seed(1)
    tensors = {}
    for name, tensor in weights.items():
        if name.endswith(("self_attn.q.weight", "self_attn.o.weight")):
            target = prefix + name.removesuffix(".weight")
            tensors[target + ".lora_A.weight"] = torch.randn(rank, tensor.shape[1]) * size / tensor.shape[1] ** 0.5
            tensors[target + ".lora_B.weight"] = torch.randn(tensor.shape[0], rank) * size / rank**0.5
    save_file(tensors, path)


def save_trained_lora(folder):
    """A LoRA for the bundled model as our trainer writes it, after a step away from where training begins."""
    files = find_components(BUNDLED)
    model = WanS2VTransformer(files.config.transformer)
    stored = open_weights(files.transformer).tensors
    model.load_state_dict({name: tensor.dense(torch.float32) for name, tensor in stored.items()}, strict=False)
    add_lora(model, rank=4, alpha=8.0, seed=2)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    export_lora(model, folder, dtype=torch.bfloat16)
    (folder / "lora.safetensors").rename(folder / "trained_lora.safetensors")

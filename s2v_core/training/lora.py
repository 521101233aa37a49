"""LoRA through peft: small matrices beside the transformer's large ones, and the file that ComfyUI loads.

Knows which layers take part; not how they are trained.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from ..models.dit import WanS2VTransformer
from ..ops.quantized import QuantizedLinear
from ..parallel.weights import whole
from .export import save_weights

ADAPTER = "default"
TARGETS = (
    r"blocks\.\d+\.(self_attn|cross_attn)\.[qkvo]|blocks\.\d+\.ffn\.[02]"
    r"|audio_injector\.injector\.\d+\.[qkvo]|audio_injector\.injector_adain_layers\.\d+\.linear"
)


def add_lora(model: WanS2VTransformer, *, rank: int, alpha: float, seed: int) -> None:
    """Put a LoRA on attention, feed-forward and audio layers; it alone asks for gradients, and changes nothing yet.

    Layers that keep their weights packed (fp8, GGUF) keep them so.

    Raises: ConfigError without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import Linear
    except ImportError:
        raise ConfigError("training a LoRA needs the package peft: install wan-s2v[train]") from None
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS)
    config._register_custom_module({QuantizedLinear: Linear})   # peft's way to name layers that it does not know
    packed = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    for layer in packed:
        layer.qweight = layer.packed   # by this name peft finds out where they are
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTER)
    for layer in packed:
        del layer.qweight


def lora_weights(model: WanS2VTransformer) -> dict[str, Tensor]:
    """The LoRA as ComfyUI spells it: `diffusion_model.<layer>.` with `lora_A.weight`, `lora_B.weight` and `alpha`."""
    weights = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and ADAPTER in module.lora_A:
            layer = f"diffusion_model.{name}"
            weights[f"{layer}.lora_A.weight"] = whole(module.lora_A[ADAPTER].weight.detach())
            weights[f"{layer}.lora_B.weight"] = whole(module.lora_B[ADAPTER].weight.detach())
            weights[f"{layer}.alpha"] = torch.tensor(float(module.lora_alpha[ADAPTER]))
    return weights


def export_lora(
    model: WanS2VTransformer, folder: Path, *, dtype: torch.dtype, writes: bool = True
) -> list[Path]:
    """Write `lora.safetensors`.

    Args:
        writes: whether this process does; the others that share the weights only lend theirs.

    Raises: OutputError when the disk does not take it.
    """
    weights = {
        name: tensor.to("cpu", dtype if tensor.ndim else torch.float32).contiguous()   # alpha is a factor: exact
        for name, tensor in lora_weights(model).items()
    }
    return [save_weights(folder / "lora.safetensors", weights)] if writes else []

"""GGUF transformers behind the host's MODEL: matrices stay packed in memory, LoRAs are added as each is unpacked.

Knows how the host patches and moves weights; how bytes become numbers is `s2v_core`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..s2v_core.checkpoints.files import WeightFile
from ..s2v_core.checkpoints.loading import component_tensors
from ..s2v_core.config import TransformerConfig
from ..s2v_core.models.dit import WanS2VTransformer
from ..s2v_core.ops.quantized import unpack
from . import host, model


def load_gguf(file: WeightFile, config: TransformerConfig) -> host.ModelPatcher:
    """A GGUF file into a MODEL that takes its packed size in memory.

    Raises: CheckpointError for weights that are missing.
    """
    stored = component_tensors(file, "transformer")
    matrices = _linear_weights(config)
    formats = {name: s.format for name, s in stored.items() if s.is_packed and name in matrices}
    tensors = {name: s.read() if name in formats else s.dense(None) for name, s in stored.items()}
    return load_packed(tensors, formats, config, name=file.path.name, linear=PackedLinear)


def load_packed(
    tensors: dict[str, Tensor],
    formats: Mapping[str, str],
    config: TransformerConfig,
    *,
    name: str,
    linear: type[PackedLinear],
) -> host.ModelPatcher:
    """Weights of which some are packed into a MODEL.

    Args:
        formats: of the packed weights, by their names.
        name: of the file, for what errors say.
        linear: the layer that takes them.

    Raises: CheckpointError for weights that are missing.
    """
    options = {"custom_operations": packed_operations(formats, linear), "dtype": host.compute_dtype()}
    loaded = model.load(tensors, config, name=name, options=options)
    packed = PackedPatcher(loaded.model, loaded.load_device, loaded.offload_device)
    model.forget_after_sampling(packed)
    return packed


def _linear_weights(config: TransformerConfig) -> set[str]:
    modules = WanS2VTransformer(config, device="meta").named_modules()
    return {f"{name}.weight" for name, module in modules if isinstance(module, nn.Linear)}


class PackedLinear(nn.Module, host.CastingLayer):
    """A linear layer that takes its weights as the file has them: packed uint8 [rows, bytes], or numbers."""

    comfy_cast_weights = True
    formats: Mapping[str, str] = {}   # of the packed weights, by their names in the model

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.packed_format: str | None = None
        self.patch: Callable[[Tensor], Tensor] | None = None   # what LoRAs add, while the layer is on its device
        self.weight = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
        self.packed_format = self.formats.get(prefix + "weight")
        self.weight = nn.Parameter(state_dict[prefix + "weight"], requires_grad=False)
        self.bias = nn.Parameter(state_dict[prefix + "bias"], requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.device, non_blocking=True)
        if self.packed_format is None:
            weight = weight.to(input.dtype)
        else:
            weight = unpack(weight, self.packed_format, dtype=input.dtype)
        for change in self._changes():
            weight = change(weight)
        return F.linear(input, weight, self._changed_bias(input))

    def _changed_bias(self, input: Tensor) -> Tensor:
        bias = self.bias.to(input, non_blocking=True)
        for change in self.bias_function:
            bias = change(bias)
        return bias

    def _changes(self) -> list[Callable[[Tensor], Tensor]]:
        """LoRAs come from the host while it holds the layer back, else from our patcher: never from both."""
        theirs = list(self.weight_function)
        if self.patch is None or any(host.is_lowvram_patch(change) for change in theirs):
            return theirs
        return [self.patch, *theirs]


def packed_operations(formats: Mapping[str, str], linear: type[PackedLinear]) -> type:
    """The host's layers, with linear ones that know these packed weights."""
    linear = type("Linear", (linear,), {"formats": formats})
    return type("PackedOperations", (host.CastingLayers,), {"Linear": linear})


class PackedPatcher(host.ModelPatcher):
    """Patches packed weights as they are unpacked, where the host would write into them."""

    def patch_weight_to_device(self, key: str, *args: object, **kwargs: object) -> object:
        layer = self._packed(key)
        if layer is None:
            return super().patch_weight_to_device(key, *args, **kwargs)
        if key in self.patches:
            layer.patch = host.patch_function(self.patches[key], key)
        return None

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            for layer in self.model.modules():
                if isinstance(layer, PackedLinear):
                    layer.patch = None
        super().unpatch_model(device_to, unpatch_weights)

    def _packed(self, key: str) -> PackedLinear | None:
        name, _, leaf = key.rpartition(".")
        if leaf != "weight":
            return None
        layer = self.model.get_submodule(name)
        return layer if isinstance(layer, PackedLinear) and layer.packed_format is not None else None

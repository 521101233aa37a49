"""What a run will cost before it starts: parameters, memory per GPU by part, tokens per step, and a layout that fits.

Knows shapes and arithmetic only: the model is built on the meta device. What a block keeps for its backward pass was
counted on small models, and a test counts it again.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn

from ..config import TransformerConfig
from ..errors import ConfigError
from ..geometry import TokenLayout
from ..models.dit import WanS2VTransformer
from ..parallel.layout import Layout
from .config import TrainConfig
from .lora import TARGETS
from .student import SOUND_MODULES

GB = 1e9
HEADROOM = 0.92        # of a card's memory that can be planned with: kernels, communication and fragments want the rest
FLOAT32 = 4
MOMENT = {"fp32": FLOAT32, "8bit": 1 + FLOAT32 / 256}   # bytes; 8-bit moments have a scale for every 256

# What is kept for the backward pass without checkpointing, per token, in units of widths. What passes from block to
# block is float32 whatever the blocks compute in, and so are norms and rotary positions.
BLOCK_FLOATS = 12         # of dim, float32
BLOCK_WIDTHS = 10.5       # of dim, in the dtype of the blocks: inputs of projections, queries, keys, values, attention
BLOCK_FFN_WIDTHS = 2      # of ffn_dim, in that dtype: before and after the GELU
AUDIO_FLOATS = 4          # of dim, float32, per video token and audio layer
AUDIO_WIDTHS = 4          # of dim, in the dtype of the blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Of weights that do not learn, those that every GPU keeps as their file packs them (fp8, GGUF)."""

    num_parameters: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingEstimate:
    """A run on paper. Bytes are of one GPU."""

    num_gpus: int
    num_parameters: int
    num_trained: int
    layout: Layout
    tokens_per_sample: int
    samples_per_step: int
    parts: dict[str, float]
    available: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= HEADROOM * self.available

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does NOT fit: more GPUs, fewer tokens, or fewer trained weights"
        lines = [
            f"parameters  {self.num_parameters:,}, of which {self.num_trained:,} are trained",
            f"layout      {self.num_gpus} GPUs: {self.layout}; weights and optimiser sharded over all",
            f"            in the settings: {self.layout.setting}",
            f"tokens      {self.tokens_per_sample:,} a sample, "
            f"{math.ceil(self.tokens_per_sample / self.layout.context):,} of them on a GPU; "
            f"{self.samples_per_step} samples and {self.tokens_per_sample * self.samples_per_step:,} tokens a step",
            "memory per GPU",
            *(f"  {name:<24}{size / GB:8.1f} GB" for name, size in self.parts.items()),
            f"  {'in all':<24}{self.total / GB:8.1f} GB of {self.available / GB:.0f} GB: {verdict}",
        ]
        return "\n".join(lines)


def estimate_training(
    config: TrainConfig,
    model: TransformerConfig,
    layout: TokenLayout,
    *,
    num_gpus: int,
    gpu_bytes: float,
    packed: Packed = Packed(),
) -> TrainingEstimate:
    """The layout with the smallest context groups that fits, or the leanest one when none does.

    Settings that name a layout, and with it a number of GPUs, are estimated with that one. Otherwise small groups come
    first because they communicate least; inside a group Ulysses does, as far as the heads divide.

    Args:
        layout: of a sample's sequence.
        gpu_bytes: memory of one GPU.
        packed: what a LoRA learns beside.
    """
    if num_gpus < 1:
        raise ConfigError(f"a run needs at least 1 GPU, got {num_gpus}")
    transformer = WanS2VTransformer(model, device="meta")
    shapes = [config.parallel] if config.parallel else layouts(num_gpus, model.num_heads)
    estimates = [_estimate(config, transformer, layout, shape, gpu_bytes, packed) for shape in shapes]
    return next((estimate for estimate in estimates if estimate.fits), min(estimates, key=lambda e: e.total))


def layouts(num_gpus: int, num_heads: int) -> list[Layout]:
    """All ways to share, smallest context groups first; as much of a group as possible by heads."""
    found = []
    for context in range(1, num_gpus + 1):
        if num_gpus % context == 0:
            ulysses = math.gcd(context, num_heads)
            found.append(Layout(data=num_gpus // context, ring=context // ulysses, ulysses=ulysses))
    return found


def _estimate(
    config: TrainConfig,
    transformer: WanS2VTransformer,
    tokens: TokenLayout,
    layout: Layout,
    gpu_bytes: float,
    packed: Packed,
) -> TrainingEstimate:
    num_gpus = layout.size
    weights = _num_parameters(transformer)
    trained = num_trained(transformer, config)
    block = _num_parameters(transformer.blocks[0])
    compute = 2 if config.model.compute_dtype == "bf16" else FLOAT32
    share = config.data.batch_size / layout.context
    frozen = weights - trained if config.model.trained != "lora" else weights
    parts = {"weights that learn": trained * FLOAT32 / num_gpus}
    if frozen:
        each = 2 if config.model.frozen_dtype == "bf16" else FLOAT32
        parts["weights that do not"] = (frozen - packed.num_parameters) * each / num_gpus + packed.num_bytes
    parts["gradients"] = trained * FLOAT32 / num_gpus
    if not config.optimizer.offload:
        moment = trained * MOMENT[config.optimizer.moments] / num_gpus
        parts |= {"Adam's first moments": moment, "Adam's second moments": moment}
    if config.optimizer.ema:
        parts["averaged weights"] = trained * FLOAT32 / num_gpus
    if num_gpus > 1:
        gradients = block * FLOAT32 if config.model.trained == "all" else 0
        parts["gathered blocks"] = 2 * block * compute + gradients   # the one at work and the next
        layers = _num_parameters(transformer.blocks) + _num_parameters(transformer.audio_injector)
        parts["gathered rest"] = (weights - layers) * FLOAT32        # embeddings, head, sound encoder: all the time
    if packed.num_bytes:
        parts["an unpacked block"] = block * compute   # kept from its forward to its backward pass
    parts["activations kept"] = share * kept_bytes(config, transformer.config, tokens, compute)
    parts["a block at work"] = share * block_bytes(transformer.config, tokens.total, compute)
    if layout.context > 1:
        keys_values = 2 * tokens.total * transformer.config.dim * compute * config.data.batch_size
        parts["gathered keys, values"] = keys_values / layout.ulysses
    return TrainingEstimate(
        num_gpus=num_gpus,
        num_parameters=weights,
        num_trained=trained,
        layout=layout,
        tokens_per_sample=tokens.total,
        samples_per_step=config.data.batch_size * config.data.accumulate * layout.data,
        parts=parts,
        available=gpu_bytes,
    )


def num_trained(transformer: WanS2VTransformer, config: TrainConfig) -> int:
    if config.model.trained == "audio":
        return sum(_num_parameters(transformer.get_submodule(name)) for name in SOUND_MODULES)
    if config.model.trained == "lora":
        layers = [m for name, m in transformer.named_modules() if re.fullmatch(TARGETS, name)]
        return sum(config.model.lora_rank * sum(layer.weight.shape) for layer in layers)
    return _num_parameters(transformer)


def kept_bytes(config: TrainConfig, model: TransformerConfig, tokens: TokenLayout, item: int) -> float:
    """What a sample's forward pass leaves for the backward pass.

    Args:
        item: bytes of a number in the dtype of the blocks.
    """
    num_audio = len(model.audio_inject_layers)
    if config.model.checkpoint_blocks:
        return (model.num_layers + num_audio) * tokens.total * model.dim * FLOAT32
    audio = tokens.num_video * model.dim * (AUDIO_FLOATS * FLOAT32 + AUDIO_WIDTHS * item)
    return num_audio * audio + model.num_layers * block_bytes(model, tokens.total, item)


def block_bytes(model: TransformerConfig, num_tokens: int, item: int) -> float:
    """What one block keeps for its backward pass; one whose weights do not learn keeps less."""
    width = BLOCK_FLOATS * FLOAT32 + BLOCK_WIDTHS * item
    return num_tokens * (width * model.dim + BLOCK_FFN_WIDTHS * item * model.ffn_dim)


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sample_layout(config: TrainConfig, model: TransformerConfig) -> TokenLayout:
    """A sample at the recipe's budget: `max_tokens`, as one would be that fills it."""
    latents = config.precompute.num_latents
    per_frame = config.precompute.max_tokens / (latents + 1 + _motion_share(model))
    frame = int(per_frame)
    video = latents * frame
    return TokenLayout(
        num_video=video,
        num_reference=frame,
        num_motion=config.precompute.max_tokens - video - frame,
        tokens_per_frame=frame,
    )


def _motion_share(model: TransformerConfig) -> float:
    """Motion tokens for each token of a frame; the middle bucket has a quarter of them, the far one a sixteenth."""
    near, middle, far = model.motion_buckets
    return near + middle / 2 / 4 + far / 4 / 16


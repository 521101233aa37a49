"""A model's settings read off the shapes of its weights, for files that come without a config.

Knows our names for weights; what shapes cannot tell is taken from the models that were released, or asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from ..config import AudioEncoderConfig, TextEncoderConfig, TransformerConfig, VAEConfig
from ..errors import CheckpointError
from .keymaps import AUDIO_ENCODER, latent_statistics

Shapes = Mapping[str, tuple[int, ...]]
Config = TransformerConfig | VAEConfig | TextEncoderConfig | AudioEncoderConfig

_HEAD_DIM = 128        # of every released Wan transformer
_AUDIO_HEAD_DIM = 64   # of every released wav2vec2


def transformer_config_from_shapes(shapes: Shapes) -> TransformerConfig:
    """The settings of an S2V transformer.

    Raises: CheckpointError when they cannot be told: the layers that hear the sound and the number of heads are in
        no shape, so only the released layout (40 layers, 12 of which hear; heads of 128) is recognised.
    """
    dim, in_channels, *patch = _of(shapes, "patch_embedding.weight")
    num_layers = _count(shapes, r"blocks\.(\d+)\.")
    num_injectors = _count(shapes, r"audio_injector\.injector\.(\d+)\.")
    released = TransformerConfig()
    if dim % _HEAD_DIM or (num_layers, num_injectors) != (released.num_layers, len(released.audio_inject_layers)):
        raise CheckpointError(
            f"a transformer of width {dim} with {num_layers} layers, {num_injectors} of which hear the sound, is not "
            f"the released one, and its weights do not say the rest: put its config.json beside it"
        )
    local = _of(shapes, f"{AUDIO_ENCODER}.encoder.conv1_local.conv.weight")
    return TransformerConfig(
        dim=dim,
        ffn_dim=_of(shapes, "blocks.0.ffn.0.weight")[0],
        num_heads=dim // _HEAD_DIM,
        num_layers=num_layers,
        in_channels=in_channels,
        out_channels=_of(shapes, "head.head.weight")[0] // math.prod(patch),
        pose_channels=_of(shapes, "cond_encoder.weight")[1],
        patch_size=(patch[0], patch[1], patch[2]),
        freq_dim=_of(shapes, "time_embedding.0.weight")[1],
        text_dim=_of(shapes, "text_embedding.0.weight")[1],
        qk_norm="blocks.0.self_attn.norm_q.weight" in shapes,
        cross_attn_norm="blocks.0.norm3.weight" in shapes,
        audio_dim=local[1],
        num_audio_layers=_of(shapes, f"{AUDIO_ENCODER}.weights")[1],
        num_audio_tokens=local[0] // (dim // 4),
        use_adain="audio_injector.injector_adain_layers.0.linear.weight" in shapes,
    )


def vae_config_from_shapes(shapes: Shapes) -> VAEConfig:
    """The settings of a Wan 2.1 VAE: its encoder's stages end where a resampling is."""
    dim = _of(shapes, "encoder.conv1.weight")[0]
    widths, temporal, blocks = [], [], [0]
    for i in range(_count(shapes, r"encoder\.downsamples\.(\d+)\.")):
        stage = f"encoder.downsamples.{i}"
        if f"{stage}.resample.1.weight" in shapes:
            temporal.append(f"{stage}.time_conv.weight" in shapes)
            blocks.append(0)
        else:
            blocks[-1] += 1
            if blocks[-1] == 1:
                widths.append(_of(shapes, f"{stage}.residual.6.weight")[0])
    channels = _of(shapes, "conv2.weight")[0]
    return VAEConfig(
        dim=dim,
        latent_channels=channels,
        dim_mult=tuple(width // dim for width in widths),
        num_res_blocks=blocks[0],
        temporal_downsample=tuple(temporal),
        **latent_statistics(channels),
    )


def text_config_from_shapes(shapes: Shapes) -> TextEncoderConfig:
    """The settings of a umT5 encoder, in transformers' spelling."""
    vocab_size, dim = _of(shapes, "shared.weight")
    first = "encoder.block.0.layer"
    num_buckets, num_heads = _of(shapes, f"{first}.0.SelfAttention.relative_attention_bias.weight")
    return TextEncoderConfig(
        vocab_size=vocab_size,
        dim=dim,
        attention_dim=_of(shapes, f"{first}.0.SelfAttention.q.weight")[0],
        ffn_dim=_of(shapes, f"{first}.1.DenseReluDense.wi_0.weight")[0],
        num_heads=num_heads,
        num_layers=_count(shapes, r"encoder\.block\.(\d+)\."),
        num_buckets=num_buckets,
    )


def audio_config_from_shapes(shapes: Shapes) -> AudioEncoderConfig:
    """The settings of a wav2vec2 encoder. Strides are in no shape: they are the released models'."""
    convs = [
        _of(shapes, f"wav2vec2.feature_extractor.conv_layers.{i}.conv.weight")
        for i in range(_count(shapes, r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\."))
    ]
    released = AudioEncoderConfig()
    hidden = _of(shapes, "wav2vec2.encoder.layer_norm.weight")[0]
    kernels = tuple(conv[2] for conv in convs)
    if kernels != released.conv_kernel or hidden % _AUDIO_HEAD_DIM:
        raise CheckpointError(
            f"a wav2vec2 of width {hidden} with convolution kernels {list(kernels)} is not a released one, and its "
            f"weights do not say the rest: put its config.json beside it"
        )
    has_norms = "wav2vec2.feature_extractor.conv_layers.1.layer_norm.weight" in shapes
    position = _of(shapes, "wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight.original1")
    return AudioEncoderConfig(
        hidden_size=hidden,
        num_hidden_layers=_count(shapes, r"wav2vec2\.encoder\.layers\.(\d+)\."),
        num_attention_heads=hidden // _AUDIO_HEAD_DIM,
        intermediate_size=_of(shapes, "wav2vec2.encoder.layers.0.feed_forward.intermediate_dense.weight")[0],
        conv_dim=tuple(conv[0] for conv in convs),
        conv_kernel=kernels,
        conv_bias="wav2vec2.feature_extractor.conv_layers.0.conv.bias" in shapes,
        feat_extract_norm="layer" if has_norms else "group",
        do_stable_layer_norm=has_norms,   # released models have both or neither
        num_conv_pos_embeddings=position[2],
        num_conv_pos_embedding_groups=hidden // position[1],
    )


FROM_SHAPES: Mapping[str, Callable[[Shapes], Config]] = {
    "transformer": transformer_config_from_shapes,
    "vae": vae_config_from_shapes,
    "text_encoder": text_config_from_shapes,
    "audio_encoder": audio_config_from_shapes,
}


def size_name(config: TransformerConfig) -> str:
    """What people call a transformer of this size."""
    return "Wan2.2-S2V-14B" if config == TransformerConfig() else f"an S2V transformer of width {config.dim}"


def _of(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"{name} is missing, so the model's size cannot be told; the file is incomplete")
    return shapes[name]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many different numbers stand where the pattern has its group."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})

"""What the models are: frozen numbers, and the sizes that ship.

Knows no files and no tensors; foreign spellings of these fields live in `checkpoints/keymaps.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import ConfigError

SAMPLE_RATE = 16_000       # of the sound that wav2vec2 hears, Hz
FEATURE_RATE = 50          # wav2vec2 hidden states per second: one every 320 samples
FEATURE_WINDOW = 400       # samples that one hidden state sees, before the transformer mixes them
FEATURE_VIDEO_RATE = 30    # the rate the reference resamples features to, before it picks one per frame
DEFAULT_AREA = 832 * 480   # pixels of a video when nobody asks for a size

WAN_NEGATIVE_PROMPT = (
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，"
    "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走"
)

# Per channel of the Wan 2.1 VAE's latents, over its training set (SPEC: VAE and T5).
WAN_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """The S2V diffusion transformer. Defaults are the 14B model."""

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    in_channels: int = 16
    out_channels: int = 16
    pose_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    qk_norm: bool = True
    cross_attn_norm: bool = True
    audio_dim: int = 1024
    num_audio_layers: int = 25       # hidden states of the sound encoder, its input included
    num_audio_tokens: int = 4        # per latent frame; the learned padding token comes on top
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    use_adain: bool = True           # the global audio branch and the AdaIN before audio attention
    zero_timestep: bool = True       # reference and motion tokens are modulated as timestep 0
    motion_buckets: tuple[int, int, int] = (1, 2, 16)   # latent frames: near, middle, far
    motion_drop_mode: str = "padd"   # what fewer near buckets mean: "padd" zeroes them, "drop" leaves their tokens out

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ConfigError(f"dim {self.dim} must split into {self.num_heads} heads of even size")
        if self.motion_drop_mode not in ("padd", "drop"):
            raise ConfigError(f"motion_drop_mode must be 'padd' or 'drop', got {self.motion_drop_mode!r}")
        outside = [i for i in self.audio_inject_layers if not 0 <= i < self.num_layers]
        if outside:
            raise ConfigError(f"audio_inject_layers {outside} are outside the {self.num_layers} layers")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """The causal video autoencoder. Defaults are Wan 2.1's."""

    dim: int = 96
    latent_channels: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderConfig:
    """A umT5 encoder. Defaults are umT5-XXL's."""

    vocab_size: int = 256_384
    dim: int = 4096
    attention_dim: int = 4096    # num_heads * head size
    ffn_dim: int = 10_240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_distance: int = 128
    tokenizer: str = "google/umt5-xxl"   # a folder beside the weights; "bytes" is the bundled model's: UTF-8 bytes + 3


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioEncoderConfig:
    """A wav2vec2 encoder, as `transformers` names its settings. Defaults are wav2vec2-large-xlsr-53-english."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    feat_extract_norm: str = "layer"
    do_stable_layer_norm: bool = True
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The four models that make a video, and the settings their weights like."""

    name: str
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    audio_encoder: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    default_area: int = DEFAULT_AREA
    default_steps: int = 40
    default_shift: float = 3.0
    default_guidance: float = 4.5
    negative_prompt: str = WAN_NEGATIVE_PROMPT


WAN_S2V_14B = ModelConfig(name="Wan2.2-S2V-14B")

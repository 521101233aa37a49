"""Sound in the transformer: features to audio tokens per latent frame, and the layers that attend to them.

Knows features on the video's clock; not where they come from.
B batch, F frames, T latent frames, A audio tokens per latent frame, N video tokens per latent frame, V = T*N, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import TransformerConfig
from ..ops.attention import AttentionFn
from ..ops.layers import Factory
from .dit_blocks import CrossAttention

ADAIN_EPS = 1e-5   # this norm alone; all others are 1e-6


class CausalConv1d(nn.Module):
    """A convolution over time that sees the present and the past; the first step is repeated before the start."""

    def __init__(self, num_in: int, num_out: int, make: Factory, stride: int = 1) -> None:
        super().__init__()
        self.conv = make.conv1d(num_in, num_out, 3, stride)

    def forward(self, x: Tensor) -> Tensor:   # [B, C, F] -> [B, C', ceil(F / stride)]
        return self.conv(F.pad(x, (2, 0), mode="replicate"))


class AudioPyramid(nn.Module):
    """Three causal convolutions that bring features from the frame rate to the latent frame rate.

    The local branch makes `num_audio_tokens` tokens per latent frame, the global branch one; they share
    all but the first convolution.
    """

    def __init__(self, config: TransformerConfig, make: Factory) -> None:
        super().__init__()
        dim, quarter = config.dim, config.dim // 4
        self.num_tokens = config.num_audio_tokens
        self.conv1_local = CausalConv1d(config.audio_dim, quarter * self.num_tokens, make)
        self.conv1_global = CausalConv1d(config.audio_dim, quarter, make) if config.use_adain else None
        self.conv2 = CausalConv1d(quarter, dim // 2, make, stride=2)
        self.conv3 = CausalConv1d(dim // 2, dim, make, stride=2)
        self.final_linear = make.linear(dim, dim) if config.use_adain else None
        self.padding_tokens = make.parameter(1, 1, 1, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, audio_dim, F] -> tokens [B, T, A+1, D] and style [B, T, 1, D] or None, T = ceil(F / 4)."""
        B = x.shape[0]
        local = rearrange(self.conv1_local(x), "b (n c) f -> (b n) c f", n=self.num_tokens)
        tokens = rearrange(self._descend(local), "(b n) t d -> b t n d", b=B)
        padding = self.padding_tokens.to(tokens).expand(B, tokens.shape[1], 1, -1)
        tokens = torch.cat([tokens, padding], dim=2)
        if self.conv1_global is None:
            return tokens, None
        return tokens, self.final_linear(self._descend(self.conv1_global(x))).unsqueeze(2)

    def _descend(self, x: Tensor) -> Tensor:   # [B', D/4, F] -> [B', T, D]
        x = self.conv2(_norm_silu(x))
        x = self.conv3(_norm_silu(x))
        return _norm_silu(x).transpose(1, 2)


def _norm_silu(x: Tensor) -> Tensor:
    """Layer norm over channels, then SiLU; x [B, C, F]."""
    return F.silu(F.layer_norm(x.transpose(1, 2), x.shape[1:2], eps=1e-6)).transpose(1, 2)


class CausalAudioEncoder(nn.Module):
    """Mixes the sound encoder's hidden states by learned weights and compresses them to the latent frame rate."""

    def __init__(self, config: TransformerConfig, make: Factory) -> None:
        super().__init__()
        self.weights = make.parameter(1, config.num_audio_layers, 1, 1)
        self.encoder = AudioPyramid(config, make)

    def mix(self, features: Tensor) -> Tensor:
        """[B, L, C, F] hidden states -> [B, C, F], in float32."""
        weights = F.silu(self.weights.float()).to(features.device).flatten()
        return torch.einsum("blcf,l->bcf", features.float(), weights / weights.sum())

    def forward(self, features: Tensor, prefix_frames: int = 0) -> tuple[Tensor, Tensor | None]:
        """Audio tokens and audio style of a clip.

        Args:
            features: [B, L, C, F].
            prefix_frames: copies of the first frame put before the clip, and dropped again as latent frames:
                the reference's 73, so that latent frame i hears frames up to 4i+3.

        Returns: tokens [B, T, A+1, D]; style [B, T, 1, D], or None without AdaIN.
        """
        mixed = self.mix(features)
        if prefix_frames:
            mixed = torch.cat([mixed[..., :1].expand(-1, -1, prefix_frames), mixed], dim=2)
        tokens, style = self.encoder(mixed)
        first = (prefix_frames + 3) // 4
        return tokens[:, first:], None if style is None else style[:, first:]


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioContext:
    """What one audio layer needs of a clip's sound."""

    keys: Tensor            # [B*T, A+1, heads, head_dim]
    values: Tensor
    shift: Tensor | None    # [B*T, 1, D]; None without AdaIN
    scale: Tensor | None    # 1 + scale

    def joined(self, *others: AudioContext) -> AudioContext:
        """Of several sounds, as a batch."""

        def together(name: str) -> Tensor | None:
            first = getattr(self, name)
            return None if first is None else torch.cat([first, *(getattr(other, name) for other in others)])

        return AudioContext(**{field.name: together(field.name) for field in fields(self)})

    def split(self, num: int) -> list[AudioContext]:
        """The sounds of a batch of `num` one by one, as views."""
        parts = [None if x is None else x.chunk(num) for x in (self.keys, self.values, self.shift, self.scale)]
        return [
            AudioContext(keys=k, values=v, shift=shift, scale=scale)
            for k, v, shift, scale in zip(*(part or [None] * num for part in parts), strict=True)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundContext:
    """What the audio layers need of one sound, and where in the picture it is heard."""

    layers: tuple[AudioContext, ...]
    share: Tensor | None   # [B or 1, V, 1] 0..1 of what is added to a video token; None: all of it, everywhere


def sound_shares(speaker_masks: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """Whose sound a video token hears, and how much of it.

    Args:
        speaker_masks: [B, S, T, h, w] in 0..1; where masks overlap, speakers are heard in proportion.

    Returns: [B, 1+S, V], each token's summing to 1; first the share of the sound outside all masks.
    """
    cells = F.avg_pool3d(speaker_masks.float(), patch_size)
    covered = cells.sum(1, keepdim=True)
    return torch.cat([(1 - covered).clamp(min=0), cells / covered.clamp(min=1)], dim=1).flatten(2)


class AdaIN(nn.Module):
    """Shift and scale from the audio style."""

    def __init__(self, dim: int, make: Factory) -> None:
        super().__init__()
        self.linear = make.linear(dim, 2 * dim)

    def forward(self, style: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.linear(F.silu(style)).chunk(2, dim=-1)
        return shift, scale


class AudioInjector(nn.Module):
    """Lets each video token attend to the sound of its own latent frame, after some of the blocks."""

    def __init__(self, config: TransformerConfig, make: Factory, attention: AttentionFn) -> None:
        super().__init__()
        layers = config.audio_inject_layers
        self.index_of = {layer: i for i, layer in enumerate(sorted(layers))}
        self.injector = nn.ModuleList(
            CrossAttention(config.dim, config.num_heads, make, attention, eps=1e-6, qk_norm=True) for _ in layers
        )
        self.use_adain = config.use_adain
        if config.use_adain:
            self.injector_adain_layers = nn.ModuleList(AdaIN(config.dim, make) for _ in layers)

    def prepare(self, tokens: Tensor, style: Tensor | None, dtype: torch.dtype) -> tuple[AudioContext, ...]:
        """Keys, values, shifts and scales of every audio layer, once per clip.

        Args:
            tokens: [B, T, A+1, D]; style: [B, T, 1, D] or None.
        """
        tokens = tokens.flatten(0, 1).to(dtype)
        contexts = []
        for i, layer in enumerate(self.injector):
            keys, values = layer.keys_values(tokens)
            shift = scale = None
            if self.use_adain:
                shift, scale = self.injector_adain_layers[i](style.flatten(0, 1).to(dtype))
                scale = 1 + scale.float()
            contexts.append(AudioContext(keys=keys, values=values, shift=shift, scale=scale))
        return tuple(contexts)

    def added(
        self, i: int, video: Tensor, sounds: Sequence[SoundContext], margins: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """What audio layer `i` adds to the video tokens [B, V, D]: every sound's residual where it is heard.

        Args:
            margins: tokens that the sounds' first and last latent frame lack here; zeros stand in for them.
        """
        total: Tensor | None = None
        whole = F.pad(video, (0, 0, *margins)) if any(margins) else video
        # Devices that share weights gather them anew for every call, all at once: in training there is one call,
        # however many sounds a device's clips have. Without gradients, one sound at a time takes less memory.
        at_once = len(sounds) if torch.is_grad_enabled() else 1
        for first in range(0, len(sounds), at_once):
            some = sounds[first : first + at_once]
            for sound, part in zip(some, self.residuals(i, whole, some), strict=True):
                part = part[:, margins[0] : margins[0] + video.shape[1]]
                part = part if sound.share is None else sound.share * part
                total = part if total is None else total + part
        assert total is not None, "a clip has a sound, if only silence"
        return total

    def residuals(self, i: int, video: Tensor, sounds: Sequence[SoundContext]) -> Sequence[Tensor]:
        """Each sound's residual, of one call of the layer."""
        first, *others = (sound.layers[i] for sound in sounds)
        if not others:
            return [self.residual(i, video, first)]
        return self.residual(i, video.repeat(len(sounds), 1, 1), first.joined(*others)).chunk(len(sounds))

    def residual(self, i: int, video: Tensor, context: AudioContext) -> Tensor:
        """What a sound that is heard everywhere adds to the video tokens [B, T*N, D]."""
        B = video.shape[0]
        x = rearrange(video, "b (t n) d -> (b t) n d", t=context.keys.shape[0] // B)
        x = F.layer_norm(x, x.shape[-1:], eps=ADAIN_EPS if self.use_adain else 1e-6)
        if self.use_adain:
            x = torch.addcmul(context.shift, x, context.scale)
        x = self.injector[i].attend(x.to(context.keys.dtype), context.keys, context.values)
        return rearrange(x, "(b t) n d -> b (t n) d", b=B)

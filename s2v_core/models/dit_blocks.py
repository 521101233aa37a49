"""The transformer's block: self-attention over all tokens, attention to the prompt, feed-forward.

Knows two kinds of tokens only by their modulation: video tokens at the clip's timestep, the rest at timestep 0.
B batch, N tokens, V video tokens (the first of the N), M prompt tokens, D width.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import TransformerConfig
from ..ops.attention import AttentionFn
from ..ops.layers import Factory
from ..ops.rope import apply_rope


class Attention(nn.Module):
    """Projections and norms that both kinds of attention share. Queries and keys are normed before the head split."""

    def __init__(
        self, dim: int, num_heads: int, make: Factory, attention: AttentionFn, *, eps: float, qk_norm: bool
    ) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (make.linear(dim, dim) for _ in range(4))
        self.norm_q = make.rms_norm(dim, eps) if qk_norm else nn.Identity()
        self.norm_k = make.rms_norm(dim, eps) if qk_norm else nn.Identity()
        self.num_heads = num_heads
        self.attention = attention

    def heads(self, x: Tensor) -> Tensor:   # [B, N, D] -> [B, N, heads, head_dim]
        return x.unflatten(-1, (self.num_heads, -1))


class SelfAttention(Attention):
    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, N, D]; cos, sin [N, 1, head_dim/2]."""
        q = apply_rope(self.heads(self.norm_q(self.q(x))), cos, sin)
        k = apply_rope(self.heads(self.norm_k(self.k(x))), cos, sin)
        return self.o(self.attention(q, k, self.heads(self.v(x))).flatten(2))


class CrossAttention(Attention):
    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, D] -> keys and values [B, M, heads, head_dim]; they do not change over the steps."""
        return self.heads(self.norm_k(self.k(context))), self.heads(self.v(context))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = self.heads(self.norm_q(self.q(x)))
        return self.o(self.attention(q, keys, values).flatten(2))


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, ffn_dim: int, make: Factory) -> None:
        super().__init__(make.linear(dim, ffn_dim), nn.GELU(approximate="tanh"), make.linear(ffn_dim, dim))


def by_segment(x: Tensor, num_video: int) -> tuple[Tensor, Tensor]:
    """The video tokens and the rest, as views."""
    return x[:, :num_video], x[:, num_video:]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, num_video: int) -> Tensor:
    """x * (1 + scale) + shift: the first pair for the video tokens, the second for the rest.

    x [B, N, D]; shift, scale [B, 2, 1, D].
    """
    parts = [torch.addcmul(shift[:, i], part, 1 + scale[:, i]) for i, part in enumerate(by_segment(x, num_video))]
    return torch.cat(parts, dim=1)


def add_gated(x: Tensor, y: Tensor, gate: Tensor, num_video: int) -> Tensor:
    """x + y * gate, segment by segment; gate [B, 2, 1, D]."""
    parts = zip(by_segment(x, num_video), by_segment(y, num_video), strict=True)
    return torch.cat([torch.addcmul(a, b, gate[:, i]) for i, (a, b) in enumerate(parts)], dim=1)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig, make: Factory, attention: AttentionFn) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        options = {"eps": eps, "qk_norm": config.qk_norm}
        self.norm1 = make.layer_norm(dim, eps)
        self.self_attn = SelfAttention(dim, config.num_heads, make, attention, **options)
        self.norm3 = make.layer_norm(dim, eps, affine=True) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(dim, config.num_heads, make, attention, **options)
        self.norm2 = make.layer_norm(dim, eps)
        self.ffn = FeedForward(dim, config.ffn_dim, make)
        self.modulation = make.parameter(1, 6, dim)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        rope: tuple[Tensor, Tensor],
        prompt: tuple[Tensor, Tensor],
        num_video: int,
    ) -> Tensor:
        """One block.

        Args:
            x: [B, N, D] tokens.
            time: [B, 6, 2, D] float32 modulation of (video, rest): shift, scale, gate of attention, then of the ffn.
            rope: cos, sin [N, 1, head_dim/2].
            prompt: keys and values [B, M, heads, head_dim].
            num_video: how many of the tokens, from the first, are video tokens.
        """
        time = time + self.modulation.to(time).unsqueeze(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = time.to(x.dtype).unsqueeze(3).unbind(1)
        y = self.self_attn(modulate(self.norm1(x), shift1, scale1, num_video), *rope)
        x = add_gated(x, y, gate1, num_video)
        x = x + self.cross_attn.attend(self.norm3(x), *prompt)
        y = self.ffn(modulate(self.norm2(x), shift2, scale2, num_video))
        return add_gated(x, y, gate2, num_video)


class Head(nn.Module):
    """Tokens to patches of velocity, in float32."""

    def __init__(self, config: TransformerConfig, make: Factory) -> None:
        super().__init__()
        self.norm = make.layer_norm(config.dim, config.eps)
        patch = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = make.linear(config.dim, config.out_channels * patch)
        self.modulation = make.parameter(1, 2, config.dim)

    def forward(self, video: Tensor, time: Tensor) -> Tensor:
        """video [B, V, D], time [B, D] float32 -> [B, V, channels*patch] float32."""
        shift, scale = (self.modulation.to(time) + time.unsqueeze(1)).unsqueeze(2).unbind(1)   # each [B, 1, D]
        return self.head(torch.addcmul(shift, self.norm(video.float()), 1 + scale))


def unpatchify(patches: Tensor, grid: tuple[int, int, int], patch_size: tuple[int, int, int]) -> Tensor:
    """[B, f*h*w, p*q*r*C] -> [B, C, f*p, h*q, w*r]."""
    f, h, w = grid
    p, q, r = patch_size
    return rearrange(patches, "b (f h w) (p q r c) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=p, q=q, r=r)

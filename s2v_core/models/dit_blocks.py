"""The transformer's block: self-attention over all tokens, attention to the prompt, feed-forward.

Knows two kinds of tokens only by their modulation: video tokens at the clip's timestep, the rest at timestep 0.
B batch, N tokens, V video tokens (the first of the N), M prompt tokens, D width.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import TransformerConfig
from ..ops.attention import AttentionFn, sdpa
from ..ops.layers import Factory, Linear, tanh_gelu, wants_new_tensors
from ..ops.quantized import QuantizedLinear
from ..ops.rope import apply_rope, apply_rope_

BlockPart = Literal["all", "self", "rest", "video"]


class PromptKeys(NamedTuple):
    """A prompt's keys and values [B, M, heads, head_dim] of one block. The last counts for several equal ones."""

    keys: Tensor
    values: Tensor
    last_counts: int = 1

    def spread(self, num_keys: int) -> PromptKeys:
        """The same in `num_keys` keys, M or more: the last stands there so often, and counts for fewer each time."""
        more = num_keys - self.keys.shape[1]
        keys, values = (torch.cat([t, t[:, -1:].expand(-1, more, -1, -1)], 1) for t in (self.keys, self.values))
        return PromptKeys(keys, values, self.last_counts - more)


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
    def forward(self, x: Tensor, rope: Tensor, num_queries: int) -> Tensor:
        """The first tokens attend to all: x [B, N, D], rope [N, 1, head_dim/2, 2] -> [B, num_queries, D]."""
        q, k = self._turned(x, rope, num_queries)
        return self.o(self.attention(q, k, self.heads(self.v(x))).flatten(2))

    def _turned(self, x: Tensor, rope: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions."""
        asking = x[:, :num_queries]
        if wants_new_tensors(x):
            q = apply_rope(self.heads(self.norm_q(self.q(asking))), rope[:num_queries])
            return q, apply_rope(self.heads(self.norm_k(self.k(x))), rope)
        both = torch.empty(2, *x.shape, dtype=torch.float32, device=x.device)
        both[0, :, :num_queries] = self.norm_q(self.q(asking))
        both[1] = self.norm_k(self.k(x))
        q, k = apply_rope_(self.heads(both), rope).to(x.dtype)
        return q[:, :num_queries], k


class CrossAttention(Attention):
    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """[B, M, D] -> keys and values [B, M, heads, head_dim]; they do not change over the steps."""
        return self.heads(self.norm_k(self.k(context))), self.heads(self.v(context))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, last_counts: int = 1) -> Tensor:
        """x [B or 1, N, D], what it attends to as in `PromptKeys` -> [B, N, D]."""
        q = self.heads(self.norm_q(self.q(x))).expand(keys.shape[0], -1, -1, -1)
        found = self.attention(q, keys, values) if last_counts == 1 else sdpa(q, keys, values, last_counts)
        return self.o(found.flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers. With `chunk_tokens` set, so many tokens at a time: less memory, the same numbers."""

    def __init__(self, dim: int, ffn_dim: int, make: Factory) -> None:
        super().__init__(make.linear(dim, ffn_dim), nn.GELU(approximate="tanh"), make.linear(ffn_dim, dim))
        self.chunk_tokens: int | None = None

    def forward(self, x: Tensor) -> Tensor:   # [B, N, D] -> [B, N, D]
        if self.chunk_tokens is None or x.shape[1] <= self.chunk_tokens:
            return self._whole(x)
        return torch.cat([self._whole(part) for part in x.split(self.chunk_tokens, dim=1)], dim=1)

    def _whole(self, x: Tensor) -> Tensor:
        widen, _, narrow = self
        own = isinstance(widen, Linear | QuantizedLinear)   # not lent by a host
        plain = own and not widen._forward_hooks            # nor with a LoRA beside it, which GELU must see
        return narrow(widen.with_gelu(x) if plain else tanh_gelu(widen(x)))


def by_segment(x: Tensor, num_video: int) -> tuple[Tensor, ...]:
    """The video tokens and, where there are any, the rest, as views."""
    return (x,) if num_video == x.shape[1] else (x[:, :num_video], x[:, num_video:])


def for_each_token(pair: Tensor, num_video: int, num_tokens: int) -> Tensor:
    """[B or 1, 2, D] to [B or 1, N or 1, D]. For torch.compile, which then writes nothing of the kind and fuses on."""
    if num_video == num_tokens:
        return pair[:, :1]
    is_video = torch.arange(num_tokens, device=pair.device) < num_video
    return torch.where(is_video[:, None], pair[:, :1], pair[:, 1:])


def norm_modulated(
    x: Tensor, eps: float, shift: Tensor, scale: Tensor, num_video: int, dtype: torch.dtype
) -> Tensor:
    """Layer norm of x, times scale, plus shift: the first pair for the video tokens, the second for the rest.

    Args:
        x: [B, N, D] float32.
        shift, scale: [B or 1, 2, D] float32.

    Returns: [B, N, D] in `dtype`.
    """
    width = x.shape[-1:]
    if torch.compiler.is_compiling():
        shift, scale = (for_each_token(pair, num_video, x.shape[1]) for pair in (shift, scale))
        return torch.addcmul(shift, F.layer_norm(x, width, eps=eps), scale).to(dtype)
    if wants_new_tensors(x) or shift.shape[0] > 1:
        parts = by_segment(F.layer_norm(x, width, eps=eps), num_video)
        parts = [torch.addcmul(shift[:, i, None], part, scale[:, i, None]) for i, part in enumerate(parts)]
        return torch.cat(parts, dim=1).to(dtype)
    video = F.layer_norm(x, width, scale[0, 0], shift[0, 0], eps)   # of all tokens; the few others are done again
    if num_video == x.shape[1]:
        return video.to(dtype)
    rest = F.layer_norm(x[:, num_video:], width, scale[0, 1], shift[0, 1], eps)
    if dtype == torch.float32:
        video[:, num_video:] = rest
        return video
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    return torch.cat([video[:, :num_video], rest], dim=1, out=out)


def add_gated(x: Tensor, y: Tensor, gate: Tensor, num_video: int, *, in_place: bool = False) -> Tensor:
    """x + y * gate, segment by segment, in x's dtype; gate [B or 1, 2, D]. `in_place`: x may be given up."""
    if torch.compiler.is_compiling():
        return torch.addcmul(x, y.to(x.dtype), for_each_token(gate, num_video, x.shape[1]))
    segments = [by_segment(tokens, num_video) for tokens in (x, y)]
    if wants_new_tensors(x):
        parts = zip(*segments, strict=True)
        return torch.cat([torch.addcmul(a, b.to(a.dtype), gate[:, i, None]) for i, (a, b) in enumerate(parts)], dim=1)
    out = x if in_place else torch.empty_like(x)
    for i, (a, b, total) in enumerate(zip(*segments, by_segment(out, num_video), strict=True)):
        torch.addcmul(a, b, gate[:, i, None], out=total)
    return out


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
        rope: Tensor,
        prompt: PromptKeys,
        num_video: int,
        part: BlockPart = "all",
    ) -> Tensor:
        """One block, or a part of one.

        Args:
            x: [B or 1, N, D] float32 tokens; left as they are.
            time: [B or 1, 6, 2, D] float32, of `TimeContext`.
            rope: [N, 1, head_dim/2, 2].
            prompt: keys and values; their dtype is the one computed in.
            num_video: how many of the tokens, from the first, are video tokens.
            part: what is computed. "self": self-attention alone; "rest": all but that; "video": all, for the video
                tokens alone.

        Returns: [B, N, D] float32, for "video" [B, num_video, D].
        """
        time = time + self.modulation.to(time.device).unsqueeze(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = time.unbind(1)
        dtype = prompt.keys.dtype
        if part != "rest":
            num_wanted = num_video if part == "video" else x.shape[1]
            y = norm_modulated(x, self.norm1.eps, shift1, scale1, num_video, dtype)
            x = add_gated(x[:, :num_wanted], self.self_attn(y, rope, num_wanted), gate1, num_video)
            del y
        if part == "self":
            return x
        x = x + self.cross_attn.attend(self.norm3(x.to(dtype)), *prompt)
        y = self.ffn(norm_modulated(x, self.norm2.eps, shift2, scale2, num_video, dtype))
        return add_gated(x, y, gate2, num_video, in_place=True)


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

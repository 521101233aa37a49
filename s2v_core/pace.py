"""How long a denoising step will take on this machine: one block of the model's shape timed, and counted up to a step.

Knows shapes and a clock; reads no weights, for their values do not change the time.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from .config import TransformerConfig
from .geometry import TokenLayout
from .models.dit_blocks import Block, PromptKeys
from .ops import layers
from .ops.attention import AttentionFn
from .placement import wait_for

Clock = Callable[[], float]

FIRST_TOKENS = 256   # of the first timing; four times as many follow, until all are timed or the budget would be passed
BUDGET = 0.5         # seconds that a timed block may be expected to take
REPEATS = 3
COPIED = 1 << 26     # bytes that a copy is timed on, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockTime:
    """Seconds of a block with all its tokens."""

    linear: float      # all that grows with the tokens
    attention: float   # among them: grows with their square

    @property
    def whole(self) -> float:
        return self.linear + self.attention

    def scaled(self, factor: float) -> BlockTime:
        """With so many times the tokens."""
        return BlockTime(linear=self.linear * factor, attention=self.attention * factor**2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Copies:
    """Blocks that come to the device for every evaluation, while the block before computes."""

    seconds: float   # of one
    num: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTime:
    """Seconds of denoising."""

    step: float   # guided
    clip: float   # all steps of a clip


@lru_cache(maxsize=32)
def time_block(
    config: TransformerConfig,
    layout: TokenLayout,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attention: AttentionFn,
    clock: Clock = time.perf_counter,
) -> BlockTime:
    """A block of random weights, timed on the device. Where all tokens would take long, fewer are timed, and products
    are counted up with their number, attention with its square."""
    block, tokens = _make_block(config, dtype, device, attention), layout.total
    share = layout.num_video / tokens
    num = min(tokens, FIRST_TOKENS)
    while True:
        found = _timed(block, config, num, round(share * num), dtype, device, clock)
        if num == tokens:
            return found
        more = min(tokens, 4 * num)
        if found.scaled(more / num).whole > BUDGET:
            return found.scaled(tokens / num)
        num = more


def time_copy(num_bytes: int, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Seconds that so many bytes take from the RAM to the device."""
    piece = torch.empty(min(num_bytes, COPIED), dtype=torch.uint8, pin_memory=device.type == "cuda")
    return _median(lambda: piece.to(device, copy=True), device, clock) * num_bytes / len(piece)


def seconds_per_step(
    config: TransformerConfig, layout: TokenLayout, block: BlockTime, *, branches: int, copies: Copies | None = None
) -> float:
    """A step of so many evaluations, from the time of one block.

    What is no block is counted by its products against theirs: audio layers, the first layer and the last. The last
    block makes video tokens alone, and the first one's self-attention is shared by all evaluations.
    """
    per_token = block.linear / layout.total / _products(config)   # seconds of one multiply-add
    width, video = config.dim, layout.num_video
    patch = math.prod(config.patch_size)
    audio = len(config.audio_inject_layers) * 2 * width * width * video * per_token
    ends = (config.in_channels + config.out_channels) * patch * width * video * per_token
    unseen = (1 - video / layout.total) * (block.whole - 2 * width * width * layout.total * per_token)
    forward = config.num_layers * block.whole - unseen + audio + ends
    if copies is not None:
        forward += copies.num * max(0.0, copies.seconds - block.whole)
    shared = block.attention + 4 * width * width * layout.total * per_token if config.num_layers > 1 else 0.0
    return branches * forward - (branches - 1) * shared


def _products(config: TransformerConfig) -> int:
    """Multiply-adds of a block for one token, but for those that grow with their number."""
    return 6 * config.dim**2 + 2 * config.dim * config.ffn_dim + 2 * config.text_len * config.dim


def _make_block(config: TransformerConfig, dtype: torch.dtype, device: torch.device, attention: AttentionFn) -> Block:
    """Every row of a weight is the same: numbers of the usual size, made in no time."""
    with torch.device("meta"):
        block = Block(config, layers.Factory(layers, None, dtype), attention)
    block.to_empty(device=device).eval().requires_grad_(False)
    for parameter in block.parameters():
        row = torch.randn(parameter.shape[-1], device=device) * parameter.shape[-1] ** -0.5
        parameter.copy_(row.expand_as(parameter))
    return block


@torch.no_grad()
def _timed(
    block: Block,
    config: TransformerConfig,
    num_tokens: int,
    num_video: int,
    dtype: torch.dtype,
    device: torch.device,
    clock: Clock,
) -> BlockTime:
    """With `num_tokens` tokens; the median of a few runs, after one that warms up."""
    heads = (config.num_heads, config.head_dim)
    x = torch.randn(1, num_tokens, config.dim, device=device)
    when = torch.randn(1, 6, 2, config.dim, device=device)
    rope = torch.randn(num_tokens, 1, config.head_dim // 2, 2, device=device)
    prompt = PromptKeys(*torch.randn(2, 1, config.text_len, *heads, device=device).to(dtype))
    queries = torch.randn(1, num_tokens, *heads, device=device).to(dtype)
    whole = _median(lambda: block(x, when, rope, prompt, num_video), device, clock)
    attention = _median(lambda: block.self_attn.attention(queries, queries, queries), device, clock)
    return BlockTime(linear=max(0.0, whole - attention), attention=attention)


def _median(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    spent = []
    for _ in range(1 + REPEATS):
        start = clock()
        work()
        wait_for(device)
        spent.append(clock() - start)
    return statistics.median(spent[1:])

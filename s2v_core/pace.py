"""How long a clip will take here: a block of the transformer is timed and counted up, and the autoencoder likewise.

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
from torch import Tensor

from .config import TransformerConfig, VAEConfig
from .geometry import SPATIAL_STRIDE, TEMPORAL_STRIDE, TokenLayout
from .models.dit_blocks import Block, PromptKeys
from .models.vae import WanVAE
from .ops import layers
from .ops.attention import AttentionFn
from .placement import wait_for

Clock = Callable[[], float]

FIRST_TOKENS = 256   # of the first timing; four times as many follow, until all are timed or the budget would be passed
BUDGET = 0.5         # seconds that a timed block may be expected to take
REPEATS = 3
COPIED = 1 << 26     # bytes that a copy is timed on, at most
TOLD = 128           # keys of a usual prompt where its zeros are left out
SIDE = 32            # pixels of the first picture; larger ones follow until the budget is passed
SLOW = 2.0           # seconds from which on the first picture is enough: what calls cost by themselves is nothing then
CODED = 2            # latent frames that the autoencoder is timed on


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
class CodecTime:
    """Seconds of an autoencoder."""

    opening: float   # of a clip's decode: the motion latents, whose own frames nobody wants
    decode: float    # of a latent frame
    encode: float    # of four frames

    def clip(self, num_latents: int, num_motion: int) -> float:
        """A clip's frames decoded, and the motion latents before it encoded."""
        return self.opening + num_latents * self.decode + num_motion * self.encode

    def beyond(self, smaller: CodecTime, steps: float) -> CodecTime:
        """On the straight line from a smaller picture's through this one's, so many times as far again."""
        pairs = ((self.opening, smaller.opening), (self.decode, smaller.decode), (self.encode, smaller.encode))
        opening, decode, encode = (now + steps * max(0.0, now - before) for now, before in pairs)
        return CodecTime(opening=opening, decode=decode, encode=encode)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTime:
    """Seconds of a clip that goes on from another."""

    step: float       # of denoising, guided
    denoising: float   # all steps
    codec: float      # the autoencoder


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


@lru_cache(maxsize=32)
@torch.no_grad()
def time_codec(
    config: VAEConfig,
    num_pixels: int,
    num_motion: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    clock: Clock = time.perf_counter,
) -> CodecTime:
    """An autoencoder of random weights, timed on small pictures and counted up with the pixels.

    Args:
        num_motion: latent frames that open a clip's decode.
    """
    vae = WanVAE(config, device="meta", dtype=dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in vae.parameters():
        _fill(parameter)
    side, smaller, before = SIDE, CodecTime(opening=0.0, decode=0.0, encode=0.0), 0
    while True:
        start = clock()
        found = _timed_codec(vae, side, num_motion, device, clock)
        is_slow = clock() - start > (BUDGET if before else SLOW)
        if is_slow or (before and 4 * side**2 > num_pixels):
            return found.beyond(smaller, (num_pixels - side**2) / (side**2 - before**2))
        smaller, before, side = found, side, 2 * side


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
    """Of random weights."""
    with torch.device("meta"):
        block = Block(config, layers.Factory(layers, None, dtype), attention)
    block.to_empty(device=device).eval().requires_grad_(False)
    for parameter in block.parameters():
        _fill(parameter)
    return block


def _fill(parameter: Tensor) -> None:
    """Random numbers, for which those of one row are enough."""
    row = torch.randn(parameter.shape[-1], device=parameter.device) * parameter.shape[-1] ** -0.5
    parameter.copy_(row.expand_as(parameter))


def _timed_codec(vae: WanVAE, side: int, num_motion: int, device: torch.device, clock: Clock) -> CodecTime:
    cells, channels = side // SPATIAL_STRIDE, vae.config.latent_channels
    motion, latents = (torch.randn(1, channels, n, cells, cells, device=device) for n in (num_motion, CODED))
    frames = torch.randn(1, 3, 1 + 2 * TEMPORAL_STRIDE * CODED, side, side, device=device)
    decoder, encoder = vae.decoder(), vae.encoder_stream()
    encoder.encode(frames[:, :, : 1 + TEMPORAL_STRIDE * CODED])   # so that every layer has its past, and its kernels
    list(decoder.decode(latents))
    works = (
        lambda: decoder.prime(motion),
        lambda: list(decoder.decode(latents)),
        lambda: encoder.encode(frames[:, :, 1 + TEMPORAL_STRIDE * CODED :]),
    )
    opening, decoding, encoding = (_once(work, device, clock) for work in works)
    return CodecTime(opening=opening, decode=decoding / CODED, encode=encoding / CODED)


def _once(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    start = clock()
    work()
    wait_for(device)
    return clock() - start


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
    num_keys = min(config.text_len, TOLD) if device.type == "cpu" else config.text_len   # as `prepare_prompt`
    keys, values = torch.randn(2, 1, num_keys, *heads, device=device).to(dtype)
    prompt = PromptKeys(keys, values, 1 + config.text_len - num_keys)
    queries = torch.randn(1, num_tokens, *heads, device=device).to(dtype)
    whole = _median(lambda: block(x, when, rope, prompt, num_video), device, clock)
    attention = _median(lambda: block.self_attn.attention(queries, queries, queries), device, clock)
    return BlockTime(linear=max(0.0, whole - attention), attention=attention)


def _median(work: Callable[[], object], device: torch.device, clock: Clock) -> float:
    spent = [_once(work, device, clock) for _ in range(1 + REPEATS)]
    return statistics.median(spent[1:])

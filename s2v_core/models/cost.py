"""What a transformer's forward takes in memory, by counting its tensors: an estimate before any weight is read.

Knows sizes; the order in which `dit_blocks.Block` makes and drops tensors is what it mirrors, and a test measures it.
"""

from __future__ import annotations

from ..config import TransformerConfig, VAEConfig
from ..geometry import LatentGrid, TokenLayout
from ..ops import cpu

# Of the autoencoder's decoder. Numbers a pixel of a frame and channel of the widest frames: at work at the peak and,
# for every residual block at each of four sizes, carried by two convolutions from two frames each.
AT_WORK, CARRIED = 23.2, 4 + 2 + 1 + 0.25
RGB = 24                              # numbers a pixel: the four frames that are handed out, before and after clamping
KERNELS, BLOCK_KERNELS = 4205, 2376   # numbers times the squared width
BESIDE_TENSORS = 1.6                  # what convolutions and an allocator hold on a device, with the tensors; a guess
# On a CPU: tensors of 32 MiB and more go back to the system when they are gone, smaller ones leave holes among others
# (glibc). Over what would live in float32, which norms are computed in: 0.34 to 0.52 of a decode in pictures of 256x256
# to 512x512. Of a forward, whose tensors are of many sizes, more than what lives: of a heap of 211 MB (width 768,
# 192x192) half was holes by glibc's own account.
RETURNED, HELD, DECODE_HOLES, FORWARD_HOLES = 32 << 20, 1.06, 0.44, 1.2
FLOAT32 = 4   # bytes: of the residual stream, and of queries and keys while they are turned


def activation_bytes(
    config: TransformerConfig,
    layout: TokenLayout,
    itemsize: int,
    *,
    chunk_tokens: int | None = None,
    on_cpu: bool = False,
) -> int:
    """Live tensors at a forward's peak, which is in a block's self-attention or in its feed-forward.

    Args:
        itemsize: bytes of a number in the dtype computed in.
        chunk_tokens: of the feed-forward (`dit_blocks.FeedForward`); None: all at once.
        on_cpu: where keys are normed in several passes (`ops.layers.RMSNorm`), in float32 until they are rounded, and
            scores of attention in bf16 may be tensors (`ops.cpu.attention`).
    """
    tokens, width, item = layout.total, layout.total * config.dim, itemsize
    given = FLOAT32 * width                                   # the block's input, which its caller holds
    normed, turned = item * width, 2 * FLOAT32 * width
    cast = 2 * item * width if item != FLOAT32 else 2 * FLOAT32 * width   # q and k cast; or values and the result
    in_float32 = FLOAT32 * width if on_cpu and item != FLOAT32 else 0
    norming = given + normed + turned + 2 * item * width + in_float32     # keys as projected, and normed
    attention = given + normed + turned + cast
    if on_cpu and item < FLOAT32 and tokens >= cpu.MIN_KEYS and config.head_dim >= cpu.MIN_CHANNELS and cpu.helps():
        scores = (FLOAT32 + item) * min(tokens, cpu.ROWS) * tokens
        heads = 2 * FLOAT32 * tokens * config.head_dim   # the keys of one head, and of the next
        attention = max(attention, given + normed + 4 * item * width + scores + heads)
    at_once = min(tokens, chunk_tokens or tokens)
    hidden = item * at_once * (config.ffn_dim + config.dim)   # with what comes of it
    chunks = 0 if at_once == tokens else 2 * item * width     # the parts, and the whole that they are joined to
    feed_forward = 2 * given + normed + hidden + chunks
    return max(norming, attention, feed_forward)


def prepared_bytes(config: TransformerConfig, layout: TokenLayout, itemsize: int, *, branches: int = 2) -> int:
    """What is kept over a clip's steps.

    Args:
        branches: of guidance, each with its prompt and sound; the tokens that a clip is given are shared.
    """
    prompt = 2 * config.num_layers * config.text_len * config.dim * itemsize
    heard = layout.num_frames * (config.num_audio_tokens + 1) * 2 * config.dim * itemsize
    adain = layout.num_frames * config.dim * (itemsize + FLOAT32) if config.use_adain else 0
    sound = len(config.audio_inject_layers) * (heard + adain)
    shared_tokens = layout.total * config.dim * itemsize
    rope = layout.total * config.head_dim * FLOAT32
    first_attention = FLOAT32 * layout.total * config.dim if branches > 1 else 0   # see `WanS2VTransformer.branches`
    return branches * (prompt + sound) + shared_tokens + rope + first_attention


def decoder_bytes(config: VAEConfig, num_pixels: int, itemsize: int) -> int:
    """Live tensors at the peak of a decode, which is among its full-size frames: those at work, those that each causal
    layer carries, and kernels in working form. For widths that grow as Wan's do, 1, 2, 4, 4.

    Args:
        num_pixels: of a frame.
        itemsize: bytes of a number in the dtype computed in.
    """
    blocks, dim = config.num_res_blocks, config.dim
    frames = num_pixels * (dim * (AT_WORK + CARRIED * blocks) + RGB)
    kernels = dim**2 * (KERNELS + BLOCK_KERNELS * blocks)
    return int(itemsize * (frames + kernels))


def decoder_room(config: VAEConfig, num_pixels: int, itemsize: int, *, on_cpu: bool = False) -> int:
    """`decoder_bytes`, and what convolutions and the allocator hold beside tensors."""
    tensors = decoder_bytes(config, num_pixels, itemsize)
    if not on_cpu:
        return int(BESIDE_TENSORS * tensors)
    whole, largest = decoder_bytes(config, num_pixels, FLOAT32), num_pixels * config.dim * FLOAT32
    return int(HELD * tensors) + holes(whole, largest, DECODE_HOLES)


def holes(in_float32: int, largest: int, share: float) -> int:
    """What a CPU's allocator keeps of memory that is free again, beside tensors at work.

    Args:
        in_float32: bytes that would live at the peak if all were in float32.
        largest: bytes of a tensor of the largest ones' size. Of layers at other sizes it is half of that, and so on.
        share: of the first, where all tensors are small.
    """
    while largest >= RETURNED:
        largest, share = largest // 2, share / 2
    return int(share * in_float32)


def step_cache_bytes(config: TransformerConfig, grid: LatentGrid) -> int:
    """The two velocities that `sampling.caching.StepCache` keeps, and the one that it foretells."""
    return 3 * FLOAT32 * config.out_channels * grid.frames * grid.height * grid.width

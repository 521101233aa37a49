"""A clip's tokens shared out to several devices, put around a transformer from outside.

Knows the transformer's sequence: video tokens, then reference and motion tokens. Every rank has an equal run of it,
the last ones filled up with empty tokens that nobody attends to. Of a block only self-attention talks to other ranks:
a token's rope, modulation and prompt are its own, and to hear its latent frame's sound it needs nobody else.
B batch, N tokens of the whole sequence, n = ceil(N / P) of one of P ranks, V video tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ..geometry import TokenLayout
from ..models.audio import AudioContext, SoundContext
from ..models.dit import ClipContext, WanS2VTransformer
from ..models.motion import FramePacker
from ..ops.attention import AttentionFn
from .exchange import all_tokens_of_some_heads, gathered, own_tokens_of_all_heads
from .ranks import Ranks
from .ring import ring_attention


class SharedSequence:
    """This rank's part in every sequence of a transformer. A `models.dit.TokenSharding`.

    Batches of the ranks differ, and so do the modules that they need: without a past nothing packs motion frames,
    without a pose nothing encodes it. Gradients are summed over all ranks, so those modules take part in every step,
    with a gradient of zero; `forget_unused` takes it away again where no rank needed the module.
    """

    def __init__(self, model: WanS2VTransformer, ranks: Ranks) -> None:
        assert ranks.meshes is not None, "one process shares with nobody"
        ranks.layout.check_heads(model.config.num_heads)
        self.ranks = ranks
        self.context = ranks.meshes.groups.get_group("context")
        self.ring = ranks.meshes.sequence.get_group("ring")
        self.ulysses = ranks.meshes.sequence.get_group("ulysses")
        self.num_tokens = 0   # N of the forward pass at work
        self.optional: tuple[nn.Module, ...] = (model.frame_packer, model.cond_encoder)
        self.needed = [False] * len(self.optional)   # since `forget_unused`

    # ---- the sequence ---------------------------------------------------------------------------------------------

    def split(self, x: Tensor, clip: ClipContext) -> tuple[Tensor, ClipContext]:
        """Own tokens [B, n, D] of [B, N, D], and what the blocks need of the clip for them."""
        layout, size = clip.layout, self.context.size()
        self.num_tokens = layout.total
        per_rank = -(-layout.total // size)
        start = self.context.rank() * per_rank
        own = partial(_rows, start=start, num=per_rank)
        video = slice(min(start, layout.num_video), min(start + per_rank, layout.num_video))
        per_frame = layout.tokens_per_frame
        frames = _frames(video, per_frame)
        shared = replace(
            clip,
            layout=_cut(layout, start, start + per_rank),
            rope=own(clip.rope, dim=0),
            sounds=tuple(_own_sound(sound, frames, video, layout.num_frames) for sound in clip.sounds),
            margins=(video.start - frames.start * per_frame, frames.stop * per_frame - video.stop),
        )
        return self._with_all_modules(own(x, dim=1), clip), shared

    def gather(self, patches: Tensor, clip: ClipContext) -> Tensor:
        """Patches [B, v, c] of own video tokens to those of all [B, V, c], on every rank."""
        per_rank = -(-clip.layout.total // self.context.size())
        return gathered(_filled(patches, per_rank, dim=1), self.context)[:, : clip.layout.num_video]

    def attend(self, attention: AttentionFn, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of own tokens to all tokens.

        Args:
            attention: the kernel, where a device has all keys; a ring needs one that tells its lse, and brings it.
            q, k, v: [B, n, H, d] of own tokens.
        """
        if self.ulysses.size() > 1:
            q, k, v = all_tokens_of_some_heads(torch.cat([q, k, v]), self.ulysses).chunk(3)
        if self.ring.size() > 1:
            block = q.shape[1]
            lengths = [min(block, max(0, self.num_tokens - i * block)) for i in range(self.ring.size())]
            out = ring_attention(q, k, v, self.ring, lengths)
        else:
            out = attention(q, k[:, : self.num_tokens], v[:, : self.num_tokens])
        return own_tokens_of_all_heads(out, self.ulysses) if self.ulysses.size() > 1 else out

    # ---- modules that not every batch needs -----------------------------------------------------------------------

    def _with_all_modules(self, x: Tensor, clip: ClipContext) -> Tensor:
        """x, to which every optional module adds nothing."""
        has_pose = clip.video_offset.shape[1] > 1
        self.needed = [a or b for a, b in zip(self.needed, (clip.layout.num_motion > 0, has_pose), strict=True)]
        learning = [p for module in self.optional for p in _only_of(module) if p.requires_grad]
        if not torch.is_grad_enabled() or not learning:
            return x
        return x + 0 * sum(p.sum() for p in learning).to(x.dtype)

    def forget_unused(self) -> None:
        """After a step's backward passes: modules that no rank needed have no gradient, as on one device."""
        for i, module in enumerate(self.optional):
            if not self.ranks.any(self.needed[i]):
                for parameter in _only_of(module):
                    parameter.grad = None
        self.needed = [False] * len(self.optional)


def share_sequences(model: WanS2VTransformer, ranks: Ranks) -> SharedSequence:
    """Let the ranks of every context group work on one sequence together.

    Raises: ConfigError when the heads cannot be shared out.
    """
    shared = SharedSequence(model, ranks)
    model.sharding = shared
    if ranks.layout.context > 1:
        attend_with(model, shared.attend)
    return shared


def attend_with(model: WanS2VTransformer, attend: Callable[..., Tensor]) -> None:
    """Let all self-attention of a transformer be `SharedSequence.attend` or its like."""
    attend = torch.compiler.disable(attend)   # blocks may be compiled, what they exchange is not
    for block in model.blocks:
        block.self_attn.attention = partial(attend, block.self_attn.attention)


def _only_of(module: nn.Module) -> list[nn.Parameter]:
    """What goes unused with a module; the pose encoder's bias is a part of every video token, pose or not."""
    return list(module.parameters()) if isinstance(module, FramePacker) else [module.weight]


# ---- cutting ---------------------------------------------------------------------------------------------------------


def _filled(x: Tensor, num: int, *, dim: int) -> Tensor:
    """Zeros at the end of a dim, up to `num`."""
    missing = num - x.shape[dim]
    return x if not missing else torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim)


def _rows(x: Tensor, *, start: int, num: int, dim: int) -> Tensor:
    """`num` of a dim from `start`; zeros where it has ended."""
    first, last = (min(at, x.shape[dim]) for at in (start, start + num))
    return _filled(x.narrow(dim, first, last - first), num, dim=dim)


def _cut(layout: TokenLayout, start: int, stop: int) -> TokenLayout:
    """Which of the tokens from `start` to `stop` are what."""

    def inside(group: slice) -> int:
        return max(0, min(stop, group.stop) - max(start, group.start))

    return replace(
        layout,
        num_video=inside(layout.video),
        num_reference=inside(layout.reference),
        num_motion=inside(layout.motion),
    )


def _frames(video: slice, per_frame: int) -> slice:
    """The latent frames of some video tokens; without any, the frame before, so that no module goes unused."""
    if video.start == video.stop:
        return slice(video.start // per_frame - 1, video.start // per_frame)
    return slice(video.start // per_frame, -(-video.stop // per_frame))


def _own_sound(sound: SoundContext, frames: slice, video: slice, num_frames: int) -> SoundContext:
    layers = tuple(_own_layer(layer, frames, num_frames) for layer in sound.layers)
    return SoundContext(layers=layers, share=None if sound.share is None else sound.share[:, video])


def _own_layer(layer: AudioContext, frames: slice, num_frames: int) -> AudioContext:
    """Of [B*T, ...] those of some latent frames."""

    def own(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unflatten(0, (-1, num_frames))[:, frames].flatten(0, 1)

    return AudioContext(keys=own(layer.keys), values=own(layer.values), shift=own(layer.shift), scale=own(layer.scale))

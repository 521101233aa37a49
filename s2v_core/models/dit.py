"""The Wan-S2V transformer: noisy latents, and everything that directs them, to velocity.

Knows one clip at a time; schedules, guidance and files are others' business. Parameter names are the checkpoint's.
B batch, T latent frames, h w latent cells, N tokens, V video tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..errors import ShapeError
from ..geometry import LatentGrid, TokenLayout
from ..ops import layers as torch_layers
from ..ops.attention import AttentionFn, sdpa
from ..ops.layers import Factory, Layers, wants_new_tensors
from ..ops.rope import rope_table
from .audio import AudioInjector, CausalAudioEncoder, SoundContext, sound_shares
from .dit_blocks import Block, BlockPart, Head, PromptKeys, unpatchify
from .motion import FramePacker
from .positions import motion_positions, reference_positions, video_positions

PROMPT_STEP = 64   # prompts are cut to multiples of so many tokens: few shapes, for torch.compile
AUDIO_PREFIX_FRAMES = 73   # copies of a clip's first audio frame before it, as the model was trained


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptContext:
    """What the blocks need of the prompt. Made once per video."""

    keys_values: tuple[PromptKeys, ...]   # per block, of text_len tokens in all

    def joined(self, *others: PromptContext) -> PromptContext:
        """Several prompts as one batch."""
        blocks = zip(*(prompt.keys_values for prompt in (self, *others)), strict=True)
        return PromptContext(keys_values=tuple(_joined_keys(parts) for parts in blocks))


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeContext:
    """What the blocks and the head need of a timestep."""

    head: Tensor         # [B, D] float32
    modulation: Tensor   # [B, 6, 2, D] float32, for the video tokens and for the rest: shift, 1 + scale, gate, twice


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipContext:
    """Everything about a clip that does not change over its steps. Made once per clip."""

    grid: LatentGrid
    layout: TokenLayout
    rope: Tensor                           # [N, 1, head_dim/2, 2] float32
    video_offset: Tensor                   # [B or 1, V or 1, D]: the pose, and the mark of a video token
    condition_tokens: Tensor               # [B or 1, N - V, D]: reference and motion tokens
    prompt: PromptContext
    sounds: tuple[SoundContext, ...]       # the shares of several sum to 1 for every video token
    margins: tuple[int, int] = (0, 0)      # video tokens of its first and last latent frame that are on other devices

    def looks_like(self, other: ClipContext) -> bool:
        """Whether the tokens of both are the same tensors before they meet prompt and sound."""
        return (
            self.video_offset is other.video_offset
            and self.condition_tokens is other.condition_tokens
            and self.rope is other.rope
        )

    def joined(self, *others: ClipContext) -> ClipContext:
        """This clip and others that differ in prompt and sound alone, as one batch.

        Some may have one sound only, heard everywhere; those of several sounds have equally many.
        """
        clips = (self, *others)
        prompt = self.prompt.joined(*(clip.prompt for clip in others))
        return replace(self, prompt=prompt, sounds=_joined_sounds([clip.sounds for clip in clips]))


def _joined_keys(parts: Sequence[PromptKeys]) -> PromptKeys:
    num_keys = max(part.keys.shape[1] for part in parts)
    keys, values, last_counts = zip(*(part.spread(num_keys) for part in parts), strict=True)
    return PromptKeys(torch.cat(keys), torch.cat(values), last_counts[0])


def _joined_sounds(clips: Sequence[tuple[SoundContext, ...]]) -> tuple[SoundContext, ...]:
    """Sound k of every clip as a batch; a clip's only sound is repeated, with shares that come to 1 again."""
    most = max(clips, key=len)
    assert all(len(sounds) in (1, len(most)) for sounds in clips), [len(sounds) for sounds in clips]
    joined = []
    for k, widest in enumerate(most):
        parts = [sounds[k % len(sounds)] for sounds in clips]
        shares = [widest.share if len(sounds) == 1 else part.share for sounds, part in zip(clips, parts, strict=True)]
        layers = tuple(first.joined(*rest) for first, *rest in zip(*(part.layers for part in parts), strict=True))
        joined.append(SoundContext(layers=layers, share=None if widest.share is None else torch.cat(shares)))
    return tuple(joined)


class TokenSharding(Protocol):
    """Several devices that share every sequence; their attention is theirs to bring."""

    def split(self, x: Tensor, clip: ClipContext) -> tuple[Tensor, ClipContext]:
        """Tokens [B, N, D] and their clip to those of this device."""

    def gather(self, patches: Tensor, clip: ClipContext) -> Tensor:
        """Patches of this device's video tokens to those of the whole clip."""


class WanS2VTransformer(nn.Module):
    """The denoiser.

    Args:
        config: sizes; the defaults are the 14B model.
        layers: where Linear, Conv1d, Conv3d, LayerNorm, RMSNorm and Embedding come from (`ops.layers.Layers`).
        attention: queries, keys, values [B, N, heads, head_dim] -> [B, N, heads, head_dim].
        compute_dtype: of the blocks; None: the dtype of the patch embedding's weight.

    Time embedding, modulation, audio encoder and head run in float32, the rest in `compute_dtype`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        layers: Layers = torch_layers,
        attention: AttentionFn = sdpa,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        make = Factory(layers, device, dtype)
        dim = config.dim
        self.config = config
        self._compute_dtype = compute_dtype
        self.sharding: TokenSharding | None = None   # one device has all tokens
        self.patch_embedding = make.patch_conv(config.in_channels, dim, config.patch_size)
        self.cond_encoder = make.patch_conv(config.pose_channels, dim, config.patch_size)
        self.text_embedding = nn.Sequential(
            make.linear(config.text_dim, dim), nn.GELU(approximate="tanh"), make.linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(make.linear(config.freq_dim, dim), nn.SiLU(), make.linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), make.linear(dim, 6 * dim))
        self.trainable_cond_mask = make.embedding(3, dim)   # of video, reference and motion tokens
        self.casual_audio_encoder = CausalAudioEncoder(config, make)
        self.frame_packer = FramePacker(config, make)
        self.blocks = nn.ModuleList(Block(config, make, attention) for _ in range(config.num_layers))
        self.audio_injector = AudioInjector(config, make, attention)
        self.head = Head(config, make)

    @property
    def compute_dtype(self) -> torch.dtype:
        return self._compute_dtype or self.patch_embedding.weight.dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self._compute_dtype = dtype

    # ---- once per video -------------------------------------------------------------------------------------------

    def prepare_prompt(self, prompt_embeds: Tensor) -> PromptContext:
        """Keys and values of the prompt for every block.

        Args:
            prompt_embeds: [B, L, text_dim], L real tokens; zero rows after them, to text_len, take part in attention.
                They are all equal there: on a CPU one stands for most of them, and the sums stay the same.
        """
        num_keys = self._num_keys(prompt_embeds)
        text = self.embed_text(prompt_embeds, num_keys)
        pairs = (block.cross_attn.keys_values(text) for block in self.blocks)
        last_counts = 1 + self.config.text_len - num_keys
        return PromptContext(keys_values=tuple(PromptKeys(*pair, last_counts) for pair in pairs))

    def _num_keys(self, prompt_embeds: Tensor) -> int:
        if prompt_embeds.device.type != "cpu" or wants_new_tensors(prompt_embeds):
            return self.config.text_len
        told = prompt_embeds.any(-1).any(0).nonzero()
        enough = 2 + int(told.max()) if told.numel() else 1   # the told tokens, and one row of zeros
        return min(self.config.text_len, math.ceil(enough / PROMPT_STEP) * PROMPT_STEP)

    def embed_text(self, prompt_embeds: Tensor, num_tokens: int | None = None) -> Tensor:
        """[B, L, text_dim] -> [B, num_tokens, D]; None: text_len of them. What is cut off must be zero rows."""
        if prompt_embeds.shape[1] > self.config.text_len:
            raise ShapeError(f"a prompt has at most {self.config.text_len} tokens, got {prompt_embeds.shape[1]}")
        told = prompt_embeds[:, :num_tokens]
        missing = (num_tokens or self.config.text_len) - told.shape[1]
        return self.text_embedding(F.pad(told.to(self.compute_dtype), (0, 0, 0, missing)))

    def embed_time(self, timesteps: Tensor) -> TimeContext:
        """timesteps [B] in 0..1000 -> their modulation, in float32."""
        count = timesteps.shape[0]
        both = torch.cat([timesteps, timesteps.new_zeros(1)]) if self.config.zero_timestep else timesteps
        head = self.time_embedding(sinusoid(both, self.config.freq_dim))
        modulation = self.time_projection(head).unflatten(1, (6, -1))
        rest = modulation[count:].expand(count, -1, -1) if self.config.zero_timestep else modulation
        modulation = torch.stack([modulation[:count], rest], dim=2)
        are_scales = torch.arange(6, device=modulation.device) % 3 == 1   # shift, scale, gate, twice; 1 + scale acts
        return TimeContext(head=head[:count], modulation=modulation + are_scales[:, None, None])

    # ---- once per clip --------------------------------------------------------------------------------------------

    def prepare_clip(
        self,
        *,
        prompt: PromptContext,
        num_latents: int,
        reference_latent: Tensor,
        audio_features: Tensor,
        speaker_features: Tensor | None = None,
        speaker_masks: Tensor | None = None,
        motion_latents: Tensor | None = None,
        pose_latents: Tensor | None = None,
        num_near: int = 2,
        audio_prefix_frames: int = AUDIO_PREFIX_FRAMES,
    ) -> ClipContext:
        """Everything that stays the same over a clip's steps.

        Args:
            prompt: of `prepare_prompt`.
            num_latents: T, the latent frames to denoise.
            reference_latent: [B, 16, 1, h, w].
            audio_features: [B, L, C, 4T]; with speakers, what is heard outside their masks: silence.
            speaker_features: [B, S, L, C, 4T], or None: everybody hears `audio_features`.
            speaker_masks: [B, S, T, h, w] in 0..1, where each speaker's sound is heard.
            motion_latents: [B, 16, Tm, h, w], or None for a clip without a past (no motion tokens).
            pose_latents: [B, 16, T, h, w], or None.
            num_near: how many of the near motion buckets are used, 0-2.
            audio_prefix_frames: see AUDIO_PREFIX_FRAMES.

        Raises: ShapeError when the sound does not cover the latent frames.
        """
        grid = LatentGrid(frames=num_latents, height=reference_latent.shape[-2], width=reference_latent.shape[-1])
        sounds = self._sounds(num_latents, audio_prefix_frames, audio_features, speaker_features, speaker_masks)
        condition, positions = self._condition_tokens(grid, reference_latent, motion_latents, num_near)
        layout = TokenLayout(
            num_video=grid.num_tokens,
            num_reference=grid.tokens_per_frame,
            num_motion=condition.shape[1] - grid.tokens_per_frame,
            tokens_per_frame=grid.tokens_per_frame,
        )
        return ClipContext(
            grid=grid,
            layout=layout,
            rope=rope_table(positions.to(condition.device), self.config.head_dim),
            video_offset=self._video_offset(pose_latents, condition.device),
            condition_tokens=condition,
            prompt=prompt,
            sounds=sounds,
        )

    def with_other(
        self,
        clip: ClipContext,
        *,
        prompt: PromptContext,
        audio_features: Tensor,
        speaker_features: Tensor | None = None,
        speaker_masks: Tensor | None = None,
        audio_prefix_frames: int = AUDIO_PREFIX_FRAMES,
    ) -> ClipContext:
        """The same clip to another prompt and sound: guidance's other branch, all else shared. As `prepare_clip`."""
        sounds = self._sounds(clip.grid.frames, audio_prefix_frames, audio_features, speaker_features, speaker_masks)
        return replace(clip, prompt=prompt, sounds=sounds)

    def _sounds(
        self,
        num_latents: int,
        prefix_frames: int,
        audio_features: Tensor,
        speaker_features: Tensor | None,
        speaker_masks: Tensor | None,
    ) -> tuple[SoundContext, ...]:
        """Every sound that some video token hears; one that all tokens hear alone needs no shares."""
        features: list[Tensor] = [audio_features]
        shares: list[Tensor | None] = [None]
        if speaker_features is not None and speaker_masks is not None:
            every = sound_shares(speaker_masks, self.config.patch_size).to(self.compute_dtype).unsqueeze(-1).unbind(1)
            all_features = (audio_features, *speaker_features.unbind(1))
            heard = [(f, share) for f, share in zip(all_features, every, strict=True) if bool(share.any())]
            features = [f for f, _ in heard]
            shares = [None] if len(heard) == 1 else [share for _, share in heard]
        tokens, style = self.casual_audio_encoder(torch.cat(features), prefix_frames)
        if tokens.shape[1] != num_latents:
            raise ShapeError(
                f"{num_latents} latent frames need {4 * num_latents} frames of audio features, "
                f"got {audio_features.shape[-1]}"
            )
        prepared = self.audio_injector.prepare(tokens, style, self.compute_dtype)
        by_sound = zip(*(layer.split(len(features)) for layer in prepared), strict=True)
        return tuple(SoundContext(layers=layers, share=s) for layers, s in zip(by_sound, shares, strict=True))

    def _condition_tokens(
        self, grid: LatentGrid, reference_latent: Tensor, motion_latents: Tensor | None, num_near: int
    ) -> tuple[Tensor, Tensor]:
        """Reference and motion tokens [B, N - V, D], and the positions [N, 3] of all tokens of the clip."""
        marks = self.trainable_cond_mask.weight
        reference = _tokens(self.patch_embedding(reference_latent.to(self.compute_dtype)))
        groups = [reference + marks[1].to(reference)]
        positions = [video_positions(grid), reference_positions(grid)]
        if motion_latents is not None:
            motion = self.frame_packer(motion_latents.to(self.compute_dtype), num_near)
            groups.append(motion + marks[2].to(motion))
            seen = num_near if self.config.motion_drop_mode == "drop" else 2
            positions.append(motion_positions(grid.height, grid.width, self.config.motion_buckets, seen))
        return torch.cat(groups, dim=1), torch.cat(positions)

    def without_pose(self, clips: Sequence[ClipContext]) -> list[ClipContext]:
        """The same clips, moving freely."""
        free = self._video_offset(None, clips[0].video_offset.device)
        return [replace(clip, video_offset=free) for clip in clips]

    def _video_offset(self, pose_latents: Tensor | None, device: torch.device) -> Tensor:
        """What is added to every video token: the pose (without one, the encoder's bias alone) and its mark."""
        if pose_latents is None:
            pose = self.cond_encoder.bias.to(device=device, dtype=self.compute_dtype)[None, None]
        else:
            pose = _tokens(self.cond_encoder(pose_latents.to(self.compute_dtype)))
        return pose + self.trainable_cond_mask.weight[0].to(pose)

    # ---- once per step --------------------------------------------------------------------------------------------

    def forward(self, latents: Tensor, timestep: Tensor | TimeContext, clip: ClipContext) -> Tensor:
        """Velocity (noise - clean) of noisy latents.

        Args:
            latents: [B or 1, 16, T, h, w].
            timestep: [B or 1] in 0..1000, or what `embed_time` made of it.
            clip: of `prepare_clip`, its batch equal to B or 1.

        Returns: [B, 16, T, 2*(h//2), 2*(w//2)] float32, B the largest of all batches.
        """
        time = timestep if isinstance(timestep, TimeContext) else self.embed_time(timestep)
        return self._blocks(self._join(latents, clip), time, clip)

    def branches(
        self, latents: Tensor, timestep: Tensor | TimeContext, clips: Sequence[ClipContext]
    ) -> tuple[Tensor, ...]:
        """`forward` for each of several clips in turn, bit for bit.

        Where they differ in prompt and sound alone (made by `with_other`), the first block's self-attention, which
        has met neither, is computed once; devices that share a sequence compute it for each.
        """
        time = timestep if isinstance(timestep, TimeContext) else self.embed_time(timestep)
        same = len(clips) > 1 and all(clips[0].looks_like(clip) for clip in clips[1:])
        if not same or len(self.blocks) < 2 or self.sharding is not None:
            return tuple(self(latents, time, clip) for clip in clips)
        x = self._block(0, self._join(latents, clips[0]), time, clips[0], "self")
        return tuple(self._blocks(x, time, clip, "rest") for clip in clips)

    def _blocks(self, x: Tensor, time: TimeContext, clip: ClipContext, first_part: BlockPart = "all") -> Tensor:
        """Tokens, or for "rest" tokens with the first block's self-attention added, to velocity."""
        own, last_part = clip, "video"
        if self.sharding is not None:
            x, own = self.sharding.split(x, clip)
            last_part = "all"   # devices that exchange tokens have equally many
        for i, part in enumerate([first_part, *["all"] * (len(self.blocks) - 2), last_part][-len(self.blocks) :]):
            x = self._block(i, x, time, own, part)
            x = self._inject_audio(i, x, own)
        return self._velocity(x[:, : own.layout.num_video], time, clip)

    def _block(self, i: int, x: Tensor, time: TimeContext, own: ClipContext, part: BlockPart) -> Tensor:
        return self.blocks[i](x, time.modulation, own.rope, own.prompt.keys_values[i], own.layout.num_video, part)

    def _join(self, latents: Tensor, clip: ClipContext) -> Tensor:
        """Video tokens, then reference and motion tokens: [B, N, D] float32."""
        video = _tokens(self.patch_embedding(latents.to(self.compute_dtype))) + clip.video_offset
        return torch.cat([video, clip.condition_tokens.expand(video.shape[0], -1, -1)], dim=1).float()

    def _inject_audio(self, layer: int, x: Tensor, clip: ClipContext) -> Tensor:
        """Tokens with what they hear added; x may be given up."""
        i = self.audio_injector.index_of.get(layer)
        if i is None:
            return x
        video, rest = x[:, : clip.layout.num_video], x[:, clip.layout.num_video :]
        heard = self.audio_injector.added(i, video, clip.sounds, clip.margins)
        if wants_new_tensors(x):
            return torch.cat([video + heard, rest], dim=1)
        video += heard
        return x

    def _velocity(self, video: Tensor, time: TimeContext, clip: ClipContext) -> Tensor:
        patches = self.head(video, time.head)
        if self.sharding is not None:
            patches = self.sharding.gather(patches, clip)
        grid, p = clip.grid, self.config.patch_size
        return unpatchify(patches, (grid.frames // p[0], grid.height // p[1], grid.width // p[2]), p)


def _tokens(x: Tensor) -> Tensor:   # [B, D, f, h, w] -> [B, f*h*w, D]
    return x.flatten(2).transpose(1, 2)


def sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """[B] -> [B, dim] float32, cosines first; computed in float64, where 1000 and 999.9 stay apart."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float64, device=timesteps.device) / half
    angles = timesteps.double()[:, None] * 10_000.0**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()

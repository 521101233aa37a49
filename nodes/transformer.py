"""Our transformer behind the host's MODEL: built from the host's layers, called with the host's conditioning.

Knows the host's calling convention; what is computed is `s2v_core`'s business.
B batch, T latent frames, h w latent cells, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..s2v_core.config import TransformerConfig
from ..s2v_core.errors import ConfigError, ShapeError
from ..s2v_core.models.dit import ClipContext, TimeContext, WanS2VTransformer
from ..s2v_core.ops.layers import Layers
from . import host

TIMESTEPS = "s2v_timesteps"   # in transformer_options: pairs (1000*sigma, what the model is told at that level)


class HostAttention:
    """The host's attention for our blocks; `options` are those of the forward that is going on."""

    def __init__(self) -> None:
        self.options: dict = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:   # [B, N, heads, head_dim]
        heads = q.shape[2]
        flat = (x.flatten(2) for x in (q, k, v))
        return host.optimized_attention(*flat, heads=heads, transformer_options=self.options).unflatten(2, (heads, -1))


class RunConstants:
    """What stays the same over the steps of the sampling run that is going on."""

    def __init__(self) -> None:
        self._contexts: dict[tuple, ClipContext] = {}

    def of(self, key: tuple | None, make: Callable[[], ClipContext]) -> ClipContext:
        """What `make` gives, made once per key; None is never kept."""
        if key is None:
            return make()
        if key not in self._contexts:
            self._contexts[key] = make()
        return self._contexts[key]

    def forget(self) -> None:
        self._contexts.clear()


class HostTransformer(WanS2VTransformer):
    """WanS2VTransformer as the host calls its diffusion models.

    Args:
        s2v_config: sizes; what the host has detected by itself (`detected`) is not looked at.
        operations: the host's layer classes, which cast, offload, scale and patch weights at use.
    """

    def __init__(
        self,
        *,
        s2v_config: TransformerConfig,
        operations: Layers,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        **detected: object,
    ) -> None:
        attention = HostAttention()
        super().__init__(s2v_config, layers=operations, attention=attention, device=device, dtype=dtype)
        self.dtype = dtype
        self.attention = attention
        self.constants = RunConstants()
        for module in self.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True   # some of our layers compute in float32 whatever the weights are in

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict | None = None, **extra: object
    ) -> Tensor:
        """Velocity of noisy latents.

        Args:
            x: [B, 16, T, h, w].
            timestep: [B] in 0..1000.
            context: [B, L, text_dim] prompt embeds.
            extra: the host's names for what directs a clip: reference_latent, audio_embed, reference_motion,
                control_video; our own speaker_features [B, L, C, S, F] and speaker_masks [B, S, T, h, w];
                `pose_until`, the timestep below which control_video is left out; and `weights_change`, set where
                weights differ between the steps of a run.
        """
        return host.run_wrapped(self._forward, self, transformer_options or {}, x, timestep, context, **extra)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        options: dict,
        *,
        reference_latent: Tensor | None = None,
        audio_embed: Tensor | None = None,
        reference_motion: Tensor | None = None,
        control_video: Tensor | None = None,
        speaker_features: Tensor | None = None,
        speaker_masks: Tensor | None = None,
        pose_until: float | None = None,
        weights_change: bool = False,
        **others: object,
    ) -> Tensor:
        self.compute_dtype = x.dtype
        self.attention.options = options
        frames = window(options)
        speakers = None if speaker_features is None or speaker_masks is None else (speaker_features, speaker_masks)

        def make() -> ClipContext:
            return self._clip(
                x, context, reference_latent, audio_embed, reference_motion, control_video, speakers, frames
            )

        key = None if weights_change else run_key(options, x, frames)
        clip = self.constants.of(key, make)
        if pose_until is not None and max(timestep.tolist()) < pose_until:
            posed = clip
            clip = self.constants.of(key and (*key, "free"), lambda: self.without_pose([posed])[0])
        time = self.embed_time(told_timestep(timestep, options))
        tokens = self._join(x, clip)
        for i in range(len(self.blocks)):
            host.stop_if_asked()
            self.attention.options = {
                **options, "total_blocks": len(self.blocks), "block_type": "double", "block_index": i,
            }  # fmt: skip
            tokens = self._block(i, tokens, time, clip, options)
            tokens = self._inject_audio(i, tokens, clip)
        return self._velocity(tokens[:, : clip.layout.num_video], time, clip)

    def _clip(
        self,
        x: Tensor,
        context: Tensor,
        reference: Tensor | None,
        audio: Tensor | None,
        motion: Tensor | None,
        pose: Tensor | None,
        speakers: tuple[Tensor, Tensor] | None,
        frames: list[int] | None,
    ) -> ClipContext:
        B, _, T, height, width = x.shape
        if reference is None:
            raise ConfigError("Wan S2V needs a reference picture: connect an image to the conditioning node")
        if height % 2 or width % 2:
            raise ShapeError(f"latents must have even sides, got {width}x{height}; use sizes in multiples of 16 pixels")
        if audio is None:
            config = self.config
            audio = x.new_zeros(B, config.num_audio_layers, config.audio_dim, 4 * T)
        else:
            audio = heard(audio, T, frames)
        if pose is not None and frames is not None and pose.shape[2] > T:
            pose = pose[:, :, frames]
        return self.prepare_clip(
            prompt=self.prepare_prompt(context),
            num_latents=T,
            reference_latent=reference[:, :, :1],
            audio_features=audio,
            motion_latents=motion,
            pose_latents=pose,
            **speaking(speakers, T, frames),
        )

    def _block(self, i: int, tokens: Tensor, time: TimeContext, clip: ClipContext, options: dict) -> Tensor:
        """Block `i`, or what the host has been told to put in its place."""

        def original(args: dict) -> dict:
            return {"img": self.blocks[i](args["img"], args["vec"], args["pe"], args["txt"], clip.layout.num_video)}

        args = {"img": tokens, "txt": clip.prompt.keys_values[i], "vec": time.modulation, "pe": clip.rope}
        args["transformer_options"] = options
        replace = options.get("patches_replace", {}).get("dit", {}).get(("double_block", i))
        out = original(args) if replace is None else replace(args, {"original_block": original})
        return out["img"]


def run_key(options: dict, x: Tensor, frames: list[int] | None) -> tuple | None:
    """What tells one clip's constants from another's within a sampling run; None: the host does not say."""
    uuids = options.get("uuids")
    return None if uuids is None else (tuple(uuids), None if frames is None else tuple(frames), tuple(x.shape), x.dtype)


def window(options: dict) -> list[int] | None:
    """The latent frames that are looked at, where the host samples in context windows."""
    found = options.get("context_window")
    return None if found is None else list(found.index_list)


def heard(features: Tensor, num_latents: int, frames: list[int] | None) -> Tensor:
    """[..., F] sound features -> [..., 4T], those of a context window's latent frames where there is one."""
    if frames is not None and features.shape[-1] > 4 * num_latents:
        features = features[..., [4 * t + i for t in frames for i in range(4)]]
    return features[..., : 4 * num_latents]


def speaking(
    speakers: tuple[Tensor, Tensor] | None, num_latents: int, frames: list[int] | None
) -> dict[str, Tensor]:
    """What `prepare_clip` takes of the speakers' features [B, L, C, S, F] and masks [B, S, T, h, w]; None: nothing."""
    if speakers is None:
        return {}
    features, masks = speakers
    if frames is not None and masks.shape[2] > num_latents:
        masks = masks[:, :, frames]
    return {"speaker_features": heard(features, num_latents, frames).movedim(3, 1), "speaker_masks": masks}


def told_timestep(timestep: Tensor, options: dict) -> Tensor:
    """What the model is told: 1000*sigma, or where our schedule made the sigmas, its own timesteps (whole numbers)."""
    pairs: Sequence[tuple[float, float]] = options.get(TIMESTEPS, ())
    if not pairs:
        return timestep
    nearest = [min(pairs, key=lambda pair: abs(pair[0] - t)) for t in timestep.tolist()]
    told = [pair[1] if abs(pair[0] - t) < 0.05 else t for pair, t in zip(nearest, timestep.tolist(), strict=True)]
    return torch.tensor(told, device=timestep.device, dtype=timestep.dtype)

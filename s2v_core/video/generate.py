"""The loop over clips: each is denoised and decoded, remembered, and handed on before the next begins.

Knows no files, devices or models: whoever calls lends a denoiser and a codec and takes the clips.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import TEMPORAL_STRIDE, VideoSize
from ..types import (
    ClipInputs,
    ClipPlan,
    ClipSettings,
    Conditioning,
    DecodedClip,
    Denoiser,
    MotionMemory,
    PoseControl,
    PoseFrames,
    SpeakerTrack,
    StepCallback,
    VideoCodec,
    VideoDecoder,
)
from .color import Grade
from .memory import after, blank_memory, memory_from_image

log = logging.getLogger(__name__)

DrawNoise = Callable[[ClipPlan, tuple[int, ...]], Tensor]
"""`noise(plan, shape)` -> the Gaussian draw of a clip, [1, 16, T, h, w]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """The finished clips of a run that goes on: enough to continue it as if it had never stopped."""

    num_clips: int
    memory: MotionMemory | None       # after the last of them; None: rebuilt from the latents
    latents: Callable[[int], Tensor]  # of finished clip i, as it was denoised


def draw_noise(plan: ClipPlan, shape: tuple[int, ...]) -> Tensor:
    """Float32 noise that depends on the clip's seed alone, not on the device or on how the run came here."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(plan.seed))


@torch.no_grad()
def generate_clips(
    plans: Sequence[ClipPlan],
    conditioning: Conditioning,
    denoiser: Denoiser,
    codec: VideoCodec,
    settings: ClipSettings,
    *,
    on_step: StepCallback,
    continuity: str = "exact",
    past: Past | None = None,
    decoder_reach: int | None = None,
    noise: DrawNoise = draw_noise,
    grade: Grade | None = None,
) -> Iterator[DecodedClip]:
    """Make the clips of a video in order, each seeing the frames before it.

    Args:
        plans: of the whole video; a run that continues skips those that `past` has finished.
        continuity: "exact" decodes every clip after its re-encoded motion frames, as the reference does;
            "carry" lets one decode run on through all clips, which is cheaper and slightly different.
        past: the finished clips of an earlier run. The clips still to do come out bit for bit as they would have.
        decoder_reach: how many latent frames back, the present one included, a decoded frame depends on. With
            "carry" a continued run decodes that many latent frames again; None: all of them.
        noise: draws the noise of a clip.
        grade: is given each clip's plan and decoded frames; what it returns is shown, and remembered for the next clip.

    Yields: the clips not finished before, as they are ready; frames and latents on the CPU.
    """
    assert all(plan.trim_end == 0 for plan in plans[:-1]), "only the last clip can be cut short"
    first = past.num_clips if past else 0
    if first == len(plans):
        return
    run = _Run(conditioning, codec, settings, continuity, grade)
    if past and first:
        run.catch_up(plans[:first], past, decoder_reach)
    for plan in plans[first:]:
        motion_latents = run.motion_latents(plan)
        inputs = clip_inputs(plan, conditioning, codec, motion_latents)
        shape = run.latents_shape(plan)
        latents = denoiser(inputs, noise(plan, shape), on_step).to("cpu", torch.float32)
        yield run.finish(plan, latents, motion_latents)


@torch.no_grad()
def decode_again(
    plans: Sequence[ClipPlan],
    conditioning: Conditioning,
    codec: VideoCodec,
    settings: ClipSettings,
    *,
    continuity: str,
    latents: Callable[[int], Tensor],
    grade: Grade | None = None,
) -> Iterator[DecodedClip]:
    """The first clips of a video from their `latents`, bit for bit as `generate_clips` gave them."""
    yield from _Run(conditioning, codec, settings, continuity, grade).again(plans, latents)


class _Run:
    """Where a video stands: what the next clip is shown, and under "carry" the decode that goes on."""

    def __init__(
        self,
        conditioning: Conditioning,
        codec: VideoCodec,
        settings: ClipSettings,
        continuity: str,
        grade: Grade | None,
    ) -> None:
        self.conditioning = conditioning
        self.codec = codec
        self.settings = settings
        self.grade = grade
        self.carries = continuity == "carry"
        self.memory: MotionMemory | None = None    # None: no clip yet
        self.decoder: VideoDecoder | None = None   # None: the next clip opens a stream

    def latents_shape(self, plan: ClipPlan) -> tuple[int, ...]:
        _, channels, _, height, width = self.conditioning.reference_latent.shape
        return (1, channels, (plan.stop_frame - plan.start_frame) // TEMPORAL_STRIDE, height, width)

    def motion_latents(self, plan: ClipPlan) -> Tensor | None:
        return self.codec.encode(self._memory_before(plan).frames) if plan.uses_motion else None

    def finish(self, plan: ClipPlan, latents: Tensor, motion_latents: Tensor | None) -> DecodedClip:
        """Decode a clip and remember it."""
        if self.decoder is None or not self.carries:
            reference = self.conditioning.direction(plan).reference_latent
            opening = reference if motion_latents is None else motion_latents
            self.decoder = open_stream(self.codec, opening)
        frames = kept_frames(self.decoder, plan, latents, self.conditioning.size)
        if not self.carries:
            self.decoder = None
        if self.grade is not None:
            frames = self.grade(plan, frames)
        self.memory = after(self._memory_before(plan), frames)
        return DecodedClip(plan=plan, frames=frames, latents=latents, memory=self.memory)

    def catch_up(self, plans: Sequence[ClipPlan], past: Past, decoder_reach: int | None) -> None:
        """Come to stand where the finished clips of an earlier run ended."""
        start = self._first_needed(plans, past, decoder_reach)
        if start < len(plans):
            log.info("decoding %d finished clips again, to continue from them", len(plans) - start)
        if start == 0:
            for _ in self.again(plans, past.latents):
                pass
        else:
            self.memory = past.memory
            for plan in plans[start:]:
                self.decoder = self.decoder or self.codec.decoder()
                self.decoder.prime(past.latents(plan.index))

    def again(self, plans: Sequence[ClipPlan], latents: Callable[[int], Tensor]) -> Iterator[DecodedClip]:
        """Clips that were denoised before, as they were decoded then."""
        for plan in plans:
            motion_latents = self.motion_latents(plan) if self.decoder is None else None
            yield self.finish(plan, latents(plan.index), motion_latents)

    def _first_needed(self, plans: Sequence[ClipPlan], past: Past, decoder_reach: int | None) -> int:
        """The first finished clip that must be decoded again; all of them when the memory is lost."""
        if past.memory is None or (self.carries and decoder_reach is None):
            return 0
        reach = -(-decoder_reach // self.settings.num_latents) if self.carries else 0
        return max(0, len(plans) - reach)

    def _memory_before(self, plan: ClipPlan) -> MotionMemory:
        if self.memory is not None:
            return self.memory
        num_frames = self.settings.motion_frames
        if plan.uses_motion:
            return memory_from_image(self.conditioning.reference_frames, num_frames, self.settings.still_frames)
        return blank_memory(self.conditioning.size, num_frames)


def open_stream(codec: VideoCodec, opening: Tensor) -> VideoDecoder:
    """A decode that stands behind `opening` [1, 16, T, h, w], whose own frames nobody wants."""
    decoder = codec.decoder()
    decoder.prime(opening)
    return decoder


def kept_frames(decoder: VideoDecoder, plan: ClipPlan, latents: Tensor, size: VideoSize) -> Tensor:
    """Decode a clip on an opened stream and collect what the plan keeps: [1, 3, F, H, W] float32 on the CPU.

    Latent frames past the last kept frame are not decoded: the decoder is causal.
    """
    stop = plan.trim_start + plan.num_kept
    kept = torch.empty(1, 3, plan.num_kept, size.height, size.width)
    at = -plan.trim_start
    for frames in decoder.decode(latents[:, :, : -(-stop // TEMPORAL_STRIDE)]):
        wanted = frames[:, :, max(0, -at) : max(0, plan.num_kept - at)]
        kept[:, :, max(0, at) : max(0, at) + wanted.shape[2]] = wanted
        at += frames.shape[2]
    assert at >= plan.num_kept, f"the decoder gave {at + plan.trim_start} frames of {stop}"
    return kept


def pose_window(pose: PoseFrames, plan: ClipPlan) -> Tensor:
    """[1, 3, 1+F, H, W] pose frames of a clip, its first one twice: the latent of the extra frame is dropped.

    Before the video begins (in a warm-up) the first frame is held.
    Source: the reference's `load_pose_cond`.
    """
    frames = pose.window(max(0, plan.start_frame), plan.stop_frame)
    held = 1 + max(0, -plan.start_frame)
    return torch.cat([frames[:, :, :1].expand(-1, -1, held, -1, -1), frames], dim=2)


def speaker_inputs(plan: ClipPlan, speakers: Sequence[SpeakerTrack]) -> dict[str, Tensor]:
    """What the speakers say in the clip of `plan` [1, S, 25, 1024, F], and where [1, S, T, h, w]; none: nothing."""
    if not speakers:
        return {}
    features = torch.stack([speaker.audio.window(plan.start_frame, plan.stop_frame) for speaker in speakers], dim=1)
    masks = torch.stack([speaker.mask for speaker in speakers])[None, :, None]
    num_latents = (plan.stop_frame - plan.start_frame) // TEMPORAL_STRIDE
    return {"speaker_features": features, "speaker_masks": masks.expand(-1, -1, num_latents, -1, -1)}


def pose_weights(control: PoseControl, plan: ClipPlan) -> Tensor:
    """[T]: how strongly each latent frame of a clip follows the pose; all or nothing of it, by most of its frames."""
    frames = torch.arange(plan.start_frame, plan.stop_frame)
    followed = (frames >= control.start_frame) | (control.start_frame <= 0)   # a warm-up lies before 0
    if control.stop_frame is not None:
        followed &= frames < control.stop_frame
    return control.strength * (followed.unflatten(0, (-1, TEMPORAL_STRIDE)).sum(1) > TEMPORAL_STRIDE // 2)


def pose_latents(conditioning: Conditioning, plan: ClipPlan, codec: VideoCodec) -> Tensor | None:
    """[1, 16, T, h, w] of a clip's pose, weighted; 0 is no pose, and None is none in the whole clip."""
    if conditioning.pose is None:
        return None
    weights = pose_weights(conditioning.pose_control, plan)
    if not weights.any():
        return None
    latents = codec.encode(pose_window(conditioning.pose, plan))[:, :, 1:]
    return latents * weights.to(latents.device).view(1, 1, -1, 1, 1)


def clip_inputs(
    plan: ClipPlan, conditioning: Conditioning, codec: VideoCodec, motion_latents: Tensor | None
) -> ClipInputs:
    """What directs the clip of `plan`, cut out of what directs the video."""
    direction = conditioning.direction(plan)
    source = conditioning.source
    return ClipInputs(
        index=plan.index,
        prompt_embeds=direction.prompt_embeds,
        negative_prompt_embeds=conditioning.negative_prompt_embeds,
        reference_latent=direction.reference_latent,
        guidance_scale=direction.guidance_scale,
        motion_latents=motion_latents,
        audio_features=conditioning.audio.window(plan.start_frame, plan.stop_frame),
        **speaker_inputs(plan, conditioning.speakers),
        pose_latents=pose_latents(conditioning, plan, codec),
        pose_steps=conditioning.pose_control.steps,
        source=None if source is None else source.clip(plan.start_frame, plan.stop_frame, codec),
    )

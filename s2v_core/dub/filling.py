"""The clips of a dub made and joined: by whoever lends the models, into a take, and from it into a file.

Knows the clip loop and the take; not where requests and models come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..conditioning.audio import SoundFeatures
from ..media.audio_io import Samples
from ..media.video_io import join_segments
from ..types import ClipPlan, Conditioning, Denoiser, VideoCodec
from ..video.fill import Watch, fill_take
from ..video.take import Take
from .plan import Work, segment_range
from .shot import FrameReader
from .stretch import LEAD_FRAMES, Stretch, StretchFootage, StretchSound
from .timeline import LOOP_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Lent:
    """What directs and draws the mouth."""

    prompt_embeds: Tensor            # [1, L, D]
    negative_prompt_embeds: Tensor   # [1, L', D]
    features: SoundFeatures          # of the sound, at 30 a second
    sound: Samples
    denoiser: Denoiser
    codec: VideoCodec
    decoder_reach: int               # as in `generate_clips`


def fill_with_dub(take: Take, work: Work, lent: Lent, watch: Watch) -> None:
    """Draw the clips that the take lacks.

    Raises: OutputError when the disk gives out; finished clips are kept, whatever ends this.
    """
    request = work.request
    # the loop looks ahead of what is written, so each has its own reader
    cutter, reader = (FrameReader(request.video, keep=_frames_kept(work)) for _ in range(2))
    for stretch in work.stretches:
        if take.num_finished > stretch.plans[-1].index:
            continue
        footage = StretchFootage(work.editor, stretch, cutter, request.strength)
        fill_take(
            take,
            stretch.plans,
            _condition(work, stretch, footage, lent),
            lent.denoiser,
            lent.codec,
            replace(request.clip_settings(), fps=work.shot.usual_rate),
            continuity=request.continuity,
            decoder_reach=lent.decoder_reach,
            watch=watch,
            pictures=partial(_pictures, work, reader, stretch),
            tags=work.shot.tags,
            one_by_one=True,   # masks may be frames of a video, which is read once, forward
        )


def join_dub(take: Take, work: Work, audio: Path, output: Path) -> None:
    """The take's clips and the new sound as an mp4. Raises: as `join_segments`."""
    timeline = work.timeline
    join_segments(
        take.segments,
        output,
        audio=audio,
        fps=work.shot.usual_rate,
        num_frames=timeline.num_frames,
        times=None if timeline.rate else timeline.times,
    )


def _condition(work: Work, stretch: Stretch, footage: StretchFootage, lent: Lent) -> Conditioning:
    reference = footage.picture(0)[None, :, None]
    return Conditioning(
        size=work.editor.size,
        prompt_embeds=lent.prompt_embeds,
        negative_prompt_embeds=lent.negative_prompt_embeds,
        reference_frames=reference,
        reference_latent=lent.codec.encode(reference),
        audio=StretchSound(lent.features, work.timeline, stretch, lent.sound.duration),
        source=footage,
    )


def _frames_kept(work: Work) -> int:
    """Pictures that are asked for again: those before a clip, and all that go back and forth."""
    looped = int(LOOP_SECONDS / work.shot.step) if work.request.length == "loop" else 0
    return LEAD_FRAMES * work.stretches[0].draw_every + looped + 2


def _pictures(
    work: Work, reader: FrameReader, stretch: Stretch, plan: ClipPlan, drawn: Tensor
) -> Iterator[np.ndarray]:
    """The pictures of the result from the end of the clip before to the end of this one.

    The last clip of a stretch takes all of it, and the last of all takes the rest of the video.

    Args:
        drawn: [1, 3, F, h, w] in [-1, 1], the frames that the clip keeps.
    """
    start, begin, stop = segment_range(work, stretch, plan)
    for frame in range(start, stop):
        picture = reader.picture(work.timeline.numbers[frame])
        if begin <= frame < stretch.stop:
            mouth = _drawn_at(drawn, frame - begin, stretch.draw_every)
            picture = work.editor.paste(picture, stretch, frame - stretch.first, mouth)
        yield picture


def _drawn_at(drawn: Tensor, frame: int, draw_every: int) -> Tensor:
    """[3, h, w] at a frame after the clip's first: between two that were drawn, a blend of them."""
    before, between = divmod(frame, draw_every)
    after = min(before + 1, drawn.shape[2] - 1)
    return torch.lerp(drawn[0, :, before], drawn[0, :, after], between / draw_every)

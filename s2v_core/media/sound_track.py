"""The sound of an mp4 that is being written: a file's own packets where they may stay, else its sound as AAC.

Knows packets and clocks; nothing of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer

from ..errors import MediaError
from .audio_io import resampled, sound_frames
from .containers import open_media, packet_time, reading

AAC_BIT_RATE = 192_000
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)   # Hz
PRIMING = Fraction(1, 10)      # seconds of sound before a cut that a decoder may need
CLOCK_JUMP = Fraction(1, 20)   # seconds back: more than any container rounds by
MOST_DRIFT = Fraction(1, 50)   # seconds between a file's clock and its samples: less than an eye sees of lips
# Sound that players accept inside an mp4, by its decoder: the lowest rate that the format allows, Hz.
COPIED = {"aac": 0, "mp3": 16_000, "mp3float": 16_000, "ac3": 0, "eac3": 0, "alac": 0}


def sound_packets(
    path: Path, container: OutputContainer, *, start: Fraction, end: Fraction
) -> Iterator[av.Packet]:
    """Packets of a file's sound for an mp4: what is heard `start` seconds into it at 0, nothing from `end` on."""
    with reading(path), open_media(path) as source:
        sound = source.streams.best("audio")
        if sound is None:
            raise MediaError(f"{path} has no sound track; give a sound file, or a video with sound")
        if sound.rate >= COPIED.get(sound.codec_context.name, math.inf) and _runs_on(path):
            return _copied(path, container.add_stream_from_template(sound), start, end)
        rate = sound.rate if sound.rate in AAC_RATES else AAC_RATES[-1]
        layout = "mono" if sound.channels == 1 else "stereo"
        stream = container.add_stream("aac", rate=rate, layout=layout, bit_rate=AAC_BIT_RATE)
        return _encoded(path, stream, start, end)


def _runs_on(path: Path) -> bool:
    """Whether a file's samples come without gaps on its clock: else its packets would not play when they are heard.

    A clock that starts again is no gap: joined recordings are copied one after the other.
    """
    began, heard = None, Fraction(0)   # seconds: the first sample on the file's clock; sound so far
    for frame in sound_frames(path):
        if frame.pts is not None:
            at = frame.pts * frame.time_base - heard
            if began is None or at - began < -CLOCK_JUMP:
                began = at
            if abs(at - began) > MOST_DRIFT:
                return False
        heard += Fraction(frame.samples, frame.sample_rate)
    return True


def _copied(path: Path, stream: av.AudioStream, start: Fraction, end: Fraction) -> Iterator[av.Packet]:
    """The file's own packets. Those that only prime the decoder keep their place before 0; players leave them out.

    Where the file's clock starts again (joined recordings), the sound runs on, as it does when it is decoded.
    """
    shift, due = -start - first_sample(path), None   # seconds: added to the file's clock; when the next is due
    with reading(path), open_media(path) as source:
        for packet in source.demux(source.streams.best("audio")):
            if not packet.size:
                continue
            shown = packet_time(packet, default=-shift) + shift
            if due is not None and shown - due < -CLOCK_JUMP:
                shift, shown = shift + due - shown, due
            if shown >= end:
                return
            due = shown + packet.duration * packet.time_base if packet.duration else None
            if start and shown < -PRIMING:
                continue
            packet.pts = packet.dts = round(shown / packet.time_base)
            packet.duration = min(packet.duration or 0, math.ceil((end - shown) / packet.time_base))
            packet.stream = stream
            yield packet


def first_sample(path: Path) -> Fraction:
    """When the first sample that a decoder gives sounds, on the file's clock: coders put silence before it."""
    for frame in sound_frames(path):
        return Fraction(0) if frame.pts is None else frame.pts * frame.time_base
    raise MediaError(f"{path} has a sound track without a single sample; export it again")


def _encoded(path: Path, stream: av.AudioStream, start: Fraction, end: Fraction) -> Iterator[av.Packet]:
    """The file's sound as AAC: mono stays mono, more channels become stereo."""
    skipped, left, done = round(start * stream.rate), math.ceil(end * stream.rate), 0   # samples
    for frame in resampled(path, sample_format="fltp", layout=stream.layout.name, rate=stream.rate):
        first = min(skipped, frame.samples)
        last = min(first + left, frame.samples)
        skipped -= first
        if first < last:
            frame = _part(frame, first, last)
            frame.pts, frame.time_base = done, Fraction(1, stream.rate)
            done, left = done + frame.samples, left - frame.samples
            yield from stream.encode(frame)
    yield from stream.encode(None)


def _part(frame: av.AudioFrame, first: int, last: int) -> av.AudioFrame:
    """The samples from `first` up to `last`."""
    if (first, last) == (0, frame.samples):
        return frame
    part = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(frame.to_ndarray()[:, first:last]), format="fltp", layout=frame.layout.name
    )
    part.sample_rate = frame.sample_rate
    return part

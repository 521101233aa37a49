"""The sound that drives a video: a stretch of a longer one, and moved against what is heard.

Knows sound that is read a stretch at a time; not files, features or pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..config import FEATURE_WINDOW, SAMPLE_RATE
from ..errors import ConfigError
from ..media.audio_io import sound_statistics
from ..types import DrivingSettings
from .audio import SoundSource
from .isolation import isolate_voice
from .sound_cleaning import clean


@dataclass(frozen=True, kw_only=True, slots=True)
class Driving:
    """What drives a video, and which stretch of the heard sound it belongs to."""

    sound: SoundSource   # on the video's clock
    start: Fraction      # seconds of the heard sound that are left out
    seconds: Fraction    # of it that are heard
    remarks: tuple[str, ...] = ()


def drive(heard: SoundSource, separate: SoundSource | None, settings: DrivingSettings) -> Driving:
    """The sound that drives: the heard one, or a separate one on the same clock, as long as what is heard.

    Raises: ConfigError where nothing is left; MediaError where the gate, or taking the music out, leaves nothing.
    """
    start, seconds = stretch(heard.duration, settings.start, settings.end)
    source, remarks = separate or heard, []
    if source.duration <= start:
        raise ConfigError(
            f"the driving audio lasts {float(source.duration):.2f} s and the start is {settings.start:g} s: nothing of "
            "it is left; it must be on the same clock as the audio that is heard"
        )
    if settings.end is not None and exact(settings.end) > heard.duration:
        remarks.append(f"the sound was asked for up to {settings.end:g} s and ends at {float(heard.duration):.2f} s")
    if source.duration < start + seconds:
        remarks.append(
            f"the driving audio lasts {float(source.duration - start):.2f} s of {float(seconds):.2f} s: "
            "the mouth rests from there on"
        )
    begin = start - exact(settings.offset / 1000)
    if begin or seconds != source.duration:
        source = Excerpt(source, start=begin, duration=seconds)
    if settings.isolate_voice:
        source = isolate_voice(source)
    sound = clean(source, loudness=settings.loudness, gate=settings.gate)
    return Driving(sound=sound, start=start, seconds=seconds, remarks=tuple(remarks))


def stretch(duration: Fraction, start: float, end: float | None) -> tuple[Fraction, Fraction]:
    """Where a stretch of a sound begins, and how long it is; both exact, in seconds.

    Args:
        duration: of the whole sound.
        start: seconds, 0 or more.
        end: seconds; None, or past the sound's end: to its end.

    Raises: ConfigError where less is left than a feature needs.
    """
    first, last = exact(start), duration if end is None else min(exact(end), duration)
    if last - first < Fraction(FEATURE_WINDOW, SAMPLE_RATE):
        to = "its end" if end is None else f"{end:g} s"
        raise ConfigError(
            f"from {start:g} s to {to} nothing is left of {float(duration):.2f} s of sound: "
            "the start must come before the end, and before the sound's end"
        )
    return first, last - first


def exact(seconds: float) -> Fraction:
    """To a microsecond: 0.1 is a tenth."""
    return Fraction(seconds).limit_denominator(1_000_000)


class Excerpt:
    """A stretch of a sound on a clock of its own, silent where the sound has nothing: a `SoundSource` without a copy.

    Args:
        start: seconds into the sound; may lie before its beginning.
        duration: seconds; may reach past its end.
    """

    def __init__(self, sound: SoundSource, *, start: Fraction, duration: Fraction) -> None:
        self._sound = sound
        self._shift = round(start * SAMPLE_RATE)
        self.duration = duration
        self.num_samples = math.ceil(duration * SAMPLE_RATE)
        self.mean, self.variance = sound_statistics(self)

    def read(self, start: int, stop: int) -> np.ndarray:
        """[stop-start] float32 samples."""
        samples = np.zeros(stop - start, np.float32)
        first, last = max(start + self._shift, 0), min(stop + self._shift, self._sound.num_samples)
        if first < last:
            at = first - self._shift - start
            samples[at : at + last - first] = self._sound.read(first, last)
        return samples

"""Voices with a place in the picture: as nodes collect them, mixed to what is heard, and as the core's cast.

Knows the host's AUDIO and MASK; who hears what is the core's business.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..s2v_core.cast import Cast, Person, Voice, moved_turns, region_mask
from ..s2v_core.conditioning.audio import SoundSource
from ..s2v_core.conditioning.driving import Excerpt, exact
from ..s2v_core.config import FEATURE_WINDOW, SAMPLE_RATE
from ..s2v_core.errors import ConfigError, MediaError
from ..s2v_core.geometry import VideoSize
from ..s2v_core.media.audio_io import Sound, sound_from_waveform
from ..s2v_core.media.mix import PlacedSound, mix_sounds
from ..s2v_core.speakers import Box, FaceNumber, Speaker, Turn, check_speakers, parse_turns, turns_text
from ..s2v_core.who_speaks import find_turns
from . import host
from .pictures import mask_pictures
from .waveform import Waveform, read_wav, waveform_of, write_wav

NAME = Path("voice")   # in memory, of no file
WHO_SPEAKS = "S2V Who Speaks"
SHORTEST = Fraction(FEATURE_WINDOW, SAMPLE_RATE)   # seconds that the sound encoder hears


@dataclass(frozen=True, kw_only=True, slots=True)
class Spoken:
    """What a node adds to S2V_SPEAKERS: a voice on the clock of the sound that is heard, or somebody's share of it."""

    speaker: Speaker                   # its box, its times, its name
    mask: Image.Image | None           # in place of the box: white where it is heard
    waveform: Waveform | None = None   # as it is heard; None: it is in the sound that all share
    sound: Sound | None = None         # as it drives
    turns: tuple[Turn, ...] = ()       # when the shared sound is this one's


def speak(
    audio: dict[str, object], mask: Tensor | None, box: Box, *, start: float, end: float, face: int = 0
) -> Spoken:
    """A host AUDIO from `start` seconds on, cut off at `end` (0: whole), where a host MASK says, or a face or a box.

    Args:
        box: in fractions of the picture.
        face: number of a face in it, from 1; 0: the box.

    Raises: ConfigError about the box or the times; MediaError about the mask.
    """
    speaker = Speaker(region=_place(box, face), audio=NAME, start=start, end=end or None)
    waveform = waveform_of(audio)
    if end:
        waveform = waveform.between(0, end - start)
    sound = sound_from_waveform(waveform.samples, waveform.sample_rate)
    return Spoken(speaker=speaker, mask=_drawn(mask), waveform=waveform, sound=sound)


def stand(name: str, mask: Tensor | None, box: Box, face: int = 0) -> Spoken:
    """Somebody with a place in the picture, whose words are in the sound that all share. Raises: as `speak`."""
    return Spoken(speaker=Speaker(region=_place(box, face), name=name.strip()), mask=_drawn(mask))


def _place(box: Box, face: int) -> Box | FaceNumber:
    return FaceNumber(number=face) if face else box


def found_turns(people: Sequence[Spoken], audio: dict[str, object], num_voices: int) -> str:
    """Who speaks when in a host AUDIO, as the text that `share_out` reads.

    Args:
        num_voices: that are heard in it; 0: one a person.

    Raises: ConfigError where the packages are missing that tell voices apart; MediaError where too little is spoken.
    """
    names = _names(people)
    waveform = waveform_of(audio)
    with sound_from_waveform(waveform.samples, waveform.sample_rate) as sound:
        return turns_text(find_turns(sound, names, num_voices or len(names)), names)


def _names(people: Sequence[Spoken]) -> list[str]:
    return [one.speaker.name or str(number) for number, one in enumerate(people, 1)]


def share_out(people: Sequence[Spoken], text: str) -> tuple[Spoken, ...]:
    """The people with what the text says about whose the sound is when. Raises: ConfigError."""
    check_speakers([one.speaker for one in people], NAME, Path(WHO_SPEAKS))
    names = _names(people)
    turns = parse_turns(text, names, where=f"the text of {WHO_SPEAKS}")
    return tuple(
        replace(one, turns=tuple(turn for turn in turns if turn.speaker == name))
        for one, name in zip(people, names, strict=True)
    )


def _drawn(mask: Tensor | None) -> Image.Image | None:
    """The first of a host's MASK."""
    if mask is None:
        return None
    picture = mask_pictures(mask)[0]
    if picture.getbbox() is None:
        raise MediaError("the mask input of a speaker is black all over: paint white where the speaker is")
    return picture


def check_driven(spoken: Sequence[Spoken], driving_audio: dict[str, object] | None, is_isolated: bool) -> None:
    """Whether it is clear what moves the speakers' mouths. Raises: ConfigError."""
    if all(one.waveform is None for one in spoken):
        return
    if is_isolated:
        raise ConfigError("speakers are driven by their own voices, without music: switch isolate_voice off")
    if driving_audio is not None:
        raise ConfigError(
            "speakers are driven by their own voices: disconnect driving_audio or speakers from S2V Audio Encode"
        )


def mixed(spoken: Sequence[Spoken]) -> Waveform:
    """What is heard of all voices together; one that begins at once is heard as it is.

    Raises: ConfigError when somebody has no voice of one's own.
    """
    if any(one.waveform is None for one in spoken):
        raise ConfigError(
            "a chain holds either S2V Speaker nodes, each with a voice, or S2V Person nodes, which share one sound"
        )
    first = spoken[0]
    if len(spoken) == 1 and not first.speaker.start:
        return first.waveform
    host.temp_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wan_s2v_", dir=host.temp_folder()) as folder:
        files = [Path(folder) / f"{number}.wav" for number in range(len(spoken))]
        for file, one in zip(files, spoken, strict=True):
            write_wav(file, one.waveform)
        placed = [
            PlacedSound(path=file, start=exact(one.speaker.start), duration=one.waveform.seconds)
            for file, one in zip(files, spoken, strict=True)
        ]
        mix_sounds(placed, Path(folder) / "mix.wav")
        return read_wav(Path(folder) / "mix.wav")


# ---- as the core has them --------------------------------------------------------------------------------------------


def cast_of(
    spoken: Sequence[Spoken],
    picture: Image.Image,
    size: VideoSize,
    *,
    later: Fraction,
    clean: Callable[[SoundSource], SoundSource],
) -> Cast:
    """Who speaks in a video of the picture: one person a region.

    Args:
        later: seconds from a voice's moment to the video's; below 0 where the heard sound is trimmed at its beginning.
        clean: done to every voice.

    Raises: ConfigError about a region that does not fit the picture.
    """
    regions: dict[Hashable, list[int]] = {}
    for index, one in enumerate(spoken):
        regions.setdefault(_region_key(one), []).append(index)
    people, names = [], _names(spoken)
    for members in regions.values():
        here = [spoken[index] for index in members]
        first = here[0]
        called = tuple(names[index] for index in members)
        name = f"speaker {', '.join(called)}"
        voices = (_voice(one, later, clean) for one in here if one.sound is not None)
        people.append(
            Person(
                name=name,
                called=called,
                mask=region_mask(first.mask or first.speaker.region, picture, size, name=f"of {name}"),
                voices=tuple(voice for voice in voices if voice is not None),
                turns=tuple(moved_turns([turn for one in here for turn in one.turns], float(later))),
            )
        )
    return Cast(people=tuple(people))


def _region_key(one: Spoken) -> Hashable:
    return one.speaker.region if one.mask is None else (one.mask.size, one.mask.tobytes())


def _voice(one: Spoken, later: Fraction, clean: Callable[[SoundSource], SoundSource]) -> Voice | None:
    """On the video's clock; what lies before its beginning is cut off, and None is left of a voice that ends there."""
    sound = clean(one.sound)
    voice = Voice(speaker=one.speaker, sound=sound, start=exact(one.speaker.start) + later, duration=sound.duration)
    if voice.start < 0:
        left = voice.duration + voice.start
        if left >= SHORTEST:
            sound = Excerpt(sound, start=-voice.start, duration=left)
        voice = replace(voice, sound=sound, start=Fraction(0), duration=left)
    return voice if voice.duration >= SHORTEST else None

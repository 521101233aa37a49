"""Who speaks when, found in one sound, and kept as a file that people correct.

Knows names and files; how voices are told from each other is `conditioning/diarize.py`'s business.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from .conditioning.audio import SoundSource
from .conditioning.diarize import VoiceEngine, diarize
from .conditioning.voice_engine import voice_engine
from .errors import OutputError
from .media.audio_io import check_sound_file, open_sound
from .speakers import Turn, turns_text
from .video.take import file_digest


def find_turns(
    sound: SoundSource, names: Sequence[str], num_voices: int, engine: VoiceEngine | None = None
) -> tuple[Turn, ...]:
    """Who speaks when in one sound, on the sound's clock.

    Args:
        names: of the speakers, in the order in which they are first heard; further voices are "voice 3" and so on.
        num_voices: that are heard.
        engine: None: the one that the optional packages bring.

    Raises: ConfigError where the packages are missing; MediaError where too little is spoken.
    """
    called = [*names, *(f"voice {number}" for number in range(len(names) + 1, num_voices + 1))]
    spoken = diarize(sound, num_voices, engine or voice_engine())
    return tuple(Turn(start=said.start, end=said.end, speaker=called[said.voice]) for said in spoken)


def turns_file(audio: Path, names: Sequence[str], num_voices: int, *, beside: Path) -> Path:
    """What `find_turns` finds, as a file beside another; one that is there, corrected or not, is used again.

    Args:
        beside: talk.mp4 gives talk.mp4.who-speaks-1f2e3d4c.csv, a name that belongs to the sound and the speakers.

    Raises: as `find_turns`; OutputError where it cannot be written; MediaError about the sound.
    """
    check_sound_file(audio)
    told = hashlib.sha256("\n".join([file_digest(audio), str(num_voices), *names]).encode()).hexdigest()[:8]
    path = beside.with_name(f"{beside.name}.who-speaks-{told}.csv")
    if not path.is_file():
        with open_sound(audio) as sound:
            _write(turns_text(find_turns(sound, names, num_voices), names), path)
    return path


def _write(text: str, path: Path) -> None:
    """The file appears complete or not at all."""
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder") from error

"""Who speaks, as people write it: somebody's place in the picture, voice and times, and files of who speaks when.

Knows words and numbers; not what is in a picture or a sound.

    start,end,speaker          a table: times in seconds, or as minutes:seconds
    0,4.5,anna
    0:04.5,0:09,ben

    1                          or subtitles (.srt), each beginning with who says it
    00:00:00,000 --> 00:00:04,500
    anna: Good morning!
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from .errors import ConfigError
from .times import parse_seconds

Box = tuple[float, float, float, float]

HOW = "audio=FILE,region=LEFT:TOP:RIGHT:BOTTOM"


@dataclass(frozen=True, kw_only=True, slots=True)
class FaceNumber:
    """A face that is found in the picture, counted from 1, from left to right."""

    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ConfigError(f"faces are counted from 1, from left to right; got face:{self.number}")

    def __str__(self) -> str:
        return f"face:{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaker:
    """Somebody in the picture, and what makes this mouth move and no other."""

    region: Box | Path | FaceNumber   # left, top, right, bottom in pixels of the reference picture, or as fractions of
                                # it where none is above 1; a picture that is white where the speaker is; or a face
    audio: Path | None = None   # a voice of its own; None: a file of who speaks when shares one sound out
    name: str = ""              # what that file calls it; empty: its number, from 1
    start: float = 0.0          # seconds into the video at which the voice begins
    end: float | None = None    # seconds into the video at which it is cut off; None: it ends with its file

    def __post_init__(self) -> None:
        if isinstance(self.region, tuple):
            left, top, right, bottom = self.region
            if not (0 <= left < right and 0 <= top < bottom):
                raise ConfigError(
                    f"a region goes from its left to its right and from its top to its bottom, none below 0; "
                    f"got {':'.join(f'{side:g}' for side in self.region)}"
                )
        if self.start < 0:
            raise ConfigError(f"a voice begins at 0 s or later, got {self.start:g}")
        if self.end is not None and self.end <= self.start:
            raise ConfigError(f"a voice ends after it begins; got {self.start:g} to {self.end:g} s")
        if self.audio is None and (self.start or self.end is not None):
            raise ConfigError("start and end are those of a voice of its own: give its audio too")

    def under(self, folder: Path) -> Speaker:
        """With files whose paths start at `folder`."""
        return replace(
            self,
            region=folder / self.region if isinstance(self.region, Path) else self.region,
            audio=None if self.audio is None else folder / self.audio,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A stretch of a sound that is somebody's."""

    start: float   # seconds into the sound's file
    end: float
    speaker: str


def parse_speaker(value: object) -> Speaker:
    """A speaker as written: `audio=anna.wav,region=0:0:0.5:1`, or the same as a mapping.

    Raises: ConfigError.
    """
    said = dict(value) if isinstance(value, Mapping) else _parts(value)
    names = [field.name for field in fields(Speaker)]
    strange = [name for name in said if name not in names]
    if strange:
        raise ConfigError(f"a speaker has {', '.join(names)}, not {strange[0]!r}")
    if said.get("region") in (None, ""):
        raise ConfigError(f"a speaker needs a region of the picture, such as {HOW}; got {value!r}")
    return Speaker(
        region=parse_region(said["region"]),
        audio=Path(str(said["audio"])).expanduser() if said.get("audio") else None,
        name=str(said.get("name") or ""),
        start=parse_seconds(said.get("start") or 0),
        end=None if said.get("end") is None else parse_seconds(said["end"]),
    )


def _parts(value: object) -> dict[str, str]:
    """key=value, separated by commas; a comma that no key follows belongs to the value."""
    if not isinstance(value, str):
        raise ConfigError(f"a speaker is written as {HOW}; got {value!r}")
    found: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", value):
        key, equals, text = part.partition("=")
        if not equals or key.strip() in found:
            raise ConfigError(f"a speaker is written as {HOW}, each once; got {value!r}")
        found[key.strip()] = text.strip()
    return found


def parse_region(value: object) -> Box | Path | FaceNumber:
    """LEFT:TOP:RIGHT:BOTTOM (or a list of the four), face:1, or the path of a mask."""
    face = re.fullmatch(r"face:(\d+)", value.strip()) if isinstance(value, str) else None
    if face is not None:
        return FaceNumber(number=int(face[1]))
    sides = value if isinstance(value, list | tuple) else str(value).split(":")
    try:
        numbers = tuple(float(side) for side in sides)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) == 4 and all(math.isfinite(number) for number in numbers):
        return numbers
    if isinstance(value, str) and len(numbers) == 0:
        return Path(value).expanduser()
    raise ConfigError(
        f"a region is LEFT:TOP:RIGHT:BOTTOM, face:1, or a picture that is white where it is; got {value!r}"
    )


def check_speakers(
    speakers: Collection[Speaker], audio: Path | None, who_speaks: Path | None, diarize: int | None = None
) -> None:
    """Whether it is clear what each speaker says, and what is heard.

    Raises: ConfigError.
    """
    if who_speaks is not None and diarize is not None:
        raise ConfigError(f"either {who_speaks} says who speaks when, or that is found (diarize): give one of them")
    shares = "diarize" if who_speaks is None and diarize is not None else who_speaks
    silent = [number for number, speaker in enumerate(speakers, 1) if speaker.audio is None]
    names = [speaker.name or str(number) for number, speaker in enumerate(speakers, 1)]
    if not speakers and audio is None:
        raise ConfigError("a video needs a sound: give audio, words to say, or speakers with audio of their own")
    if shares is None and silent:
        raise ConfigError(
            f"speaker {silent[0]} has no audio of its own, and no file says when the sound is whose (who-speaks); "
            "or let that be found (diarize)"
        )
    if shares is not None and len(silent) < max(1, len(speakers)):
        raise ConfigError(
            f"{shares} shares one sound out to speakers that have no audio of their own; "
            + ("give each of them with its region" if not speakers else f"leave out theirs, or {_option(who_speaks)}")
        )
    if shares is not None and audio is None:
        raise ConfigError(f"{shares} shares one sound out to speakers: give that sound as audio")
    twice = [name for name in names if names.count(name) > 1]
    if shares is not None and twice:
        raise ConfigError(f"two speakers are called {twice[0]}; give each a name of its own")
    if diarize is not None and diarize < len(speakers):
        raise ConfigError(
            f"diarize tells {diarize} voices from each other and there are {len(speakers)} speakers: "
            "give the number of voices that are heard, those without a place in the picture too"
        )


def _option(who_speaks: Path | None) -> str:
    return "diarize" if who_speaks is None else "who-speaks"


# ---- who speaks when -------------------------------------------------------------------------------------------------


def read_turns(path: Path, names: Collection[str]) -> tuple[Turn, ...]:
    """Who speaks when, of a table or of subtitles; in the order of the file, turns may overlap.

    Args:
        names: of the speakers there are.

    Raises: ConfigError that names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read who speaks from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    return parse_turns(text, names, where=str(path))


def parse_turns(text: str, names: Collection[str], *, where: str) -> tuple[Turn, ...]:
    """`read_turns` of text; `where` it was written, for what errors say."""
    turns = [
        _turn(f"line {number} of {where}", *said, names=names)
        for number, *said in (_subtitles(text, where) if "-->" in text else _rows(text, where))
    ]
    if not turns:
        raise ConfigError(f"{where} says of nobody when they speak; write lines such as 0,4.5,{next(iter(names))}")
    return tuple(turns)


def turns_text(turns: Iterable[Turn], names: Collection[str]) -> str:
    """Turns as a table that `read_turns` reads; those of voices that no speaker has are left as remarks.

    Args:
        names: of the speakers there are.
    """
    marks = ("" if turn.speaker in names else "# " for turn in turns)
    lines = (f"{turn.start:.2f},{turn.end:.2f},{_cell(turn.speaker)}" for turn in turns)
    rows = "".join(f"{mark}{line}\n" for mark, line in zip(marks, lines, strict=True))
    return "# who speaks when, as found: correct it, and make the video again\nstart,end,speaker\n" + rows


def _cell(name: str) -> str:
    """In quotes where a table would take it for more than one cell."""
    return '"' + name.replace('"', '""') + '"' if any(mark in name for mark in ',;\t"') else name


def _rows(text: str, where: str) -> list[tuple[int, str, str, str]]:
    """Line number, start, end and speaker of a table; a first line of headings and lines with # are left out."""
    found = []
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if not line.lstrip().startswith("#")]
    delimiter = next((mark for mark in ("\t", ";") if any(line.count(mark) > 1 for _, line in lines)), ",")
    for number, line in lines:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]
        if not any(cells) or (not found and cells[0].lower() == "start"):
            continue
        if len(cells) != 3:
            raise ConfigError(f"line {number} of {where} must be start,end,speaker, such as 0,4.5,anna; got {line!r}")
        found.append((number, *cells))
    return found


def _subtitles(text: str, where: str) -> list[tuple[int, str, str, str]]:
    """Line number, start, end and speaker: what stands before the first colon of the words, or all of them."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        start, arrow, end = line.partition("-->")
        if arrow:
            words = lines[number].strip() if number < len(lines) else ""
            voice = re.match(r"<v\s+([^>]+)>|\[([^\]]+)\]|([^:]+)", words)   # WebVTT's, a bracket, a name
            if voice is None:
                raise ConfigError(f"after line {number} of {where} must stand who speaks, such as anna: Good morning!")
            found.append((number, start.strip(), end.split()[0] if end.split() else "", voice[voice.lastindex].strip()))
    return found


def _turn(where: str, start: str, end: str, speaker: str, *, names: Collection[str]) -> Turn:
    try:
        turn = Turn(start=parse_seconds(start), end=parse_seconds(end), speaker=speaker)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if turn.end <= turn.start:
        raise ConfigError(f"{where}: a turn ends after it begins; got {start} to {end}")
    if speaker not in names:
        raise ConfigError(f"{where}: there is no speaker {speaker!r}; the speakers are {', '.join(names)}")
    return turn

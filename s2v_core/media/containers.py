"""Media files as FFmpeg opens them, and what is said when it cannot.

Knows PyAV's containers and packets; nothing of what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer

from ..errors import MediaError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault, in one sentence."""
    if path.is_dir():
        raise MediaError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise MediaError(f"there is no file {path}; check the path")
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}); copy it again, or convert it to mp4") from error


def open_media(path: Path) -> InputContainer:
    """Raises: FFmpegError, OSError; a title in another encoding is no reason to."""
    return av.open(file_name(path), metadata_errors="ignore")


def file_name(path: Path) -> str:
    """For FFmpeg, which takes what stands before a colon at the beginning of a name for a protocol."""
    return str(path.absolute())


def packet_time(packet: av.Packet, default: Fraction) -> Fraction:
    """Seconds on the file's clock."""
    stamp = packet.dts if packet.pts is None else packet.pts
    return default if stamp is None else stamp * packet.time_base

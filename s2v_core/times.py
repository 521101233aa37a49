"""Moments as people write and read them: 12.5, 1:02.5, 1:02:03.

Knows seconds; not what happens at them.
"""

from __future__ import annotations

import math
import re

from .errors import ConfigError

SUCH_AS = "such as 0:12.5 (minutes:seconds) or 12.5 (seconds)"


def parse_seconds(value: object) -> float:
    """12.5, 1:02.5 and 1:02:03,5 (a comma as in subtitles) as seconds, 0 or more.

    Raises: ConfigError.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if value < 0:
            raise ConfigError(f"a time must be 0 or more, got {value:g}")
        return float(value)
    text = str(value).strip().replace(",", ".")
    if not re.fullmatch(r"(\d+|(\d+:([0-5]?\d:)?)[0-5]?\d)(\.\d*)?", text):
        raise ConfigError(f"{str(value)!r} is no time, {SUCH_AS}")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def duration(seconds: float) -> str:
    """0:05, 12:30, 2:03:20."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def clock(seconds: float) -> str:
    """0:05.00, 12:30.25, 2:03:20.00"""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}" if hours else f"{minutes}"
    return f"{f'{hours}:' if hours else ''}{text}:{hundredths / 100:05.2f}"

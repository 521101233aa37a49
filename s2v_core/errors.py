"""The errors that people see: every one says what was wrong, which value, and what to do.

Knows nothing of where an error is shown; the command line and the nodes print `str(error)`.
"""

from __future__ import annotations


class S2VError(Exception):
    """Something a person can mend. Its text is one clear sentence or two, never a traceback."""


class ConfigError(S2VError):
    """A setting, option or job file asks for something impossible (a bad request)."""


class ShapeError(S2VError):
    """Sizes, frame counts or tensor shapes that cannot go together (a bad request)."""


class MediaError(S2VError):
    """A picture, sound or video that cannot be read or used (a bad request)."""


class CheckpointError(S2VError):
    """A weight file that is missing, broken, or of another model (a bad request)."""


class OutputError(S2VError):
    """Work that failed while running: disk full, folder read-only, device out of memory."""


class Interrupted(S2VError):
    """Somebody asked to stop. Finished clips stay in the take."""

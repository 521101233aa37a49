"""Failures of training that no room has put into words: memory that runs out, a disk that refuses, Ctrl-C.

Knows exceptions; not what was being done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import Interrupted, OutputError, S2VError


@contextmanager
def in_words() -> Iterator[None]:
    """Raises: Interrupted or OutputError in place of what the machine or a key has raised; the rest as it is."""
    try:
        yield
    except S2VError:
        raise
    except KeyboardInterrupt as error:
        raise Interrupted("stopped; what is written stays, and the same command goes on there") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        raise OutputError(
            "out of memory: try a smaller batch_size with more to accumulate, checkpoint_blocks: true, moments: 8bit "
            "or offload: true, or fewer max_tokens; checkpoints are kept, and the same command goes on there"
        ) from error
    except OSError as error:
        if not error.strerror:
            raise
        raise OutputError(f"{error.strerror}: {error.filename or 'no file named'}") from error


def _is_memory(error: MemoryError | RuntimeError) -> bool:
    """Of a device, or of the CPU, where torch has no exception of its own."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

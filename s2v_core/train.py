"""`python -m s2v_core.train` and `accelerate launch -m s2v_core.train`: training without the rest of the command.

Knows exit codes; the work is `training/`'s.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .errors import ConfigError, Interrupted, OutputError, S2VError
from .parallel.ranks import launched
from .training.arguments import add_train_arguments
from .training.command import train

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 done, 1 the work failed, 2 the request cannot be met as asked, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m s2v_core.train", description="Train or fine-tune Wan-S2V.")
    add_train_arguments(parser)
    rank, _, num_processes = launched()
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    level = logging.DEBUG if arguments.debug else logging.INFO if rank == 0 else logging.WARNING
    logging.getLogger("s2v_core").setLevel(level)
    try:
        return train(arguments)
    except S2VError as error:
        if arguments.debug:
            raise
        if rank == 0 or not is_agreed(error):
            log.error("%s", error)
        return 130 if isinstance(error, Interrupted) else 1 if isinstance(error, OutputError) else 2
    except Exception as error:
        if arguments.debug:
            raise
        first_line = next(iter(str(error).splitlines()), "")
        who = f"process {rank + 1} of {num_processes} stopped: " if num_processes > 1 else ""
        log.error("%s%s: %s; run again with --debug for more", who, type(error).__name__, first_line)
        return 1


def is_agreed(error: S2VError) -> bool:
    """Whether every process raises it: settings are the same for all, and so is the work of a step and its end."""
    return isinstance(error, ConfigError | OutputError | Interrupted)


if __name__ == "__main__":
    sys.exit(main())

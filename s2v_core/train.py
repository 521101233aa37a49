"""`python -m s2v_core.train` and `accelerate launch -m s2v_core.train`: training without the rest of the command.

Knows exit codes; the work is `training/`'s.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from .errors import Interrupted, OutputError, S2VError
from .training.arguments import add_train_arguments
from .training.command import train


def main(argv: Sequence[str] | None = None) -> int:
    """Returns: 0 done, 1 the work failed, 2 the request cannot be met as asked, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m s2v_core.train", description="Train or fine-tune Wan-S2V.")
    add_train_arguments(parser)
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("s2v_core").setLevel(logging.DEBUG if arguments.debug else logging.INFO)
    try:
        return train(arguments)
    except S2VError as error:
        if arguments.debug:
            raise
        logging.getLogger(__name__).error("%s", error)
        return 130 if isinstance(error, Interrupted) else 1 if isinstance(error, OutputError) else 2
    except Exception as error:
        if arguments.debug:
            raise
        first_line = next(iter(str(error).splitlines()), "")
        logging.getLogger(__name__).error("%s: %s; run again with --debug for more", type(error).__name__, first_line)
        return 1


if __name__ == "__main__":
    sys.exit(main())

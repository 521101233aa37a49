"""`python -m s2v_core` is the command `wan-s2v`.

Knows nothing else.
"""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Before any test: torch works with one thread, whose tensors are tiny here, and does not spin while it waits."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

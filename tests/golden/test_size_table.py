"""The recorded table of video sizes, row by row, where the reference finds a size that can be made."""

from __future__ import annotations

import json

import pytest

from s2v_core.geometry import fit_size

from .case import ROOT

ROWS = json.loads((ROOT / "g_pipeline" / "size_table.json").read_text(encoding="utf-8"))
KEPT = [row for row in ROWS if row["error"] is None and min(row["size"]) > 0]


@pytest.mark.parametrize("row", KEPT, ids=lambda row: f"{row['width']}x{row['height']}-{row['max_area']}")
def test_a_picture_gets_the_size_that_the_reference_gives_it(row):
    size = fit_size(row["width"], row["height"], row["max_area"])
    assert [size.height, size.width] == row["size"]

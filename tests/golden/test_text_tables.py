"""The recorded table of text cleaning, row by row."""

from __future__ import annotations

import json

import pytest

from s2v_core.conditioning.text import clean_prompt

from .case import ROOT

ROWS = json.loads((ROOT / "e_t5" / "text_clean.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["input"]))
def test_a_prompt_is_cleaned_as_the_reference_cleans_it(row):
    assert clean_prompt(row["input"]) == row["cleaned"]

"""The reference's tables of features and frames: we compute the same, but never no feature at all."""

from __future__ import annotations

import json
import re

import pytest

from s2v_core.conditioning.audio import feature_indices, num_features

from ..golden.case import ROOT


@pytest.fixture(scope="module")
def tables() -> dict:
    return json.loads((ROOT / "c_audio/tables.json").read_text(encoding="utf-8"))


def test_as_many_features_as_the_reference_and_never_none(tables: dict) -> None:
    assert tables["interp_len"]
    for num_states, num in tables["interp_len"].items():
        assert num_features(int(num_states)) == max(1, num), num_states


def test_frames_hear_the_features_that_they_hear_in_the_reference(tables: dict) -> None:
    assert tables["index_map"]
    for name, indices in tables["index_map"].items():
        fps = int(re.match(r"fps(\d+)", name)[1])
        assert feature_indices(len(indices), fps).tolist() == indices, name


def test_features_run_out_at_the_same_frame(tables: dict) -> None:
    assert tables["num_repeat"]
    for row in tables["num_repeat"]:
        past = (feature_indices(row["frames"], row["fps"]) >= row["len30"]).nonzero().flatten().tolist()
        assert (past[0] if past else None) == row["first_zero_frame"], row

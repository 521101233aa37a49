"""What tests of the transformer and of those around it share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from s2v_core.models.dit import WanS2VTransformer
from s2v_core.video import fill


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> WanS2VTransformer:
    """Of the test file's own CONFIG; weights so large that everything it is told is seen in its output."""
    torch.manual_seed(0)
    model = WanS2VTransformer(request.module.CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Every picture of a run as it goes to the encoder, [H, W, 3] uint8."""
    seen: list[np.ndarray] = []
    write = fill.write_segment

    def watched(path, pictures, **settings):
        taken = list(pictures)
        seen.extend(taken)
        write(path, taken, **settings)

    monkeypatch.setattr(fill, "write_segment", watched)
    return seen

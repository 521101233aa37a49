"""What tests of the transformer and of those around it share."""

from __future__ import annotations

import pytest
import torch

from s2v_core.models.dit import WanS2VTransformer


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> WanS2VTransformer:
    """Of the test file's own CONFIG; weights so large that everything it is told is seen in its output."""
    torch.manual_seed(0)
    model = WanS2VTransformer(request.module.CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model

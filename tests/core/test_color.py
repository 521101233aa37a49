"""Frames are given the colours of the reference picture, and the next clip sees them so."""

from __future__ import annotations

import pytest
import torch

from s2v_core.video.color import METHODS, ColourMatch, from_lab, to_lab


def scene(seed: int = 0) -> torch.Tensor:
    """[1, 3, 4, 24, 32]: frames of one picture, a bit of it moving."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(1, 3, 1, 6, 8, generator=generator) * 1.2 - 0.6
    picture = torch.nn.functional.interpolate(colours, (1, 24, 32))
    frames = picture.repeat(1, 1, 4, 1, 1)
    frames[:, :, :, 4:8, 4:8] += torch.linspace(-0.1, 0.1, 4).view(1, 1, 4, 1, 1)
    return frames


def cast(frames: torch.Tensor) -> torch.Tensor:
    """Redder, duller, with a little of one colour in another: what drift looks like."""
    mix = torch.tensor([[0.9, 0.05, 0.0], [0.0, 0.8, 0.05], [0.1, 0.0, 0.7]])
    return torch.einsum("dc,bcfhw->bdfhw", mix, frames) + torch.tensor([0.15, -0.05, -0.1]).view(1, 3, 1, 1, 1)


def lab_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    labs = [to_lab((x.transpose(0, 1).flatten(1) + 1) / 2) for x in (one, other)]
    return float((labs[0] - labs[1]).norm(dim=0).mean())


@pytest.mark.parametrize(
    "rgb, lab",
    [
        ((1, 1, 1), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.74, -86.18, 83.18)), ((0, 0, 1), (32.30, 79.19, -107.86)), ((0.5, 0.5, 0.5), (53.39, 0, 0)),
    ],
)  # fmt: skip
def test_lab_is_cielab(rgb, lab):
    found = to_lab(torch.tensor(rgb, dtype=torch.float32)[:, None])
    assert found[:, 0].tolist() == pytest.approx(lab, abs=0.05)
    assert from_lab(found)[:, 0].tolist() == pytest.approx(rgb, abs=1e-3)


@pytest.mark.parametrize("method, share", [("lab", 0.5), ("mkl", 0.25)])
def test_of_a_cast_over_the_scene_only_a_share_is_left(method, share):
    clean = scene()
    before = lab_distance(cast(clean), clean)
    after = lab_distance(ColourMatch(clean[:, :, :1], method)(cast(clean)), clean)
    assert before > 10 and after < share * before


@pytest.mark.parametrize("method", METHODS)
def test_colours_that_fit_are_left_alone(method):
    frames = scene()[:, :, :1].repeat(1, 1, 3, 1, 1)
    assert (ColourMatch(frames[:, :, :1], method)(frames.clone()) - frames).abs().max() < 2e-3


@pytest.mark.parametrize("method", METHODS)
def test_all_frames_of_a_clip_get_one_map(method):
    frames = cast(scene())
    still = frames.clone()[:, :, :, 12:]   # nothing moves there
    matched = ColourMatch(scene()[:, :, :1], method)(frames)[:, :, :, 12:]
    assert torch.equal(matched[:, :, 0], matched[:, :, -1]) and not torch.equal(matched, still)


@pytest.mark.parametrize("method", METHODS)
def test_a_clip_of_one_colour_stays_finite_and_gets_the_mean(method):
    grey = torch.full((1, 3, 2, 8, 8), -0.2)
    matched = ColourMatch(scene()[:, :, :1], method)(grey)
    assert matched.isfinite().all() and matched.std(dim=(3, 4)).max() < 1e-5


def test_mkl_gives_the_reference_covariance():
    reference = scene()[:, :, :1]
    matched = ColourMatch(reference, "mkl")(cast(scene(1)))
    ours, theirs = (torch.cov(x.transpose(0, 1).flatten(1)) for x in (matched, reference))
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0.05)

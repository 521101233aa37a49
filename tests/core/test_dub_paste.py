"""The region that is made anew: its crop, its mask, and the way back into the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.dub.crop import crop_boxes, inner_rect, latent_mask, put_back, take_crop
from s2v_core.dub.masks import LowerFace, box_mean, feathered
from s2v_core.dub.paste import paste, seam_difference
from s2v_core.geometry import VideoSize

SIZE = VideoSize(width=64, height=64)


def smooth_picture(height=120, width=160, seed=0):
    noise = np.random.default_rng(seed).integers(40, 215, (height // 20, width // 20, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def disc(height=90, width=90, radius=25):
    y, x = np.mgrid[:height, :width]
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < radius**2


# ---- crops -----------------------------------------------------------------------------------------------------------


def test_crops_have_the_models_shape_hold_the_face_and_stay_in_the_picture():
    faces = [(5.0 + 2 * k, 10.0, 55.0 + 2 * k, 70.0) for k in range(40)]
    for size in (SIZE, VideoSize(width=96, height=64)):
        crops = crop_boxes(faces, 160, 120, size, 1 / 25)
        wide, tall = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
        assert np.allclose(wide / tall, size.width / size.height)
        assert crops.min() >= 0 and crops[:, 2].max() <= 160 + 1e-9 and crops[:, 3].max() <= 120 + 1e-9
        boxes = np.asarray(faces)
        assert (crops[:, :2] <= boxes[:, :2] + 1e-6).all() and (crops[:, 2:] >= boxes[:, 2:] - 1e-6).all()


def test_a_face_that_leaps_stays_in_its_crop():
    faces = [(10.0 if k < 20 else 100.0, 30.0, 30.0 if k < 20 else 120.0, 55.0) for k in range(40)]
    crops = crop_boxes(faces, 160, 120, SIZE, 1 / 25)
    boxes = np.asarray(faces)
    assert (crops[:, 0] <= boxes[:, 0] + 1e-6).all() and (crops[:, 2] >= boxes[:, 2] - 1e-6).all()


def test_a_trembling_box_gives_a_steady_crop():
    rng = np.random.default_rng(0)
    faces = [tuple(np.asarray([60, 40, 90, 75]) + rng.normal(0, 1.5, 4)) for _ in range(60)]
    assert np.abs(np.diff(crop_boxes(faces, 160, 120, SIZE, 1 / 25), axis=0)).max() < 0.4


def test_a_crop_of_the_models_own_size_comes_back_bit_for_bit():
    picture = smooth_picture()
    crop = (20.0, 30.0, 84.0, 94.0)
    back = put_back(take_crop(picture, crop, SIZE), crop, inner_rect(crop))
    assert np.array_equal(back.round().astype(np.uint8), picture[30:94, 20:84])


@pytest.mark.parametrize("crop", [(20.3, 10.8, 60.9, 51.4), (5.5, 2.25, 120.5, 117.25), (0.0, 0.0, 120.0, 120.0)])
def test_scaling_there_and_back_stays_in_place(crop):
    picture = smooth_picture()
    rect = inner_rect(crop)
    back = put_back(take_crop(picture, crop, SIZE), crop, rect)
    own = picture[rect[1] : rect[3], rect[0] : rect[2]]
    assert back.shape == own.shape and np.abs(back - own).mean() < 1.5
    shifted = np.abs(np.roll(back, 1, axis=1) - own).mean()
    assert np.abs(back - own).mean() < 0.6 * shifted   # a pixel to the side would show


# ---- masks -----------------------------------------------------------------------------------------------------------


def test_the_lower_face_holds_mouth_and_chin_and_no_eyes():
    hard = LowerFace().hard(0, 0.0, (20, 10, 80, 90), (0, 0, 100, 100))
    assert hard[10 + 60, 50] and hard[10 + 72, 50] and not hard[10 + 30, 50] and not hard[95, 50] and not hard[70, 20]


def test_a_feathered_mask_never_leaves_its_own_outline_nor_its_padding():
    hard = disc()
    for padding, reach in ((0.0, 0), (0.1, 9), (-0.1, -9)):
        alpha = feathered(hard, 90, padding)
        grown = disc(radius=25 + reach * 1.5) if reach > 0 else disc(radius=25 + reach)
        assert alpha.min() == 0 and alpha.max() == 1 and not (alpha > 0)[~grown].any()
        assert len(np.unique(alpha.round(2))) > 10   # soft


def test_padding_grows_by_heights_of_the_face():
    width = [int((feathered(disc(), 90, padding)[45] > 0).sum()) for padding in (0.0, 0.1, 0.2)]
    assert width[1] - width[0] == 18 and width[2] - width[1] == 18


def test_a_mask_too_thin_for_a_soft_edge_is_still_one():
    thin = np.zeros((40, 40), bool)
    thin[20, 10:30] = True
    assert np.array_equal(feathered(thin, 400, 0.0) > 0, thin)
    assert not feathered(np.zeros((10, 10), bool), 50, 0.0).any()


def test_box_means_are_means():
    values = np.random.default_rng(0).random((9, 11))
    expected = np.pad(values, 2)[3:8, 4:9].mean()
    assert box_mean(values, 2)[3, 4] == pytest.approx(expected)


def test_every_masked_pixel_lies_in_cells_that_are_made_anew():
    crop = (10.4, 5.7, 90.4, 85.7)
    left, top, right, bottom = inner_rect(crop)
    alpha = np.zeros((bottom - top, right - left), np.float32)
    alpha[40:60, 30:50] = 0.5
    cells = latent_mask([alpha, np.roll(alpha, 8, axis=1)], [crop, crop], SIZE)
    assert cells.shape == (8, 8) and set(cells.unique().tolist()) == {0.0, 1.0}
    grown = torch.nn.functional.interpolate(cells[None, None], size=(80, 80))[0, 0].numpy()
    for mask in (alpha, np.roll(alpha, 8, axis=1)):
        rows, columns = np.nonzero(mask)
        assert grown[rows, columns].all()
    assert cells[0].sum() == 0 and cells[:, 0].sum() == 0   # and not everything


# ---- pasting ---------------------------------------------------------------------------------------------------------


def test_outside_the_mask_every_bit_is_the_pictures_own():
    picture = smooth_picture()
    rect = (20, 15, 110, 105)
    alpha = feathered(disc(), 90, 0.0)
    drawn = np.random.default_rng(1).uniform(0, 255, (90, 90, 3)).astype(np.float32)
    result = paste(picture, drawn, alpha, rect)
    whole = np.zeros(picture.shape[:2], bool)
    whole[15:105, 20:110] = alpha > 0
    assert np.array_equal(result[~whole], picture[~whole])
    assert (result[whole] != picture[whole]).mean() > 0.9
    assert paste(picture, drawn, np.zeros_like(alpha), rect) is picture


def test_a_tint_that_runs_across_the_face_is_matched_at_the_seam():
    own = smooth_picture(100, 100)[:90, :90].astype(np.float32)
    y, x = np.mgrid[:90, :90]
    tint = np.stack([8 + 0.15 * x, -6 + 0.1 * y, 0.05 * (x - y)], axis=-1).astype(np.float32)
    alpha = feathered(disc(), 90, 0.0)
    error = (seam_difference(own, own - tint, alpha) - tint)[alpha > 0]
    assert np.abs(error).max() < 3 and np.abs(error).mean() < 1 < np.abs(tint[alpha > 0]).mean()


def test_what_is_pasted_has_lost_its_tint():
    picture, rect = smooth_picture(), (20, 15, 110, 105)
    drawn = picture[15:105, 20:110].astype(np.float32) + np.array([20, -15, 10], np.float32)
    result = paste(picture, drawn, feathered(disc(), 90, 0.0), rect)
    assert np.abs(result.astype(int) - picture).max() <= 2


def test_what_the_mouth_does_is_not_taken_for_a_tint():
    own = np.full((90, 90, 3), 150, np.float32)
    drawn = own.copy()
    drawn[40:50, 35:55] = 20   # a mouth opens, well inside the mask
    assert np.abs(seam_difference(own, drawn, feathered(disc(), 90, 0.0))).max() < 1e-3


def test_a_mask_over_the_whole_crop_has_no_seam_to_match():
    alpha = np.ones((20, 20), np.float32)
    assert not seam_difference(np.ones((20, 20, 3), np.float32), np.zeros((20, 20, 3), np.float32), alpha).any()

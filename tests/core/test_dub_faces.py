"""Faces said by users, found in a photograph, and followed through a shot."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2v_core.dub import plan
from s2v_core.dub.faces import Face, FoundFaces, GivenBoxes, MaskedFaces, MaskFrames, StillMask, read_boxes, read_mask
from s2v_core.dub.plan import find_work
from s2v_core.dub.request import DubRequest
from s2v_core.dub.run import who_says_where
from s2v_core.dub.tracking import IN_PROFILE, NO_FACE, TOO_SHORT, follow, overlap, smooth
from s2v_core.errors import ConfigError, MediaError
from s2v_core.geometry import VideoSize

from .dub_footage import write_video

PHOTO = Path(__file__).parent / "data" / "face.jpg"
STEP = 1 / 25


def face(x: float, y: float = 20.0, side: float = 20.0, *, in_profile: bool = False) -> Face:
    return Face(box=(x, y, x + side, y + side), in_profile=in_profile)


def track(faces, cuts=(), **settings):
    return follow(faces, cuts, step=STEP, **{"is_given": False, **settings})


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_the_detector_finds_the_face_of_a_photograph_wherever_it_is():
    photo = Image.open(PHOTO).convert("RGB")
    found = FoundFaces()
    for width, height, left, top, scale in ((160, 160, 0, 0, 1), (640, 360, 230, 90, 1), (1920, 1080, 900, 300, 4)):
        picture = Image.new("RGB", (width, height), (90, 110, 130))
        picture.paste(photo.resize((160 * scale, 160 * scale)), (left, top))
        seen = [f for f in found.seen(0, 0.0, np.asarray(picture)) if not f.in_profile]
        mouth = (left + 80 * scale, top + 102 * scale)   # where it is in the photograph
        assert len(seen) == 1
        box = seen[0].box
        assert abs((box[0] + box[2]) / 2 - mouth[0]) < 8 * scale
        assert 0.6 < (mouth[1] - box[1]) / (box[3] - box[1]) < 0.85


def test_a_covered_face_is_not_found():
    picture = np.asarray(Image.open(PHOTO).convert("RGB")).copy()
    picture[60:120, 40:120] = (120, 90, 70)
    assert FoundFaces().seen(0, 0.0, picture) == []


def test_a_face_that_moves_is_followed_and_one_that_is_covered_stays_as_it_is(tmp_path):
    photo = Image.open(PHOTO).convert("RGB")

    def picture(k):
        scene = Image.new("RGB", (320, 192), (90, 110, 130))
        scene.paste(photo, (40 + 3 * k, 16))
        if 14 <= k < 24:
            scene.paste((120, 90, 70), (40 + 3 * k + 30, 16 + 50, 40 + 3 * k + 130, 16 + 130))
        return np.asarray(scene)

    write_video(tmp_path / "shot.mp4", (picture(k) for k in range(36)))
    request = DubRequest(video=tmp_path / "shot.mp4", audio=tmp_path / "new.wav", output=tmp_path / "out.mp4")
    work = find_work(request, *who_says_where(request, None), VideoSize(width=64, height=64), 1.44)
    assert [str(untouched) for untouched in work.untouched] == ["14-23 (no face)"]
    assert [(stretch.first, stretch.stop) for stretch in work.stretches] == [(0, 14), (24, 36)]
    for stretch in work.stretches:
        middles = [(left + right) / 2 for left, _, right, _ in stretch.faces]
        truth = [40 + 3 * k + 80 for k in range(stretch.first, stretch.stop)]
        assert np.abs(np.subtract(middles, truth)).max() < 4


def test_it_is_told_now_and_then_how_much_was_looked_through(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(plan, "TOLD_EVERY", -1.0)
    caplog.set_level("INFO", "s2v_core")
    write_video(tmp_path / "shot.mp4", [np.full((64, 64, 3), k, np.uint8) for k in range(3)], 1)
    request = DubRequest(
        video=tmp_path / "shot.mp4", audio=tmp_path / "new.wav", output=tmp_path / "out.mp4", face_box=(0, 0, 1, 1)
    )
    find_work(request, *who_says_where(request, None), VideoSize(width=64, height=64), 3.0)
    told = [record.message for record in caplog.records]
    assert told == [f"{request.video}: looked for faces in its first 0:0{k}" for k in range(3)]


def test_without_opencv_the_line_that_brings_it_is_said(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"pip install 'opencv-python-headless<5'.* by a box or mask"):
        FoundFaces()


def test_an_opencv_without_cascades_is_named(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(ConfigError, match=r"without face cascades: pip install 'opencv-python-headless<5'"):
        FoundFaces()


# ---- said ------------------------------------------------------------------------------------------------------------


def test_boxes_are_shares_of_the_picture(tmp_path):
    picture = np.zeros((50, 100, 3), np.uint8)
    assert GivenBoxes((0.1, 0.2, 0.5, 0.8)).seen(7, 0.0, picture)[0].box == (10, 10, 50, 40)
    (tmp_path / "boxes.csv").write_text("frame,left,top,right,bottom\n0,0.1,0.2,0.5,0.8\n2,0.2,0.2,0.6,0.8\n")
    given = GivenBoxes(read_boxes(tmp_path / "boxes.csv"))
    assert [len(given.seen(k, 0.0, picture)) for k in range(4)] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "text, said",
    [
        ("0,0.1,0.2,0.5,0.8\n", "must begin with the line frame,left,top,right,bottom"),
        ("frame,left,top,right,bottom\n", "hold a line for each frame"),
        ("frame,left,top,right,bottom\n0,a,0.2,0.5,0.8\n", "line 2: frame must be a whole number"),
        ("frame,left,top,right,bottom\n0,0.1,0.2,0.5,0.8\n1,0.5,0.2,0.1,0.8\n", "line 3: 0.5,0.2,0.1,0.8 is no box"),
        ("frame,left,top,right,bottom\n0,0.1\n", "line 2"),
    ],
)
def test_a_wrong_box_file_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_boxes(tmp_path / "boxes.csv")
    with pytest.raises(MediaError, match="cannot be read"):
        read_boxes(tmp_path / "none.csv")


def painted(width=64, height=48) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[24:36, 20:44] = 255
    return mask


def test_a_mask_picture_is_scaled_to_the_shot_and_says_where_the_face_is(tmp_path):
    Image.fromarray(painted()).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", 128, 96)
    rows, columns = np.nonzero(mask.at(5, 0.2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (48, 71, 40, 87)
    (found,) = MaskedFaces(mask).seen(0, 0.0, np.zeros((96, 128, 3), np.uint8))
    left, top, right, bottom = found.box
    assert bottom == 72 and (left + right) / 2 == 64 and right - left == pytest.approx(62.4) and top < 30


def test_a_mask_painted_white_on_a_transparent_layer_is_what_is_painted(tmp_path):
    layer = np.full((48, 64, 4), (255, 255, 255, 0), np.uint8)
    layer[..., 3] = painted()
    Image.fromarray(layer).save(tmp_path / "layer.png")
    assert np.array_equal(read_mask(tmp_path / "layer.png", 64, 48).at(0, 0.0), painted() > 0)


def test_a_mask_video_is_followed_by_time_and_ends_where_it_ends(tmp_path):
    frames = [np.roll(painted(), 4 * k, axis=1)[..., None].repeat(3, -1) for k in range(5)]
    frames[3] = np.zeros_like(frames[3])
    path = write_video(tmp_path / "mask.mp4", frames, rate=10)
    mask = read_mask(path, 64, 48)
    starts = [None if (m := mask.at(0, t)) is None else int(np.flatnonzero(m.any(0))[0]) for t in
              (0.0, 0.04, 0.1, 0.25, 0.31, 0.4, 0.49, 0.55, 0.0)]  # fmt: skip
    assert starts == [20, 20, 24, 28, None, 36, 36, None, 20]


def test_masks_in_memory_go_frame_by_frame():
    masks = np.stack([painted() > 0, painted() > 300])
    assert MaskFrames(masks).at(0, 9.0).any() and MaskFrames(masks).at(1, 0.0) is None
    assert MaskFrames(masks).at(2, 0.0) is None
    assert StillMask(painted() > 300).at(0, 0.0) is None


def test_a_mask_of_another_shape_and_an_empty_one_are_refused(tmp_path):
    Image.fromarray(painted()).save(tmp_path / "mask.png")
    with pytest.raises(MediaError, match="64x48 and the footage 64x64: give a mask of that shape"):
        read_mask(tmp_path / "mask.png", 64, 64)
    Image.fromarray(painted() * 0).save(tmp_path / "black.png")
    with pytest.raises(MediaError, match="black all over"):
        read_mask(tmp_path / "black.png", 64, 48)


# ---- followed --------------------------------------------------------------------------------------------------------


def test_the_largest_face_is_followed_and_the_others_are_left_alone():
    frames = [[face(10 + k), face(100, side=30)] for k in range(20)]
    assert all(box[0] == pytest.approx(100) for box in track(frames).boxes)
    assert [round(box[0]) for box in track(frames, which=1).boxes] == list(range(10, 30))
    assert set(track(frames, which=3).reasons) == {NO_FACE}


def test_faces_that_change_order_in_the_list_stay_themselves():
    frames = [[face(10), face(60)] if k % 2 else [face(60), face(10)] for k in range(12)]
    assert {round(box[0]) for box in track(frames, which=2).boxes} == {60}


def test_a_short_miss_is_bridged_and_a_long_one_stays_as_it_is():
    frames = [[face(2.0 * k)] for k in range(30)]
    frames[8:10] = [[], []]
    frames[16:22] = [[]] * 6
    found = track(frames)
    assert [k for k, box in enumerate(found.boxes) if box is None] == list(range(16, 22))
    assert found.boxes[9][0] == pytest.approx(18, abs=0.5) and set(found.reasons[16:22]) == {NO_FACE}
    given = track(frames, is_given=True)
    assert [k for k, box in enumerate(given.boxes) if box is None] == [8, 9, *range(16, 22)]


def test_a_face_in_profile_is_the_same_face_and_stays_as_it_is():
    frames = [[face(10, in_profile=10 <= k < 16)] for k in range(30)]
    found = track(frames)
    assert [k for k, why in enumerate(found.reasons) if why == IN_PROFILE] == list(range(10, 16))
    assert found.boxes[9] and not found.boxes[12]


def test_what_flashes_up_is_no_face():
    frames = [[face(10)] if k in (5, 6, 7) else [] for k in range(20)]
    assert set(track(frames).reasons) == {NO_FACE, TOO_SHORT} and not any(track(frames).boxes)
    assert track(frames, is_given=True).boxes[6]


def test_a_cut_ends_a_face():
    frames = [[face(10)] for _ in range(15)] + [[face(12), face(60, side=40)] for _ in range(15)]
    found = track(frames, cuts={15})
    assert found.boxes[14][0] == pytest.approx(10) and found.boxes[15][0] == pytest.approx(60)
    jump = [[face(10)]] * 15 + [[face(18)]] * 15
    assert track(jump, cuts={15}).boxes[14][0] == pytest.approx(10)   # nothing is smoothed across it


def test_the_tremble_of_a_detector_is_steadied_and_movement_kept():
    rng = np.random.default_rng(0)
    truth = np.linspace(10, 60, 50)
    frames = [[face(x + rng.normal(0, 1))] for x in truth]
    frames[20] = [face(truth[20] + 9)]
    seen = np.asarray([f[0].box[0] for f in frames])
    steady = np.asarray([box[0] for box in track(frames).boxes])
    assert np.abs(np.diff(steady, 2)).mean() < 0.25 * np.abs(np.diff(seen, 2)).mean()
    assert np.abs(steady - truth).max() < 2


def test_smoothing_leaves_straight_movement_and_its_ends():
    line = np.stack([np.arange(12.0), 3 - np.arange(12.0)], axis=1)
    assert np.allclose(smooth(line, 2.0), line) and np.allclose(smooth(line[:1], 2.0), line[:1])


def test_overlap_is_intersection_over_union():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3) and overlap((0, 0, 1, 1), (2, 0, 3, 1)) == 0

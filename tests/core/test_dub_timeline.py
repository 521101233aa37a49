"""When footage shows what: its frame rate, its cuts, and what is done about sound of another length."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from s2v_core.dub.shot import Changes, FrameReader, Shot, constant_rate, describe_shot, find_cuts
from s2v_core.dub.timeline import make_timeline
from s2v_core.media.video_io import read_frames, read_timed_frames

from .dub_footage import noise_pictures, write_video

RATES = [Fraction(24_000, 1001), 24, 25, Fraction(30_000, 1001), 30, 50, Fraction(60_000, 1001), 60, Fraction(37, 2)]


def shot(num_frames: int = 50, rate: Fraction | None = Fraction(25), cuts: tuple[int, ...] = ()) -> Shot:
    times = [k / 25 for k in range(num_frames)]
    if rate is None:
        times = [k / 25 + (0.011 if k % 3 == 1 else 0) for k in range(num_frames)]
    return Shot(
        path=Path("shot.mp4"), width=64, height=64, times=tuple(times), end=num_frames / 25, rate=rate,
        cuts=frozenset(cuts),
    )  # fmt: skip


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("tick", [None, 1e-3])
def test_a_constant_rate_is_told_exactly_also_from_times_in_milliseconds(rate, tick):
    times = [float(k / Fraction(rate)) for k in range(150)]
    if tick:
        times = [round(t / tick) * tick for t in times]
    assert constant_rate(times, 150 / float(rate)) == rate


def test_times_that_jump_have_no_rate():
    assert constant_rate(shot(rate=None).times, 2.0) is None


def test_a_file_keeps_its_varying_times(tmp_path):
    times = [0.0, 0.04, 0.1, 0.14, 0.25, 0.29, 0.35]
    path = write_video(tmp_path / "vfr.mp4", noise_pictures(7), times=times)
    seen = [frame.seconds for frame in read_timed_frames(path)]
    found = describe_shot(path, seen, [0.0] * 7, (64, 64))
    assert found.rate is None and np.allclose(found.times, times, atol=1e-4) and found.end > 0.35


def test_cuts_are_found_and_fast_movement_is_none():
    def cuts(pictures):
        change = Changes()
        return find_cuts([change.of(picture) for picture in pictures])

    one, other = noise_pictures(12, seed=1), noise_pictures(12, seed=2)
    assert cuts(one + other) == {12}
    assert cuts(np.roll(one[0], 20 * k, axis=1) for k in range(20)) == frozenset()
    assert cuts(one[:1]) == frozenset()


def test_a_reader_gives_any_frame_in_any_order(tmp_path):
    path = write_video(tmp_path / "shot.mp4", noise_pictures(12))
    truth = list(read_frames(path))
    reader = FrameReader(path, keep=4)
    for number in (3, 4, 2, 11, 8, 0, 0, 7, 11):
        assert np.array_equal(reader.picture(number), truth[number]), number


def test_footage_and_sound_of_one_length_change_nothing():
    timeline = make_timeline(shot(), 2.02, "trim")
    assert timeline.numbers == tuple(range(50)) and timeline.times[-1] == 2.0
    assert "as long as each other" in timeline.remark


def test_longer_sound_is_cut_or_the_last_frame_is_held():
    trimmed, held = make_timeline(shot(), 2.5, "trim"), make_timeline(shot(), 2.5, "hold")
    assert trimmed.numbers == tuple(range(50)) and "the sound is cut" in trimmed.remark
    assert held.numbers == (*range(50), *[49] * 13) and held.times[-1] == pytest.approx(2.52)
    assert "the last frame is held for 0.52 s (13 frames)" in held.remark


def test_the_last_movement_goes_back_and_forth_within_its_scene():
    looped = make_timeline(shot(), 4.4, "loop").numbers
    assert looped[50:76] == (*range(48, 23, -1), 25) and looped[99:103] == (49, 48, 47, 46) and len(looped) == 110
    steps = np.abs(np.diff(looped))
    assert steps.max() == steps.min() == 1
    assert min(make_timeline(shot(cuts=(40,)), 4.4, "loop").numbers[50:]) == 40


def test_shorter_sound_cuts_the_footage_or_leaves_it_at_rest():
    trimmed = make_timeline(shot(), 1.3, "trim")
    assert trimmed.num_frames == 33 and "cut at the sound's end, after 33 frames" in trimmed.remark
    for length in ("hold", "loop"):
        whole = make_timeline(shot(), 1.3, length)
        assert whole.numbers == tuple(range(50)) and "without sound, the mouth at rest" in whole.remark


def test_uneven_frames_keep_their_times_and_go_on_at_their_usual_pace():
    uneven = shot(rate=None)
    timeline = make_timeline(uneven, 2.2, "hold")
    assert timeline.rate is None and timeline.times[:51] == (*uneven.times, 2.0)
    assert np.allclose(np.diff(timeline.times[50:]), uneven.step) and timeline.times[-1] >= 2.2 > timeline.times[-2]
    assert timeline.seconds_at(-2) == pytest.approx(-2 * uneven.step)
    assert timeline.seconds_at(timeline.num_frames + 3) == pytest.approx(timeline.times[-1] + 3 * uneven.step)

"""The progress line: what it shows, when, and how time left is reckoned."""

from __future__ import annotations

import io
from pathlib import Path

from s2v_core.progress import Progress
from s2v_core.times import duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def a_run(stream, *, clips, steps, step_seconds, finish_seconds, first=0):
    clock = Clock()
    progress = Progress(stream, clock)
    for index in range(first, clips):
        progress.clip_started(index, clips, steps)
        for step in range(1, steps + 1):
            clock.now += step_seconds
            progress.step(index, step, steps)
            yield progress
        clock.now += finish_seconds
        progress.clip_finished(index, clips)
        yield progress
    progress.finished(Path("talk.mp4"))


def test_time_left_counts_steps_and_the_decoding_of_every_clip():
    left = [p.seconds_left() for p in a_run(io.StringIO(), clips=3, steps=2, step_seconds=5, finish_seconds=4)]
    assert left == [25, 20, 28, 5 + 10 + 8, 10 + 8, 10 + 4, 5 + 4, 4, 0]


def test_a_continued_video_counts_only_what_is_left_of_it():
    left = [p.seconds_left() for p in a_run(io.StringIO(), clips=3, steps=2, step_seconds=5, finish_seconds=4, first=2)]
    assert left == [5, 0, 0]


def test_a_terminal_sees_one_line_that_is_redrawn_and_wiped():
    stream = Terminal()
    list(a_run(stream, clips=2, steps=4, step_seconds=60, finish_seconds=0))
    text = stream.getvalue()
    lines = text.split("\r\x1b[K")
    assert "\n" not in text and lines[0] == "" and lines[-1] == ""
    assert lines[1] == "clip 1/2  [--------------------]  step 0/4"
    assert lines[2] == "clip 1/2  [#####---------------]  step 1/4  7:00 left"
    assert lines[5] == "clip 1/2  [####################]  decoding  4:00 left"


def test_a_log_file_sees_one_plain_line_per_clip():
    stream = io.StringIO()
    list(a_run(stream, clips=3, steps=4, step_seconds=600, finish_seconds=0))
    assert stream.getvalue() == "clip 1 of 3 done, 1:20:00 left\nclip 2 of 3 done, 40:00 left\nclip 3 of 3 done\n"


def test_durations_read_as_clocks():
    assert [duration(s) for s in (0, 5.4, 65, 3599.6, 7500)] == ["0:00", "0:05", "1:05", "1:00:00", "2:05:00"]

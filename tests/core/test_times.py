"""Times as people write them are read in one way, wherever they stand."""

from __future__ import annotations

import pytest

from s2v_core.errors import ConfigError
from s2v_core.times import clock, parse_seconds


def test_times_are_seconds_or_clocks():
    written = ("12.5", "1:02.5", "1:02:03,5", "90:00", "7.", 7, 1e-7)
    assert [parse_seconds(time) for time in written] == [12.5, 62.5, 3723.5, 5400.0, 7.0, 7.0, 1e-7]


@pytest.mark.parametrize("value", ["soon", "0:75", "1:60:00", "1:2:3:4", "-3", "", True, None, float("nan")])
def test_what_is_no_time_is_said_with_an_example(value):
    with pytest.raises(ConfigError, match="is no time, such as 0:12.5"):
        parse_seconds(value)


def test_no_time_is_before_the_beginning():
    with pytest.raises(ConfigError, match="0 or more, got -3"):
        parse_seconds(-3)


@pytest.mark.parametrize("seconds", [0.0, 5.0, 59.99, 62.5, 3599.25, 7400.0])
def test_a_clock_is_read_back_as_it_was_written(seconds):
    assert parse_seconds(clock(seconds)) == pytest.approx(seconds)

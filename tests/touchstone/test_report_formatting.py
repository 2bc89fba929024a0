from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from touchstone.records import Interval, MetricStatistics, Verdict
from touchstone.reporting.formatting import (
    exact,
    fixed,
    last_place,
    noise_of,
    notation_for,
    number,
    percent,
    place_of_exact,
    scale_for,
    significant_place,
)


def statistics(values: tuple[float, ...], unit: str, interval: tuple[float, float] | None = None) -> MetricStatistics:
    ordered = sorted(values)
    return MetricStatistics(
        metric="total_time",
        arm="default",
        unit=unit,
        key=True,
        repetitions=tuple((value,) for value in values),
        values=values,
        n=len(values),
        k=1,
        sample_size=None,
        median=ordered[len(values) // 2],
        interval=None if interval is None else Interval(low=interval[0], high=interval[1], level=0.95, method="test"),
        log_t_interval=None,
        max_deviation=None,
        drift=None,
        drift_p=None,
        verdict=Verdict.STABLE,
        indicative=interval is None,
        withheld=None,
    )


@pytest.mark.parametrize(
    ("value", "noise", "text"),
    [
        (1434.13, 12.3, "1434"),
        (1434.13, 1.23, "1434.1"),
        (14341.3, 123.0, "14,340"),
        (0.331612, 0.0042, "0.3316"),
        (1434.13, None, "1430"),
        (1434.13, 0.0, "1434.13"),
        (120.0, 0.0, "120"),
        (0.0, 0.5, "0.00"),
        (-2.346, 0.1, "-2.35"),
        (262_144.0, 1e-9, "262,144"),
        (5.0, 123.0, "5"),
    ],
)
def test_digits_end_where_the_noise_begins(value, noise, text):
    assert number(value, noise) == text


def test_whole_numbers_are_written_whole():
    assert number(262_144) == "262,144"
    assert number(1024) == "1024"


def test_a_rounded_nothing_carries_no_sign():
    assert fixed(-0.0004, -2) == "0.00"


def test_digits_are_grouped_by_the_number_as_it_is_written():
    assert fixed(9999.5, 0) == "10,000"
    assert fixed(9999.4, 0) == "9999"


def test_a_power_of_ten_has_its_first_digit_at_its_own_place():
    assert significant_place(1000.0, 1) == 3
    assert significant_place(999.99, 1) == 3
    assert significant_place(0.001, 1) == -3


@settings(max_examples=50)
@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_no_more_than_six_significant_digits_are_ever_printed(value, noise):
    assert last_place(value, noise) >= significant_place(value, 6)


@settings(max_examples=50)
@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1.0))
def test_rounding_moves_a_value_by_less_than_its_noise(value, share):
    noise = value * share
    assert abs(float(number(value, noise).replace(",", "")) - value) <= noise


def test_noise_is_half_the_interval_or_else_half_the_range():
    assert noise_of([1.0, 2.0, 5.0], Interval(low=1.5, high=2.5, level=0.95, method="test")) == 0.5
    assert noise_of([1.0, 2.0, 5.0], None) == 2.0
    assert noise_of([1.0], None) is None


def test_all_numbers_of_a_metric_end_on_the_same_digit():
    notation = notation_for(statistics((100.04, 101.96, 103.1), "ms", (100.04, 103.1)))
    assert notation.write(101.96) == "102.0"
    assert notation.listing([100.04, 103.1]) == "100.0, 103.1"
    assert notation.listing([100.04, 101.96]) == "100.0, 102.0"


def test_small_gigabytes_and_seconds_get_readable_units():
    memory = notation_for(statistics((0.00012, 0.00013, 0.00014), "GB"))
    assert (memory.write(0.00013), memory.scale.symbol) == ("130", "kB")
    time = notation_for(statistics((0.0120, 0.0130, 0.0140), "s"))
    assert (time.write(0.013), time.scale.symbol) == ("13.0", "ms")
    assert scale_for("GB", 18.2).symbol == "GB"
    assert scale_for("s", 1.5).symbol == "s"


def test_counts_are_exact():
    assert place_of_exact([3.0, 4.0]) == 0
    assert place_of_exact([55.078125]) == -2
    assert place_of_exact([0.001234]) == -5
    assert exact(64049.4123) == "64,049.4"
    assert exact(508739.60) == "508,740"
    assert exact(1234567.8) == "1,234,570"
    assert exact(100.0) == "100"
    assert percent(0.01234) == "1.2 %"
    assert math.isclose(float(percent(0.05, 0).split()[0]), 5)

"""The laws of time and power over the clock, on the catalogue's part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.gpu.parts import BusyCurve, load_part
from muserve.physics import (
    busy_power_w,
    energy_optimal_clock_mhz,
    idle_power_w,
    is_modelled,
    lowest_clock_within,
    slowdown,
)

PART = load_part("V100-16GB")
SENSITIVITIES = st.floats(0.0, 1.0)
CLOCKS = st.floats(PART.clocks_mhz[0], PART.top_clock_mhz)


@given(sensitivity=SENSITIVITIES, one=CLOCKS, other=CLOCKS)
def test_lower_clock_is_never_faster_and_never_draws_more(
    sensitivity: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert slowdown(PART, sensitivity, low) >= slowdown(PART, sensitivity, high) - 1e-12
    assert slowdown(PART, sensitivity, high) >= 1.0
    assert busy_power_w(PART, sensitivity, low) <= busy_power_w(PART, sensitivity, high) + 1e-9
    assert idle_power_w(PART, low) <= idle_power_w(PART, high)


@given(sensitivity=SENSITIVITIES, clock_mhz=CLOCKS)
def test_work_draws_more_than_idling_and_less_than_the_limit(sensitivity: float, clock_mhz: float) -> None:
    power_w = busy_power_w(PART, sensitivity, clock_mhz)
    assert idle_power_w(PART, clock_mhz) < power_w <= PART.limit_w


@given(sensitivity=SENSITIVITIES, clock_mhz=st.floats(PART.knee_mhz, PART.top_clock_mhz))
def test_above_the_knee_time_follows_the_law(sensitivity: float, clock_mhz: float) -> None:
    law = (1 - sensitivity) + sensitivity * PART.top_clock_mhz / clock_mhz
    assert slowdown(PART, sensitivity, clock_mhz) == pytest.approx(law)


@given(sensitivity=SENSITIVITIES)
@pytest.mark.parametrize("border_mhz", [PART.knee_mhz, PART.lowest_measured_mhz])
def test_the_ranges_join_without_a_jump(border_mhz: int, sensitivity: float) -> None:
    below, above = border_mhz - 1e-6, border_mhz + 1e-6
    assert slowdown(PART, sensitivity, below) == pytest.approx(slowdown(PART, sensitivity, above))
    assert busy_power_w(PART, sensitivity, below) == pytest.approx(busy_power_w(PART, sensitivity, above))


@pytest.mark.parametrize("curve", PART.busy_curves, ids=lambda curve: curve.name)
def test_the_measured_points_are_met(curve: BusyCurve) -> None:
    for point in curve.points:
        time_ratio = slowdown(PART, curve.sensitivity, point.clock_mhz)
        # Above the knee the law stands in for the table, and below it hangs on the law's end.
        assert time_ratio == pytest.approx(point.time_ratio, rel=0.015)
        assert busy_power_w(PART, curve.sensitivity, point.clock_mhz) == pytest.approx(point.power_w)


def test_below_the_knee_even_insensitive_work_slows() -> None:
    assert slowdown(PART, 0.0, PART.knee_mhz) == 1.0
    assert slowdown(PART, 0.0, 600) > 2.0


def test_only_clocks_below_the_measured_ones_are_modelled() -> None:
    lowest = PART.lowest_measured_mhz
    assert is_modelled(PART, lowest - 1)
    assert not is_modelled(PART, lowest)
    assert slowdown(PART, 0.5, lowest / 2) == pytest.approx(2 * slowdown(PART, 0.5, lowest))


def test_idle_power_meets_both_measured_clocks() -> None:
    assert idle_power_w(PART, PART.clocks_mhz[0]) == PART.idle_w
    assert idle_power_w(PART, PART.top_clock_mhz) == PART.idle_default_w


@given(sensitivity=SENSITIVITIES, allowed=st.floats(1.0, 3.0))
def test_the_lowest_clock_within_a_slowdown_is_the_lowest(sensitivity: float, allowed: float) -> None:
    clock_mhz = lowest_clock_within(PART, sensitivity, allowed)
    assert slowdown(PART, sensitivity, clock_mhz) <= allowed
    position = PART.clocks_mhz.index(clock_mhz)
    assert clock_mhz == PART.knee_mhz or slowdown(PART, sensitivity, PART.clocks_mhz[position - 1]) > allowed


@given(sensitivity=SENSITIVITIES)
def test_the_energy_optimum_lies_at_the_knee(sensitivity: float) -> None:
    """As measured for 18 of the 20 published kernels."""
    assert abs(energy_optimal_clock_mhz(PART, sensitivity) - PART.knee_mhz) <= 60


@pytest.mark.parametrize("clock_mhz", [PART.clocks_mhz[0] - 1, PART.top_clock_mhz + 1])
def test_clocks_outside_the_part_are_refused(clock_mhz: int) -> None:
    for law in (slowdown, busy_power_w):
        with pytest.raises(ValueError, match="has clocks from 135 to 1380 MHz"):
            law(PART, 0.5, clock_mhz)
    with pytest.raises(ValueError, match="has clocks from"):
        idle_power_w(PART, clock_mhz)


def test_impossible_wishes_are_refused() -> None:
    with pytest.raises(ValueError, match="sensitivity must lie in"):
        slowdown(PART, 1.1, 1000)
    with pytest.raises(ValueError, match="allowed slowdown must be at least 1"):
        lowest_clock_within(PART, 0.5, 0.9)

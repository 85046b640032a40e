"""The laws of time and power over the clock, on every part of the catalogue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.gpu.parts import BusyCurve, Part, load_part, part_names
from muserve.physics import (
    busy_power_w,
    energy_optimal_clock_mhz,
    idle_power_w,
    is_modelled,
    lowest_clock_within,
    slowdown,
)

PART = load_part("V100-16GB")
PARTS = st.sampled_from([load_part(name) for name in part_names()])
SENSITIVITIES = st.floats(0.0, 1.0)
SHARES = st.floats(0.0, 1.0)


def clock_at(part: Part, share: float) -> float:
    """The clock at ``share`` of the part's range."""
    return part.clocks_mhz[0] + share * (part.top_clock_mhz - part.clocks_mhz[0])


@given(part=PARTS, sensitivity=SENSITIVITIES, one=SHARES, other=SHARES)
def test_lower_clock_is_never_faster_and_never_draws_more(
    part: Part, sensitivity: float, one: float, other: float
) -> None:
    low, high = sorted((clock_at(part, one), clock_at(part, other)))
    assert slowdown(part, sensitivity, low) >= slowdown(part, sensitivity, high) - 1e-12
    assert slowdown(part, sensitivity, high) >= 1.0
    assert busy_power_w(part, sensitivity, low) <= busy_power_w(part, sensitivity, high) + 1e-9
    assert idle_power_w(part, low) <= idle_power_w(part, high)


@given(part=PARTS, one=SENSITIVITIES, other=SENSITIVITIES, share=SHARES)
def test_above_the_knee_more_sensitive_work_slows_more(
    part: Part, one: float, other: float, share: float
) -> None:
    """Not so below it: there the published classes cross."""
    clock_mhz = max(part.knee_mhz, clock_at(part, share))
    less, more = sorted((one, other))
    assert slowdown(part, less, clock_mhz) <= slowdown(part, more, clock_mhz) + 1e-12


@given(part=PARTS, sensitivity=SENSITIVITIES, share=SHARES)
def test_work_draws_more_than_idling_and_less_than_the_limit(
    part: Part, sensitivity: float, share: float
) -> None:
    clock_mhz = clock_at(part, share)
    power_w = busy_power_w(part, sensitivity, clock_mhz)
    assert idle_power_w(part, clock_mhz) < power_w <= part.limit_w


@given(part=PARTS, sensitivity=SENSITIVITIES, share=SHARES)
def test_above_the_knee_time_follows_the_law(part: Part, sensitivity: float, share: float) -> None:
    clock_mhz = max(part.knee_mhz, clock_at(part, share))
    law = (1 - sensitivity) + sensitivity * part.top_clock_mhz / clock_mhz
    assert slowdown(part, sensitivity, clock_mhz) == pytest.approx(law)


@given(part=PARTS, sensitivity=SENSITIVITIES)
def test_the_ranges_join_without_a_jump(part: Part, sensitivity: float) -> None:
    for border_mhz in (part.knee_mhz, part.lowest_measured_mhz):
        below, above = border_mhz - 1e-6, border_mhz + 1e-6
        assert slowdown(part, sensitivity, below) == pytest.approx(slowdown(part, sensitivity, above))
        assert busy_power_w(part, sensitivity, below) == pytest.approx(busy_power_w(part, sensitivity, above))


@pytest.mark.parametrize(
    ("part", "curve"),
    [
        pytest.param(part, curve, id=f"{part.name}-{curve.name}")
        for part in map(load_part, part_names())
        for curve in part.busy_curves
    ],
)
def test_the_points_of_the_curves_are_met(part: Part, curve: BusyCurve) -> None:
    for point in curve.points:
        time_ratio = slowdown(part, curve.sensitivity, point.clock_mhz)
        # Above the knee the law stands in for the table, and below it hangs on the law's end.
        assert time_ratio == pytest.approx(point.time_ratio, rel=0.022)
        assert busy_power_w(part, curve.sensitivity, point.clock_mhz) == pytest.approx(point.power_w)


def test_below_the_knee_even_insensitive_work_slows() -> None:
    assert slowdown(PART, 0.0, PART.knee_mhz) == 1.0
    assert slowdown(PART, 0.0, 600) > 2.0


def test_only_clocks_below_the_measured_ones_are_modelled() -> None:
    lowest = PART.lowest_measured_mhz
    assert is_modelled(PART, lowest - 1)
    assert not is_modelled(PART, lowest)
    assert slowdown(PART, 0.5, lowest / 2) == pytest.approx(2 * slowdown(PART, 0.5, lowest))


def test_a_modelled_part_is_modelled_at_every_clock() -> None:
    part = load_part("H100")
    assert all(is_modelled(part, clock_mhz) for clock_mhz in part.clocks_mhz)


@given(part=PARTS)
def test_idle_power_meets_both_known_clocks(part: Part) -> None:
    assert idle_power_w(part, part.clocks_mhz[0]) == part.idle_w
    assert idle_power_w(part, part.top_clock_mhz) == part.idle_default_w


@given(part=PARTS, sensitivity=SENSITIVITIES, allowed=st.floats(1.0, 3.0))
def test_the_lowest_clock_within_a_slowdown_is_the_lowest(
    part: Part, sensitivity: float, allowed: float
) -> None:
    clock_mhz = lowest_clock_within(part, sensitivity, allowed)
    assert slowdown(part, sensitivity, clock_mhz) <= allowed
    position = part.clocks_mhz.index(clock_mhz)
    below_mhz = part.clocks_mhz[position - 1]
    assert clock_mhz == part.knee_mhz or slowdown(part, sensitivity, below_mhz) > allowed


@given(sensitivity=SENSITIVITIES)
def test_the_energy_optimum_of_the_v100_lies_at_the_knee(sensitivity: float) -> None:
    """As measured for 18 of the 20 published kernels."""
    assert abs(energy_optimal_clock_mhz(PART, sensitivity) - PART.knee_mhz) <= 60


@given(part=PARTS, sensitivity=SENSITIVITIES)
def test_below_the_knee_hardly_any_energy_is_saved(part: Part, sensitivity: float) -> None:
    def energy(clock_mhz: int) -> float:
        return busy_power_w(part, sensitivity, clock_mhz) * slowdown(part, sensitivity, clock_mhz)

    best_working = min(map(energy, part.working_clocks_mhz))
    assert best_working <= energy(part.top_clock_mhz)
    assert energy(energy_optimal_clock_mhz(part, sensitivity)) >= 0.97 * best_working


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

"""Fits of time and power over the clock find laws that hold, and refuse to answer outside of their range."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.fitting import calibration_clocks, non_negative_least_squares
from muserve.power_fit import fit_power
from muserve.time_fit import fit_time

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared/data/dvfs"

CLOCKS = [700.0, 900.0, 1100.0, 1250.0, 1400.0]
SENSITIVITIES = st.floats(0.0, 1.0)
POWERS = st.floats(0.0, 300.0)


def law(k: float, clock: float, exponent: float = 1.0) -> float:
    x = CLOCKS[-1] / clock
    return float((((1 - k) ** exponent) + (k * x) ** exponent) ** (1 / exponent))


@given(k=SENSITIVITIES, latency_ms=st.floats(1e-3, 1e4))
def test_a_law_that_holds_is_found_from_two_clocks(k: float, latency_ms: float) -> None:
    ends = {clock: latency_ms * law(k, clock) for clock in (CLOCKS[0], CLOCKS[-1])}
    fitted = fit_time(ends)
    assert fitted.form == "a + b/f"
    assert fitted.sensitivity == pytest.approx(k, abs=1e-6)
    assert fitted.sensitivity_low <= fitted.sensitivity <= fitted.sensitivity_high
    assert fitted.error is None
    for clock in CLOCKS:
        assert fitted.latency_ms(clock) == pytest.approx(latency_ms * law(k, clock), rel=1e-6)


@given(k=SENSITIVITIES, exponent=st.floats(1.0, 20.0))
def test_three_clocks_also_find_work_that_is_flat_down_to_its_own_knee(k: float, exponent: float) -> None:
    truth = {clock: law(k, clock, exponent) for clock in CLOCKS}
    fitted = fit_time({clock: truth[clock] for clock in calibration_clocks(CLOCKS)})
    for clock in CLOCKS:
        assert fitted.latency_ms(clock) == pytest.approx(truth[clock], rel=0.01)


def test_the_stated_error_is_that_of_samples_it_did_not_see() -> None:
    good = fit_time({clock: law(0.4, clock) for clock in CLOCKS})
    assert good.error is not None
    assert good.error.worst < 1e-6
    spoilt = fit_time({clock: law(0.4, clock) * (1.1 if clock == 1100 else 1) for clock in CLOCKS})
    assert spoilt.error is not None
    assert spoilt.error.worst == pytest.approx(1 - 1 / 1.1, rel=0.05), (
        "the spoilt sample, predicted by the others"
    )
    assert 0 < spoilt.error.mean < spoilt.error.worst


@pytest.mark.parametrize("points", [2, 3, 5])
def test_the_interval_of_the_sensitivity_holds_the_truth(points: int) -> None:
    random = np.random.default_rng(3)
    clocks = np.linspace(700, 1400, points)
    held = 0
    for _ in range(300):
        k = random.uniform(0.1, 0.9)
        fitted = fit_time({c: law(k, c) * random.normal(1, 0.01) for c in clocks}, noise=0.01)
        held += fitted.sensitivity_low <= k <= fitted.sensitivity_high
    assert held >= 0.92 * 300


def test_noisier_samples_make_a_wider_interval() -> None:
    samples = {clock: law(0.5, clock) for clock in CLOCKS}
    narrow, wide = fit_time(samples, noise=0.001), fit_time(samples, noise=0.01)
    assert wide.sensitivity_high - wide.sensitivity_low == pytest.approx(
        10 * (narrow.sensitivity_high - narrow.sensitivity_low)
    )


@given(static_w=st.floats(1.0, 300.0), linear_w=POWERS, cubic_w=POWERS)
def test_a_power_law_that_holds_is_found(static_w: float, linear_w: float, cubic_w: float) -> None:
    truth = {clock: static_w + linear_w * (x := clock / CLOCKS[-1]) + cubic_w * x**3 for clock in CLOCKS}
    fitted = fit_power(truth)
    assert min(fitted.static_w, fitted.linear_w, fitted.steep_w) >= 0
    for clock in CLOCKS:
        assert fitted.power_w(clock) == pytest.approx(truth[clock], rel=1e-4)


def test_power_steeper_than_a_cubic_takes_the_steep_form() -> None:
    """The published fit of pi-solver on an A100 PCIe: 109 W + 186 W x^6."""
    truth = {clock: 109 + 186 * (clock / 1410) ** 6 for clock in (1005.0, 1110.0, 1200.0, 1305.0, 1410.0)}
    fitted = fit_power({clock: truth[clock] for clock in calibration_clocks(list(truth))})
    assert fitted.form == "P0 + c1 x + c6 x^6"
    assert max(abs(fitted.power_w(clock) / truth[clock] - 1) for clock in truth) < 0.01
    assert fit_power({700.0: 100.0, 1050.0: 150.0, 1400.0: 220.0}).form == "P0 + c1 x + c3 x^3"


@given(
    samples=st.dictionaries(
        st.sampled_from(CLOCKS), st.floats(1.0, 1e4, allow_subnormal=False), min_size=2, max_size=5
    )
)
def test_whatever_the_samples_laws_stay_physical(samples: dict[float, float]) -> None:
    """Time never falls with a falling clock, power never rises, and neither becomes negative."""
    time, power = fit_time(samples), fit_power(samples)
    clocks = np.linspace(min(samples), max(samples), 9)
    times, powers = [time.latency_ms(c) for c in clocks], [power.power_w(c) for c in clocks]
    assert all(low >= high * (1 - 1e-9) for low, high in pairwise(times))
    assert all(low <= high * (1 + 1e-9) for low, high in pairwise(powers))
    assert min(times) > 0
    assert min(powers) > 0
    assert 0 <= time.sensitivity_low <= time.sensitivity_high <= 1


def test_samples_below_the_knee_are_left_out_and_the_law_refuses_to_go_there() -> None:
    samples = {500.0: 9.0} | {clock: law(0.5, clock) for clock in CLOCKS}
    fitted = fit_time(samples, knee_mhz=700)
    assert fitted == fit_time({clock: law(0.5, clock) for clock in CLOCKS})
    assert (fitted.lowest_mhz, fitted.top_mhz, fitted.points) == (700.0, 1400.0, 5)
    power = fit_power({500.0: 90.0} | dict.fromkeys(CLOCKS, 100.0), knee_mhz=700)
    for clock in (699.9, 1400.1, math.nan):
        with pytest.raises(ValueError, match="fitted from 700 to 1400 MHz, asked at"):
            fitted.latency_ms(clock)
        with pytest.raises(ValueError, match="fitted from 700 to 1400 MHz, asked at"):
            power.power_w(clock)


@pytest.mark.parametrize(
    ("samples", "complaint"),
    [
        ({1000.0: 1.0}, "expected samples at 2 clocks or more from 0 MHz up, got 1"),
        ({1000.0: 1.0, 1400.0: 0.0}, "expected positive, finite clocks and values"),
        ({1000.0: 1.0, 1400.0: math.nan}, "expected positive, finite clocks and values"),
        ({0.0: 1.0, 1400.0: 1.0}, "expected positive, finite clocks and values"),
        ({1000.0: 1.0, math.inf: 1.0}, "expected positive, finite clocks and values"),
    ],
)
def test_bad_samples_are_refused(samples: dict[float, float], complaint: str) -> None:
    for fit in (fit_time, fit_power):
        with pytest.raises(ValueError, match=complaint):
            fit(samples)


def test_a_noise_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a positive noise, got 0"):
        fit_time({700.0: 2.0, 1400.0: 1.0}, noise=0.0)


def test_calibration_clocks_span_half_of_the_range_and_never_go_below_the_knee() -> None:
    grid = [float(clock) for clock in range(210, 1411, 15)]
    assert calibration_clocks(grid) == (705.0, 1050.0, 1410.0)
    assert calibration_clocks(grid, knee_mhz=1005) == (1005.0, 1200.0, 1410.0)
    assert calibration_clocks([1600.0, 1700.0, 1800.0, 1900.0, 2000.0]) == (1600.0, 1800.0, 2000.0)
    with pytest.raises(ValueError, match="at least three clocks from 1395 MHz up, got 2"):
        calibration_clocks(grid, knee_mhz=1395)


@given(
    columns=st.lists(st.tuples(*[st.integers(-300, 300).map(lambda n: n / 100)] * 3), min_size=3, max_size=6),
    probe=st.tuples(*[st.floats(0, 5)] * 3),
)
def test_no_other_non_negative_coefficients_miss_less(
    columns: list[tuple[float, float, float]], probe: tuple[float, float, float]
) -> None:
    matrix, target = np.array(columns), np.ones(len(columns))
    found = non_negative_least_squares(matrix, target)
    assert found.min() >= 0
    miss = float(np.sum((matrix @ found - target) ** 2))
    assert miss <= float(np.sum((matrix @ np.array(probe) - target) ** 2)) + 1e-6


@pytest.mark.shared_data
@pytest.mark.skipif(not DATA.exists(), reason="the published measurements are not on this machine")
def test_three_calibration_clocks_predict_published_sweeps_within_the_bar() -> None:
    command = [sys.executable, str(ROOT / "tools/bench_physics.py"), str(DATA), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for what, (mean, worst) in {"time": (0.03, 0.08), "power": (0.04, 0.08)}.items():
        measured = report[what]
        ours = measured["forms"]["muserve"]
        assert ours["series"] > 500
        subsets = measured["subsets"]
        for found in (
            ours,
            subsets["without microbenchmarks"],
            subsets["all other clocks, within the range or not"],
        ):
            assert found["mean"]["median"] < mean
            assert found["worst"]["median"] < worst
        for name, other in measured["forms"].items():
            assert name == "muserve" or ours["mean"]["median"] < other["mean"]["median"]


def test_the_benchmark_says_when_the_data_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/bench_physics.py"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"bench_physics: {tmp_path}/a100_rtxpro6000_freq_x_cap.csv: expected")
    assert run.stdout == ""

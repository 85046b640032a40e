from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.load.arrivals import ArrivalLaw, Arrivals, gamma_arrivals


def _rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(
    rate=st.floats(0.05, 50),
    cv=st.floats(0, 5),
    duration=st.floats(0.5, 60),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_times_are_ascending_inside_the_window_and_repeatable(
    rate: float, cv: float, duration: float, seed: int
) -> None:
    times = gamma_arrivals(rate, cv, duration, _rng(seed))
    assert ((times >= 0) & (times < duration)).all()
    assert (np.diff(times) >= 0).all()
    assert times.tolist() == gamma_arrivals(rate, cv, duration, _rng(seed)).tolist()


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 3.0])
def test_rate_and_burstiness_are_those_asked_for(cv: float) -> None:
    times = gamma_arrivals(5.0, cv, 40_000.0, _rng())
    gaps = np.diff(times)
    assert len(times) / 40_000 == pytest.approx(5.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-9)


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_short_windows_hold_neither_too_many_nor_too_few_requests(cv: float) -> None:
    # A process that starts with an arrival would hold (16 - 1) / 2 more of the 10 at cv 4.
    rng = _rng()
    counts = [len(gamma_arrivals(2.0, cv, 5.0, rng)) for _ in range(8000)]
    error = 4 * np.std(counts) / np.sqrt(len(counts)) + 0.01
    assert np.mean(counts) == pytest.approx(10.0, abs=error)


@pytest.mark.parametrize(("rate", "cv", "duration"), [(0, 1, 1), (1, -1, 1), (1, 1, 0)])
def test_impossible_arrivals_are_refused(rate: float, cv: float, duration: float) -> None:
    with pytest.raises(ValueError, match="bad arrivals"):
        gamma_arrivals(rate, cv, duration, _rng())


@pytest.mark.parametrize("cv", [0.0, 1.0, 2.0])
def test_handed_out_in_pieces_they_are_the_same(cv: float) -> None:
    law = ArrivalLaw(rate_rps=20.0, cv=cv, swing=0.5, period_s=7.0)
    whole = Arrivals(law, _rng()).before(50.0)
    pieces = Arrivals(law, _rng())
    parts = [pieces.before(end_s) for end_s in (0.01, 3.0, 3.0, 20.0, 50.0)]
    assert np.concatenate(parts) == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("swing", [0.3, 1.0])
def test_the_rate_swings_over_the_day_around_its_mean(swing: float) -> None:
    law = ArrivalLaw(rate_rps=50.0, swing=swing, period_s=40.0)
    times = Arrivals(law, _rng()).before(4000.0)
    assert (np.diff(times) >= 0).all()
    assert len(times) / 4000 == pytest.approx(50.0, rel=0.02)
    counts, edges = np.histogram(times % 40.0, bins=20, range=(0.0, 40.0))
    middle = (edges[:-1] + edges[1:]) / 2
    expected = 1 + swing * np.sin(2 * np.pi * middle / 40.0)
    assert counts / (len(times) / 20) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("change", [{"rate_rps": 0.0}, {"cv": -1.0}, {"swing": 1.1}, {"period_s": 0.0}])
def test_impossible_laws_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="bad arrivals"):
        ArrivalLaw(**{"rate_rps": 1.0, **change})

"""Rising curves through noisy points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.isotonic import fit_rising_curve, pool_adjacent_violators

isotonic = pytest.importorskip("sklearn.isotonic")
VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40)


@given(values=VALUES)
def test_pooled_means_rise_and_keep_the_mean(values: list[float]) -> None:
    points = np.array(values)
    means, starts = pool_adjacent_violators(points, np.ones(len(points)))
    assert (np.diff(means) > 0).all()
    sizes = np.diff([*starts, len(points)])
    assert float(means @ sizes) == pytest.approx(float(points.sum()), abs=1e-6 * len(points) + 1e-6)


@given(values=VALUES)
def test_agrees_with_scikit_learn(values: list[float]) -> None:
    points = np.array(values)
    means, starts = pool_adjacent_violators(points, np.ones(len(points)))
    fitted = np.repeat(means, np.diff([*starts, len(points)]))
    expected = isotonic.IsotonicRegression().fit_transform(np.arange(len(points)), points)
    np.testing.assert_allclose(fitted, expected, atol=1e-6)


@given(
    points=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0, 1e3)), max_size=80),
    asked=st.lists(st.floats(-2e3, 2e3), min_size=2, max_size=10),
)
def test_the_curve_rises_everywhere(points: list[tuple[float, float]], asked: list[float]) -> None:
    scores, values = np.array(points).reshape(-1, 2).T
    curve = fit_rising_curve(scores, values)
    if curve is not None:
        assert (np.diff(curve(np.sort(asked))) >= -1e-6).all()


def test_no_curve_through_one_point_or_falling_ones() -> None:
    assert fit_rising_curve(np.array([1.0]), np.array([2.0])) is None
    assert fit_rising_curve(np.arange(10.0), -np.arange(10.0)) is None
    assert fit_rising_curve(np.zeros(10), np.arange(10.0)) is None

"""Confidence intervals for figures of one run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_RESAMPLES = 2000
_SEED = 20240710


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def mean_ratio(numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]) -> Interval:
    """Ratio of the means of two samples that are paired element by element, in order of arrival.

    Circular block bootstrap (Politis and Romano 1992) with blocks of ``sqrt(n)`` consecutive requests:
    requests that queued together are not independent, so drawing them one by one would make the
    interval too narrow. It covers which requests were drawn, not other machines or other loads.
    Deterministic. Raises ValueError when the samples are empty or of different length.
    """
    n = len(numerator)
    if n == 0 or n != len(denominator):
        raise ValueError(f"expected two samples of equal length, got {n} and {len(denominator)}")
    block = max(1, round(math.sqrt(n)))
    rng = np.random.default_rng(_SEED)
    starts = rng.integers(n, size=(_RESAMPLES, math.ceil(n / block)))
    picks = ((starts[:, :, None] + np.arange(block)) % n).reshape(_RESAMPLES, -1)[:, :n]
    ratios = numerator[picks].mean(axis=1) / denominator[picks].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    value = float(numerator.mean() / denominator.mean())
    return Interval(value=value, low=float(low), high=float(high))

"""Laws fitted to a few operating points: time over the clock with a confidence interval, and board power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_CLOCKS = 3

# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom; more are treated as 10.
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeFit:
    """``t(f) = t(top) ((1 - k) + k top / f)``: ``k`` in [0, 1] with its 95 % confidence interval."""

    k: float
    k_low: float
    k_high: float


def fit_time(clocks_mhz: Sequence[float], latencies_ms: Sequence[float], top_clock_mhz: float) -> TimeFit:
    """Least squares of ``t = a + b x`` over ``x = top / f``, with ``k = b / (a + b)``.

    The interval follows from the covariance of a and b by the delta method and Student's t. Physical
    noise can put ``k`` slightly outside [0, 1]; it is clipped. ValueError below ``FEWEST_CLOCKS`` clocks.
    """
    if len(set(clocks_mhz)) < FEWEST_CLOCKS:
        raise ValueError(
            f"a time law with its error needs {FEWEST_CLOCKS} clocks, got {len(set(clocks_mhz))}"
        )
    ratio = top_clock_mhz / np.asarray(clocks_mhz, dtype=float)
    times = np.asarray(latencies_ms, dtype=float)
    design = np.column_stack([np.ones_like(ratio), ratio])
    (constant, slope), *_ = np.linalg.lstsq(design, times, rcond=None)
    top_ms = constant + slope
    freedom = len(times) - 2
    variance = float(np.sum((times - design @ (constant, slope)) ** 2)) / freedom
    covariance = variance * np.linalg.inv(design.T @ design)
    gradient = np.array([-slope, constant]) / top_ms**2
    half = _T_975[min(freedom, len(_T_975)) - 1] * float(np.sqrt(gradient @ covariance @ gradient))
    k = float(slope / top_ms)
    low, value, high = (float(np.clip(bound, 0.0, 1.0)) for bound in (k - half, k, k + half))
    return TimeFit(k=value, k_low=low, k_high=high)


def fit_power(clock_shares: Sequence[float], watts: Sequence[float]) -> tuple[float, float, float]:
    """``P0, c1, c3`` of ``P = P0 + c1 x + c3 x^3``, none below 0, of least squared error.

    ``clock_shares`` are clocks as shares ``x`` of the top clock. ValueError below ``FEWEST_CLOCKS`` clocks.
    """
    if len(set(clock_shares)) < FEWEST_CLOCKS:
        raise ValueError(f"a power law needs {FEWEST_CLOCKS} clocks, got {len(set(clock_shares))}")
    share, power = np.asarray(clock_shares, dtype=float), np.asarray(watts, dtype=float)
    terms = np.column_stack([np.ones_like(share), share, share**3])
    best, least = (float(power.mean()), 0.0, 0.0), np.inf
    for columns in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (1,), (2,), (0,)):
        found = np.zeros(3)
        found[list(columns)] = np.linalg.lstsq(terms[:, columns], power, rcond=None)[0]
        error = float(np.sum((terms @ found - power) ** 2))
        # The tolerance keeps rounding from choosing between columns that fit equally well.
        if found.min() >= 0 and error < least - 1e-9 * float(power @ power):
            best, least = (float(found[0]), float(found[1]), float(found[2])), error
    return best

"""What the fits of time and power over the clock have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitError:
    """Relative error of a law at points that it did not see: 0.01 is one per cent."""

    mean: float
    worst: float


def calibration_clocks(clocks_mhz: Sequence[float], knee_mhz: float = 0.0) -> tuple[float, float, float]:
    """The three clocks to calibrate at, ascending: the top, about half of it, and the one between them.

    Clocks below the knee are no candidates, so on most parts the lowest is the knee itself.
    ValueError when fewer than three clocks are left.
    """
    usable = sorted(clock for clock in set(clocks_mhz) if clock >= knee_mhz)
    if len(usable) < 3:
        raise ValueError(f"expected at least three clocks from {knee_mhz:g} MHz up, got {len(usable)}")
    top = usable[-1]
    lowest = min(usable[:-2], key=lambda clock: abs(clock - top / 2))
    between = [clock for clock in usable if lowest < clock < top]
    return lowest, min(between, key=lambda clock: abs(clock - (lowest + top) / 2)), top


def ascending_samples(samples: Mapping[float, float], lowest_mhz: float, least: int) -> tuple[Array, Array]:
    """Clocks from ``lowest_mhz`` up in MHz, ascending, and their values.

    ValueError for fewer than ``least`` of them, and for clocks or values that are not positive and finite.
    """
    kept = sorted((clock, value) for clock, value in samples.items() if clock >= lowest_mhz)
    if len(kept) < least:
        raise ValueError(
            f"expected samples at {least} clocks or more from {lowest_mhz:g} MHz up, got {len(kept)}"
        )
    clocks, values = np.array(kept, dtype=np.float64).T
    if not (np.isfinite(kept).all() and clocks[0] > 0 and values.min() > 0):
        raise ValueError("expected positive, finite clocks and values")
    return clocks, values


def non_negative_least_squares(columns: Array, target: Array) -> Array:
    """Coefficients >= 0 of the columns of ``columns`` (n x m, m <= 3) that miss ``target`` least.

    By trying every set of columns: with so few, the exact optimum is one of at most seven plain fits.
    """
    width = columns.shape[1]
    best, best_miss = np.zeros(width), float(target @ target)
    for size in range(1, width + 1):
        for chosen in map(list, combinations(range(width), size)):
            fitted = np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
            miss = float(np.sum((columns[:, chosen] @ fitted - target) ** 2))
            if fitted.min() >= 0 and miss < best_miss:
                best, best_miss = np.zeros(width), miss
                best[chosen] = fitted
    return best


def left_out_error(
    clocks: Array, values: Array, predict: Callable[[Array, Array, float], float]
) -> FitError | None:
    """Error at each inner sample, predicted by ``predict(clocks, values, clock)`` from all the others.

    The ends stay in, because a law is never asked outside of its range. None when there is no inner sample.
    """
    errors = [
        abs(predict(np.delete(clocks, i), np.delete(values, i), clocks[i]) / values[i] - 1)
        for i in range(1, len(clocks) - 1)
    ]
    return FitError(mean=float(np.mean(errors)), worst=float(max(errors))) if errors else None


def check_range(clock_mhz: float, lowest_mhz: float, top_mhz: float) -> None:
    """ValueError when a law fitted between two clocks is asked at a clock outside of them."""
    if not lowest_mhz <= clock_mhz <= top_mhz:
        raise ValueError(f"fitted from {lowest_mhz:g} to {top_mhz:g} MHz, asked at {clock_mhz:g} MHz")

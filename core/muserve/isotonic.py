"""A rising curve through noisy points: isotonic regression, kept as a few knots.

Pool-adjacent-violators (Ayer et al., "An empirical distribution function for sampling with incomplete
information", 1955) on equal-count bins of the points. Each pooled block becomes one knot, so the curve rises
strictly and keeps the order of what it maps; beyond its ends it goes on as straight as it was there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RisingCurve:
    """Straight lines through the knots (``x[i]``, ``y[i]``), both strictly ascending; at least two knots."""

    x: Floats
    y: Floats

    @property
    def slopes(self) -> Floats:
        """Of the segments between the knots."""
        return np.asarray(np.diff(self.y) / np.diff(self.x), np.float64)

    def __call__(self, values: Floats) -> Floats:
        """The curve at ``values``, same shape."""
        inner = np.interp(values, self.x, self.y)
        below = self.slopes[0] * np.minimum(values - self.x[0], 0.0)
        above = self.slopes[-1] * np.maximum(values - self.x[-1], 0.0)
        return np.asarray(inner + below + above, np.float64)


def pool_adjacent_violators(values: Floats, weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Least-squares non-descending fit: the blocks' means, and where each block starts."""
    means: list[float] = []
    masses: list[float] = []
    starts: list[int] = []
    for place, (value, weight) in enumerate(zip(values.tolist(), weights.tolist(), strict=True)):
        means.append(value)
        masses.append(weight)
        starts.append(place)
        while len(means) > 1 and means[-2] >= means[-1]:
            mass = masses[-2] + masses[-1]
            pooled = (means[-2] * masses[-2] + means[-1] * masses[-1]) / mass
            means[-2:], masses[-2:] = [pooled], [mass]
            starts.pop()
    return np.array(means), np.array(starts, np.int64)


def fit_rising_curve(scores: Floats, values: Floats, bins: int = 40) -> RisingCurve | None:
    """The curve from ``scores`` to the mean of ``values`` (both (n,)), through at most ``bins`` knots.

    None when the values do not rise with the scores at all, or there are fewer than two points.
    """
    if len(scores) < 2:
        return None
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    weights = np.array([len(part) for part in parts], np.float64)
    means, starts = pool_adjacent_violators(np.array([values[part].mean() for part in parts]), weights)
    blocks = np.split(np.arange(len(parts)), starts[1:])
    x = np.array([np.mean(scores[np.concatenate([parts[bin_] for bin_ in block])]) for block in blocks])
    rising = np.concatenate([[True], np.diff(x) > 0.0])
    if rising.sum() < 2:
        return None
    return RisingCurve(x[rising], means[rising])

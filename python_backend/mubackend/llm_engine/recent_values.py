"""The last so many values of a quantity, and where a value stands among them."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterable

_FEW = 200  # from here on one sort costs less than so many insertions


class RecentValues:
    """A sliding window with exact quantiles; a value costs a move of the window in memory, a few us."""

    def __init__(self, window: int) -> None:
        self._window: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """Take in one value; the oldest one goes when the window is full."""
        if len(self._window) == self._window.maxlen:
            del self._sorted[bisect.bisect_left(self._sorted, self._window[0])]
        self._window.append(value)
        bisect.insort(self._sorted, value)

    def extend(self, values: Iterable[float]) -> None:
        """Take in values, many of them at the price of one sort."""
        values = list(values)
        if len(values) < _FEW:
            for value in values:
                self.add(value)
            return
        self._window.extend(values)
        self._sorted = sorted(self._window)

    def quantile(self, share: float) -> float:
        """The smallest value that at least ``share`` of the values do not exceed; 0 when there is none."""
        if not self._sorted:
            return 0.0
        place = math.ceil(share * len(self._sorted)) - 1
        return self._sorted[min(max(place, 0), len(self._sorted) - 1)]

    def rank(self, value: float) -> float:
        """Share of the values that are smaller, in [0, 1]; 0 when there is none."""
        return bisect.bisect_left(self._sorted, value) / max(1, len(self._sorted))

    def __len__(self) -> int:
        return len(self._sorted)

"""Bursty arrival times."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Mean intervals that pass before time zero, times (1 + cv^2): after them the process has forgotten
# that it began with an arrival.
_WARM_UP_INTERVALS = 20.0
_METRONOME_CV = 1e-3
# Points of a day between which the diurnal curve is interpolated: with a day of 24 h, 0.02 ms off.
_DAY_POINTS = 2**16

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalLaw:
    """A stationary renewal process with Gamma gaps, whose rate may swing over the day.

    Gaps have mean ``1 / rate_rps`` and coefficient of variation ``cv`` (1 is Poisson, above 1 is bursty,
    0 is a metronome of random phase): the load model of AlpaServe and μ-Serve. The rate at time t is
    ``rate_rps * (1 + swing * sin(2 pi t / period_s))``, so ``rate_rps`` is its mean over a period; the
    process is stationary in the time that such a clock shows. ValueError unless rate and period are
    positive, the CV is not negative and the swing lies in [0, 1].
    """

    rate_rps: float
    cv: float = 1.0
    swing: float = 0.0
    period_s: float = 86_400.0

    def __post_init__(self) -> None:
        if not (self.rate_rps > 0 and self.cv >= 0 and 0 <= self.swing <= 1 and self.period_s > 0):
            raise ValueError(f"bad arrivals: {self}")


class Arrivals:
    """Arrival times from zero on, handed out in order; equal random generators give equal times.

    The process starts long before time zero, because one that starts with an arrival holds
    ``(cv^2 - 1) / 2`` requests too many.
    """

    def __init__(self, law: ArrivalLaw, rng: np.random.Generator) -> None:
        self._law = law
        self._rng = rng
        interval_s = 1 / law.rate_rps
        self._metronome = law.cv < _METRONOME_CV
        self._last_s = float(rng.uniform(0, interval_s))
        if self._metronome:
            self._ahead = np.array([self._last_s])
        else:
            self._last_s -= interval_s * (1 + _WARM_UP_INTERVALS * (1 + law.cv**2))
            self._ahead = np.empty(0)

    def before(self, end_s: float) -> Times:
        """Times in [0, ``end_s``) that were not handed out before, ascending, in seconds."""
        end_s = float(self._even_time(np.array([end_s]))[0])
        chunks = [self._ahead]
        while self._last_s < end_s:
            chunks.append(self._more(end_s))
            self._last_s = float(chunks[-1][-1])
        times = np.concatenate(chunks)
        split = int(np.searchsorted(times, end_s, side="left"))
        self._ahead = times[split:]
        inside = times[np.searchsorted(times, 0.0, side="left") : split]
        return self._day_time(inside) if self._law.swing else inside

    def _more(self, end_s: float) -> Times:
        law, interval_s = self._law, 1 / self._law.rate_rps
        count = max(64, int(law.rate_rps * (end_s - self._last_s)))
        if self._metronome:
            gaps = np.full(count, interval_s)
        else:
            shape = law.cv**-2
            gaps = self._rng.gamma(shape, interval_s / shape, count)
        times: Times = self._last_s + np.cumsum(gaps)
        return times

    def _even_time(self, time_s: Times) -> Times:
        """The clock by which the rate is constant: the integral of the swinging rate over its mean."""
        turn = 2 * math.pi / self._law.period_s
        even_s: Times = time_s + self._law.swing * (1 - np.cos(turn * time_s)) / turn
        return even_s

    def _day_time(self, even_s: Times) -> Times:
        """The inverse of ``_even_time``; the two clocks agree at the end of every period."""
        period_s = self._law.period_s
        day = np.linspace(0.0, period_s, _DAY_POINTS + 1)
        whole, rest = np.divmod(even_s, period_s)
        return whole * period_s + np.interp(rest, self._even_time(day), day)


def gamma_arrivals(
    rate_rps: float, burstiness_cv: float, duration_s: float, rng: np.random.Generator
) -> Times:
    """Arrival times in [0, duration_s), ascending, of an ``ArrivalLaw`` that does not swing.

    Raises ValueError unless rate and duration are positive and the CV is not negative.
    """
    if rate_rps <= 0 or duration_s <= 0 or burstiness_cv < 0:
        raise ValueError(f"bad arrivals: {rate_rps=}, {burstiness_cv=}, {duration_s=}")
    return Arrivals(ArrivalLaw(rate_rps=rate_rps, cv=burstiness_cv), rng).before(duration_s)

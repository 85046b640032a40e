"""Bursty arrival times."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Mean intervals that pass before time zero, times (1 + cv^2): after them the process has forgotten
# that it began with an arrival.
_WARM_UP_INTERVALS = 20.0
_METRONOME_CV = 1e-3


def gamma_arrivals(
    rate_rps: float, burstiness_cv: float, duration_s: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Arrival times in [0, duration_s), ascending, of a stationary renewal process.

    Intervals are Gamma distributed with mean ``1 / rate_rps`` and coefficient of variation
    ``burstiness_cv`` (1 is Poisson, above 1 is bursty, 0 is a metronome of random phase): the load
    model of AlpaServe and μ-Serve. The process starts long before time zero, because one that starts
    with an arrival holds ``(cv^2 - 1) / 2`` requests too many.

    Raises ValueError unless rate and duration are positive and the CV is not negative.
    """
    if rate_rps <= 0 or duration_s <= 0 or burstiness_cv < 0:
        raise ValueError(f"bad arrivals: {rate_rps=}, {burstiness_cv=}, {duration_s=}")
    interval_s = 1 / rate_rps
    phase_s = float(rng.uniform(0, interval_s))
    if burstiness_cv < _METRONOME_CV:
        return _inside(np.arange(phase_s, duration_s, interval_s), duration_s)
    shape = burstiness_cv**-2
    time_s = phase_s - interval_s * (1 + _WARM_UP_INTERVALS * (1 + burstiness_cv**2))
    chunk = max(64, int(rate_rps * (duration_s - time_s)))
    chunks: list[npt.NDArray[np.float64]] = []
    while time_s < duration_s:
        times = time_s + np.cumsum(rng.gamma(shape, interval_s / shape, chunk))
        chunks.append(times)
        time_s = float(times[-1])
    return _inside(np.concatenate(chunks), duration_s)


def _inside(times: npt.NDArray[np.float64], duration_s: float) -> npt.NDArray[np.float64]:
    return times[(times >= 0) & (times < duration_s)]

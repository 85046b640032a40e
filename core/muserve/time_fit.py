"""Fits run time over the SM clock from samples at a few clocks.

    t(f) = (a^p + (b x)^p)^(1/p),   x = f_top / f,   a, b >= 0,   p >= 1

``a`` is time that does not follow the clock, ``b`` time that does. With p = 1 this is a + b/f, work whose
two parts follow each other; with a larger p they overlap, up to max(a, b x): memory-bound work that is flat
down to a knee of its own and compute-bound below. Calibrated at about 1, 3/4 and 1/2 of the top clock and
tested at the clocks between them, the mean error per published sweep has a median of 0.3 % (90th
percentile 1.0 %), against 0.5 % (1.8 %) for a + b/f alone: ``tools/bench_physics.py``.

The sweeps are those of GitHub blackjack2015/NV-DVFS-Benchmark (f189504ff781), zyjopensource/GPU-DVFS-Dataset
(b25725fe7eca), ghazanfarttu/Optimal-GPU-frequency-using-DNN-based-models (19c292a7cf64),
giordano/gpu-power-frequency-benchmarks (2fe08d224490), zydzydQAQ/pdblend (ee0675057ef7, 00aa76d1acd2),
Slowist-Lee/log_vllm (91b69982f550), noonghunna/club-3090 (4a29ab57d42a), HKBU-HPML/GPU-DVFS-Job-Schedule
(7ae3c9c8ebe7), blackjack2015/dlbench_dvfs (18fe93d0c00e) and DarshEllisd/GPU-Power-Capping- (3913ea4dd90b).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from muserve.fitting import (
    Array,
    FitError,
    ascending_samples,
    check_range,
    left_out_error,
    non_negative_least_squares,
)

NOISE = 0.01
"""Spread of run times: that of repeated runs of an LLM (Slowist-Lee) is 0.8 % (median) to 1.3 % (p90)."""

_EXPONENTS = np.geomspace(1.0, 32.0, 25)
_EQUAL = 1e-12
_NORMAL_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedTime:
    """A time law, and how far to trust it.

    ``sensitivity`` is the compute share k of the best a + b/f, whatever the exponent, with its 95 %
    interval. ``error`` is that at left-out samples, None for two samples, which leave nothing to test.
    """

    lowest_mhz: float
    top_mhz: float
    fixed_ms: float
    clocked_ms: float
    exponent: float
    sensitivity: float
    sensitivity_low: float
    sensitivity_high: float
    points: int
    error: FitError | None

    @property
    def form(self) -> str:
        """The law in words."""
        return "a + b/f" if self.exponent == 1 else "p-norm"

    def latency_ms(self, clock_mhz: float) -> float:
        """Time at a clock; ValueError outside of the fitted range."""
        check_range(clock_mhz, self.lowest_mhz, self.top_mhz)
        return float(_law(self.fixed_ms, self.clocked_ms, self.exponent, np.array(self.top_mhz / clock_mhz)))


def fit_time(latency_ms: Mapping[float, float], *, knee_mhz: float = 0.0, noise: float = NOISE) -> FittedTime:
    """Fit samples of latency by clock in MHz, at two clocks or more; two give a + b/f.

    Samples below ``knee_mhz`` are left out: there time follows no such law. ``noise`` is the relative spread
    of a sample that the interval of the sensitivity allows for at least. ValueError for too few samples, for
    samples that are not positive, or for a noise that is not.
    """
    if not noise > 0:
        raise ValueError(f"expected a positive noise, got {noise}")
    clocks, times = ascending_samples(latency_ms, knee_mhz, least=2)
    fixed, clocked, exponent = _fit(clocks, times)
    k, low, high = _sensitivity(clocks[-1] / clocks, times, noise)
    return FittedTime(
        lowest_mhz=float(clocks[0]),
        top_mhz=float(clocks[-1]),
        fixed_ms=fixed,
        clocked_ms=clocked,
        exponent=exponent,
        sensitivity=k,
        sensitivity_low=low,
        sensitivity_high=high,
        points=len(clocks),
        error=left_out_error(clocks, times, _predict),
    )


def _predict(clocks: Array, times: Array, clock_mhz: float) -> float:
    return float(_law(*_fit(clocks, times), np.array(clocks[-1] / clock_mhz)))


def _fit(clocks: Array, times: Array) -> tuple[float, float, float]:
    """``(a, b, p)`` of least relative error in squares; the smaller p of two that do equally well."""
    x = clocks[-1] / clocks
    exponents = _EXPONENTS if len(clocks) > 2 else _EXPONENTS[:1]
    laws = [(*_fixed_and_clocked(x, times, exponent), float(exponent)) for exponent in exponents]
    misses = [float(np.sum((_law(*law, x) / times - 1) ** 2)) for law in laws]
    return laws[int(np.argmax(np.array(misses) <= min(misses) + _EQUAL))]


def _fixed_and_clocked(x: Array, times: Array, exponent: float) -> tuple[float, float]:
    """``a`` and ``b`` of the law for one exponent, in which their powers are linear."""
    scale = times.min()
    powers = (times / scale) ** exponent
    a, b = non_negative_least_squares(
        np.stack([1 / powers, x**exponent / powers], axis=1), np.ones_like(times)
    )
    return float(scale * a ** (1 / exponent)), float(scale * b ** (1 / exponent))


def _law(fixed: float, clocked: float, exponent: float, x: Array) -> Array:
    larger = np.maximum(fixed, clocked * x)
    # Scaled by the larger term, because a power of 32 overflows.
    return np.asarray(
        larger * ((fixed / larger) ** exponent + (clocked * x / larger) ** exponent) ** (1 / exponent)
    )


def _sensitivity(x: Array, times: Array, noise: float) -> tuple[float, float, float]:
    """``k = b / (a + b)`` of a + b x by least squares, and its 95 % interval, all within [0, 1].

    The spread is that of the residuals, but never less than ``noise``, carried over to k to first order.
    """
    columns = np.stack([1 / times, x / times], axis=1)
    a, b = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)[0]
    misses = columns @ np.array([a, b]) - 1
    freedom = len(times) - 2
    spread = max(noise, float(np.sqrt(misses @ misses / freedom)) if freedom else 0.0)
    gradient = np.array([-b, a]) / (a + b) ** 2
    half = _NORMAL_95 * spread * float(np.sqrt(gradient @ np.linalg.inv(columns.T @ columns) @ gradient))
    k = float(b / (a + b))
    low, middle, high = (float(np.clip(value, 0.0, 1.0)) for value in (k - half, k, k + half))
    return middle, low, high

"""What a simulation found: plain data, and how it is made from the tallies. All of it is simulated.

Quantiles come from a histogram of bins 1 % wide on a logarithmic scale (each is the bin's geometric
middle, so its relative error is below 0.5 %). Confidence intervals are those of batch means: measured
requests are grouped by arrival into 32 equal spans, and the means of the groups are treated as
independent (A. Law, Simulation Modeling and Analysis, section 9.5.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from muplan.simulator.world import BIN_RATIO, GROUPS, SHORTEST_MS, Array

# The 97.5 % quantile of Student's t with GROUPS - 1 = 31 degrees of freedom.
_T_QUANTILE = 2.0395


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean, and half the width of its 95 % confidence interval (NaN when there is too little to tell)."""

    value: float
    margin: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.margin

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResult:
    """One model's measured requests. Attainment counts the dropped as missed; JCTs are of the completed."""

    name: str
    arrived: int
    completed: int
    dropped: int
    attainment: Estimate
    jct_ms: Estimate
    jct_p50_ms: float
    jct_p95_ms: float
    jct_p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuResult:
    """One GPU from warm-up to horizon. Energy includes idle time; ``clock_mhz`` is the mean over time."""

    name: str
    busy_share: float
    energy_j: float
    average_power_w: float
    clock_mhz: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """Everything that was found; models and GPUs in the order of the scenario.

    ``throughput_rps`` is measured completions over their makespan: from the end of the warm-up to the last
    completion. ``requests`` counts all arrivals, also those before the measurement.
    """

    models: tuple[ModelResult, ...]
    gpus: tuple[GpuResult, ...]
    throughput_rps: float
    requests: int

    @property
    def power_w(self) -> float:
        """Average power of the whole cluster, idle GPUs included."""
        return sum(gpu.average_power_w for gpu in self.gpus)


def model_result(name: str, tallies: Array, histogram: npt.NDArray[np.int64]) -> ModelResult:
    """The result of one model from its [GROUPS] tallies and its [BINS] latency counts."""
    arrived, completed = int(tallies["arrived"].sum()), int(tallies["completed"].sum())
    return ModelResult(
        name=name,
        arrived=arrived,
        completed=completed,
        dropped=int(tallies["dropped"].sum()),
        attainment=_ratio(tallies["met"].astype(float), tallies["arrived"].astype(float)),
        jct_ms=_ratio(tallies["jct_ms"], tallies["completed"].astype(float)),
        jct_p50_ms=quantile_ms(histogram, 0.5),
        jct_p95_ms=quantile_ms(histogram, 0.95),
        jct_p99_ms=quantile_ms(histogram, 0.99),
    )


def quantile_ms(histogram: npt.NDArray[np.int64], share: float) -> float:
    """The latency that ``share`` of the counted requests stayed within; NaN when none was counted."""
    total = int(histogram.sum())
    if not total:
        return math.nan
    place = int(np.searchsorted(np.cumsum(histogram), math.ceil(share * total)))
    return float(SHORTEST_MS * BIN_RATIO ** (place + 0.5))


def _ratio(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> Estimate:
    """sum(above) / sum(below), with the margin of a ratio estimator over the groups."""
    total = float(below.sum())
    if total == 0.0:
        return Estimate(value=math.nan, margin=math.nan)
    value = float(above.sum()) / total
    deviations = (above - value * below) / (total / GROUPS)
    margin = _T_QUANTILE * float(deviations.std(ddof=1)) / math.sqrt(GROUPS)
    return Estimate(value=value, margin=margin if np.count_nonzero(below) > GROUPS / 2 else math.nan)

"""What one arm of a comparison measured, and the figures made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from muplan.load.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTrace:
    """Samples of one GPU during an arm.

    ``time_s`` is since the load's start, ``energy_j`` a counter, ``utilisation`` a share in [0, 1].
    """

    gpu: str
    time_s: tuple[float, ...]
    clock_mhz: tuple[int, ...]
    energy_j: tuple[float, ...]
    utilisation: tuple[float, ...]

    @property
    def burnt_j(self) -> float:
        """Energy between the first and the last sample, idle included."""
        return self.energy_j[-1] - self.energy_j[0]

    @property
    def mean_clock_mhz(self) -> float:
        """Time-weighted mean of the sampled clock."""
        spans = np.diff(self.time_s)
        return float(np.average(self.clock_mhz[:-1], weights=spans))

    @property
    def mean_utilisation(self) -> float:
        """Mean of the sampled utilisation."""
        return float(np.mean(self.utilisation))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One arm as it ran. ``outcomes`` are in the order of planned arrival, the same in every arm.

    ``window_s`` is the time over which energy was counted, from the load's start. ``overrun_s`` is, for
    each model, the time by which the CPU that computes the real answers was slower than the virtual GPU.
    """

    name: str
    description: str
    window_s: float
    outcomes: tuple[Outcome, ...]
    gpus: tuple[GpuTrace, ...]
    overrun_s: Mapping[str, float]

    def jct_s(self, model: str | None = None) -> npt.NDArray[np.float64]:
        """JCTs of the completed requests of ``model`` (default: of all), in order of arrival."""
        return np.array(
            [
                outcome.jct_s
                for outcome in self.outcomes
                if outcome.jct_s is not None and model in (None, outcome.request.model)
            ]
        )

    def cpu_share(self, model: str) -> float:
        """Share of the JCT of ``model`` that was CPU overrun, in [0, 1]."""
        total_s = float(self.jct_s(model).sum())
        return min(1.0, self.overrun_s.get(model, 0.0) / total_s) if total_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JctFigures:
    """Mean and percentiles of the JCT of completed requests, in seconds."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """Fates of a model's requests: ``good`` met the SLO, ``failed`` includes given up and rejected."""

    arrived: int
    completed: int
    failed: int
    good: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmFigures:
    """The figures of one arm, as they stand in ``report.json``.

    ``jct_s`` is over all models together. None stands for a figure that does not exist, such as the JCT
    of a model of which nothing completed.
    """

    description: str
    window_s: float
    energy_j: float
    energy_j_by_gpu: dict[str, float]
    average_power_w: float
    good_requests: int
    joules_per_good_request: float | None
    requests: dict[str, RequestCounts]
    attainment: dict[str, float]
    jct_s: JctFigures | None
    jct_s_by_model: dict[str, JctFigures | None]
    makespan_throughput_rps: float
    mean_clock_mhz: dict[str, float]
    mean_utilisation: dict[str, float]
    sender_lateness_ms: dict[str, float]
    overrun_s: dict[str, float]
    errors: dict[str, int]


def arm_figures(run: ArmRun, slo_ms: Mapping[str, float]) -> ArmFigures:
    """Compute the figures of ``run``; ``slo_ms`` names the models, in the order to show them.

    Attainment is the share of *arrived* requests that were answered within the SLO; a model to which
    nothing was sent has none. Energy is that of all GPUs over the whole window, idle included.
    """
    counts = {model: _counts(run.outcomes, model, slo) for model, slo in slo_ms.items()}
    energy_by_gpu = {trace.gpu: trace.burnt_j for trace in run.gpus}
    energy_j = sum(energy_by_gpu.values())
    good = sum(count.good for count in counts.values())
    return ArmFigures(
        description=run.description,
        window_s=run.window_s,
        energy_j=energy_j,
        energy_j_by_gpu=energy_by_gpu,
        average_power_w=energy_j / run.window_s,
        good_requests=good,
        joules_per_good_request=energy_j / good if good else None,
        requests=counts,
        attainment={m: c.good / c.arrived for m, c in counts.items() if c.arrived},
        jct_s=_jct_figures(run.jct_s()),
        jct_s_by_model={model: _jct_figures(run.jct_s(model)) for model in slo_ms},
        makespan_throughput_rps=_throughput(run.outcomes),
        mean_clock_mhz={trace.gpu: trace.mean_clock_mhz for trace in run.gpus},
        mean_utilisation={trace.gpu: trace.mean_utilisation for trace in run.gpus},
        sender_lateness_ms=_lateness(run.outcomes),
        overrun_s=dict(run.overrun_s),
        errors=_tally(run.outcomes, lambda outcome: outcome.error),
    )


def _counts(outcomes: Sequence[Outcome], model: str, slo_ms: float) -> RequestCounts:
    own = [outcome for outcome in outcomes if outcome.request.model == model]
    completed = sum(outcome.completed_s is not None for outcome in own)
    return RequestCounts(
        arrived=len(own),
        completed=completed,
        failed=len(own) - completed,
        good=sum(1 for outcome in own if outcome.met(slo_ms)),
    )


def _jct_figures(jct_s: npt.NDArray[np.float64]) -> JctFigures | None:
    if not len(jct_s):
        return None
    p50, p95, p99 = (float(q) for q in np.quantile(jct_s, [0.5, 0.95, 0.99]))
    return JctFigures(mean=float(jct_s.mean()), p50=p50, p95=p95, p99=p99)


def _throughput(outcomes: Sequence[Outcome]) -> float:
    """Completed requests over the makespan: from the load's start to the last completion."""
    completions = [o.completed_s for o in outcomes if o.completed_s is not None]
    return len(completions) / max(completions) if completions else 0.0


def _lateness(outcomes: Sequence[Outcome]) -> dict[str, float]:
    lateness_ms = np.array([outcome.lateness_s * 1000 for outcome in outcomes] or [0.0])
    return {
        "p50": float(np.quantile(lateness_ms, 0.5)),
        "p99": float(np.quantile(lateness_ms, 0.99)),
        "max": float(lateness_ms.max()),
    }


def _tally(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, int]:
    tally: dict[str, int] = {}
    for outcome in outcomes:
        if text := key(outcome):
            tally[text] = tally.get(text, 0) + 1
    return tally

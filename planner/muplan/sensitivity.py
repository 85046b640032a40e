"""Time laws of sequences of kernels: latency at the top clock and the clock sensitivity with its range.

Kernels of one stream run one after another, so times add, and so do their derivatives:
``k = sum(dt_i/dx) / sum(t_i)``. The range spans the plausible efficiencies of the runtime and the
curvature of the law: its upper end covers the mean slope from the part's knee to its top clock, because
the linear law of the plan must not promise more speed at low clocks than the roofline does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from muplan.profile.operators import OperatorCost
from muplan.profile.roofline import GRAPH_RUNTIME, Efficiency, KernelTime, Runtime, operator_time
from muserve.gpu.parts import Part
from muserve.plan import Basis, Phase, Sensitivity, TimeLaw


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTimes:
    """Latency at the top clock of ``part`` and sensitivity of every operator of one phase, in graph order."""

    phase: Phase
    part: str
    latency_ms: tuple[float, ...]
    sensitivity: tuple[float, ...]


def phase_times(phase: Phase, part: Part, times: Sequence[KernelTime]) -> OperatorTimes:
    """``times``, which are those on ``part``, as plain numbers."""
    return OperatorTimes(
        phase=phase,
        part=part.name,
        latency_ms=tuple(time.latency_ms for time in times),
        sensitivity=tuple(time.sensitivity for time in times),
    )


def operator_times(
    costs: Sequence[OperatorCost], part: Part, dtype: str, runtime: Runtime = GRAPH_RUNTIME
) -> tuple[KernelTime, ...]:
    """Expected time of every operator, in the order of ``costs``."""
    return tuple(operator_time(cost, part, dtype, runtime.expected) for cost in costs)


def stage_law(
    costs: Sequence[OperatorCost],
    part: Part,
    dtype: str,
    runtime: Runtime = GRAPH_RUNTIME,
    phase: Phase = Phase.INFERENCE,
) -> TimeLaw:
    """The law of one run of a partition made of ``costs``."""

    def times(use: Efficiency) -> list[KernelTime]:
        return [operator_time(cost, part, dtype, use) for cost in costs]

    return sum_law(phase, times, part, runtime)


def sum_law(
    phase: Phase, times: Callable[[Efficiency], Sequence[KernelTime]], part: Part, runtime: Runtime
) -> TimeLaw:
    """The law of kernels run one after another; ``times`` gives them for a set of coefficients."""
    expected = times(runtime.expected)
    value = _slope(expected)
    to_knee = part.top_clock_mhz / part.knee_mhz
    ends = [times(runtime.least_sensitive), times(runtime.most_sensitive), expected]
    slopes = [value, *(_slope(kernels) for kernels in ends), *(_secant(k, to_knee) for k in ends)]
    sensitivity = Sensitivity(
        value=value, low=max(min(slopes), 0.0), high=min(max(slopes), 1.0), basis=Basis.MODELLED
    )
    latency_ms = sum(kernel.latency_ms for kernel in expected)
    return TimeLaw(phase=phase, latency_ms=latency_ms, sensitivity=sensitivity, basis=Basis.MODELLED)


def _slope(kernels: Sequence[KernelTime]) -> float:
    """``k``: the derivative of the summed time at the top clock, relative to it."""
    total = sum(kernel.latency_ms for kernel in kernels)
    return min(sum(kernel.clocked_ms for kernel in kernels) / total, 1.0) if total else 0.0


def _secant(kernels: Sequence[KernelTime], clock_ratio: float) -> float:
    """Mean slope between the top clock and the clock ``clock_ratio`` times lower."""
    total = sum(kernel.latency_ms for kernel in kernels)
    if clock_ratio <= 1 or not total:
        return _slope(kernels)
    return (sum(kernel.at(clock_ratio) for kernel in kernels) / total - 1) / (clock_ratio - 1)

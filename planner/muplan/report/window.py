"""The same span of time for every arm, so that their energies can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from muplan.report.arm import ArmRun, GpuTrace


def same_window(runs: Sequence[ArmRun], load_s: float) -> tuple[ArmRun, ...]:
    """Cut every arm where the load (``load_s``) has ended and the slowest arm gave its last answer.

    An arm that was not sampled for so long keeps the window it has; ``window_s`` tells.
    """
    last_s = [o.completed_s for run in runs for o in run.outcomes if o.completed_s is not None]
    end_s = max([load_s, *last_s])
    return tuple(_cut_run(run, end_s) for run in runs)


def _cut_run(run: ArmRun, end_s: float) -> ArmRun:
    traces = tuple(_cut(trace, end_s) for trace in run.gpus)
    return replace(run, gpus=traces, window_s=traces[0].time_s[-1] - traces[0].time_s[0])


def _cut(trace: GpuTrace, end_s: float) -> GpuTrace:
    kept = sum(time_s < end_s for time_s in trace.time_s)
    if kept in (0, len(trace.time_s)):
        return trace
    energy_j = float(np.interp(end_s, trace.time_s, trace.energy_j))
    return replace(
        trace,
        time_s=(*trace.time_s[:kept], end_s),
        clock_mhz=trace.clock_mhz[: kept + 1],
        energy_j=(*trace.energy_j[:kept], energy_j),
        utilisation=trace.utilisation[: kept + 1],
    )

"""Pictures of a plan: its power beside other ways to run the same load, and where each model is sensitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muplan.report.drawing import COLOURS, LIMIT_COLOUR, Plot, svg_uri
from muplan.sensitivity import OperatorTimes
from muplan.staging import StagedModel
from muserve.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More operators than this are merged with their neighbours: no picture shows them apart.
_MOST_BARS = 1200

_STRIP_COLOURS = (COLOURS[1], COLOURS[3])


def power_plot(plan: Plan, baselines_w: Mapping[str, float | None]) -> Plot:
    """Predicted power of the plan, of its placement at default clocks, and of other placements.

    A baseline without a figure misses an SLO: it is named in the caption.
    """
    others = {f"{name}, top clocks": watts for name, watts in baselines_w.items() if watts is not None}
    missing = [name for name, watts in baselines_w.items() if watts is None]
    power_w = {
        "this plan": plan.predicted_power_w,
        "this placement, default clocks": plan.default_clock_power_w,
        **others,
    }
    parked = " Other placements park the GPUs that they leave empty." if others else ""
    left_out = f" Left out, for they miss an SLO: {', '.join(missing)}." if missing else ""
    return Plot(
        title="Predicted power",
        caption="Average of all GPUs, idle and parked ones included, for the load of the spec. Modelled, not "
        f"measured. In brackets: the plan's power over this one's.{parked}{left_out}",
        uri=svg_uri((1, 1), 0.7 + 0.36 * len(power_w), lambda axes: _draw_power(axes[0], power_w)),
    )


def sensitivity_plot(model: StagedModel) -> Plot:
    """Sensitivity of every operator along the graph, one row for each phase, with the cuts."""
    phases = model.operators
    cuts = f"; {len(model.cuts)} cut{'s'[: len(model.cuts) > 1]}" if model.cuts else ""
    return Plot(
        title=model.spec.name,
        caption=f"{model.spec.source}, modelled for {phases[0].part}{cuts}.",
        uri=svg_uri((len(phases), 1), 0.5 + 1.45 * len(phases), lambda axes: _draw_strips(axes, model)),
    )


def _draw_power(axis: Axes, power_w: Mapping[str, float]) -> None:
    names, values = list(power_w), list(power_w.values())
    bars = axis.barh(names, values, height=0.62, color=[COLOURS[1], *[COLOURS[0]] * (len(names) - 1)])
    ratios = ["", *(f"  (plan x{values[0] / value:.2f})" for value in values[1:])]
    labels = [f"{value:.0f} W{ratio}" for value, ratio in zip(values, ratios, strict=True)]
    axis.bar_label(bars, labels=labels, padding=5, fontsize=8)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.2)
    axis.set_xlabel("W")


def _draw_strips(axes: Sequence[Axes], model: StagedModel) -> None:
    for axis, times in zip(axes, model.operators, strict=True):
        _draw_strip(axis, times, _bounds(model, times))
        axis.set_title(f"{times.phase.value}, {sum(times.latency_ms):.2f} ms at the top clock")
    axes[-1].set_xlabel("% of the time")


def _bounds(model: StagedModel, times: OperatorTimes) -> list[int]:
    """Positions that the partitions start at, and the end; one partition where they are not made of these."""
    ends = np.cumsum([0, *(partition.operators for partition in model.partitions)])
    return [int(end) for end in ends] if ends[-1] == len(times.latency_ms) else [0, len(times.latency_ms)]


def _draw_strip(axis: Axes, times: OperatorTimes, bounds: Sequence[int]) -> None:
    percent_per_ms = 100 / (sum(times.latency_ms) or 1.0)
    axis.axvspan(0, 100, color="#eef1f5", linewidth=0)
    start = 0.0
    for number, (low, high) in enumerate(pairwise(bounds)):
        latency_ms, sensitivity = merged(
            np.array(times.latency_ms[low:high]), np.array(times.sensitivity[low:high]), _MOST_BARS
        )
        if not len(latency_ms):  # nothing but views: no time to show
            continue
        edges = start + np.concatenate([[0.0], np.cumsum(latency_ms)]) * percent_per_ms
        colour = _STRIP_COLOURS[number % len(_STRIP_COLOURS)]
        axis.stairs(sensitivity, edges, fill=True, color=colour, alpha=0.75, linewidth=0)
        mean = float(np.average(sensitivity, weights=latency_ms))
        axis.hlines(mean, edges[0], edges[-1], color="#1d2430", linewidth=1.2)
        label = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        middle = (edges[0] + edges[-1]) / 2
        axis.text(middle, mean, f"{mean:.2f}", fontsize=8, ha="center", va="center", bbox=label)
        if number:
            axis.axvline(start, color=LIMIT_COLOUR, linestyle="--", linewidth=1.2)
        start = float(edges[-1])
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 1)
    axis.set_ylabel("k")
    axis.grid(visible=False)


def merged(
    latency_ms: NDArray[np.float64], sensitivity: NDArray[np.float64], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Operators that take time; if there are more than ``most``, neighbours as one with their mean ``k``."""
    takes_time = latency_ms > 0
    latency_ms, sensitivity = latency_ms[takes_time], sensitivity[takes_time]
    if len(latency_ms) <= most:
        return latency_ms, sensitivity
    starts = np.linspace(0, len(latency_ms), most, endpoint=False).astype(int)
    together_ms = np.add.reduceat(latency_ms, starts)
    return together_ms, np.add.reduceat(latency_ms * sensitivity, starts) / together_ms

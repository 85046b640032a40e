"""``muplan profile``: what a model costs on a GPU part, modelled or measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from muplan.interruption import interruptible, postponed, uninterrupted
from muserve.console import table_console
from muserve.errors import InputError
from muserve.gpu.parts import load_part, read_part

if TYPE_CHECKING:
    from muplan.profile.bench import Bench
    from muplan.profile.buckets import Work
    from muplan.profile.record import Profile
    from muplan.sources import LoadedModel

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
    "--gpu", "part_name", required=True, metavar="PART", help="GPU part of muplan catalog, or a part file."
)
@click.option(
    "--batch", callback=_sizes, metavar="N,...", help="Inputs of a run, or running requests of a decode step."
)
@click.option("--prompt", callback=_sizes, metavar="N,...", help="Tokens of a prefill.")
@click.option("--context", callback=_sizes, metavar="N,...", help="Tokens in each running request's cache.")
@click.option(
    "--dim", callback=_dims, multiple=True, metavar="AXIS=SIZE", help="Size of another dynamic axis."
)
@click.option("--measure", is_flag=True, help="Time a real GPU at locked clocks instead of modelling it.")
@click.option(
    "--device", type=click.IntRange(0), default=0, show_default=True, help="NVML index to measure on."
)
@click.option("--virtual", is_flag=True, help="Rehearse --measure on a virtual GPU; figures stay modelled.")
@click.option(
    "--clocks",
    type=click.IntRange(4, 64),
    default=5,
    show_default=True,
    help="Clocks to measure at, from the knee to the top.",
)
@click.option(
    "--pieces",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="Partitions to measure beside the whole model.",
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
    measure: bool,
    device: int,
    virtual: bool,
    clocks: int,
    pieces: int,
    output: Path | None,
    top: int,
    as_json: bool,
) -> None:
    """Show what MODEL costs on a GPU, by operator and candidate partition, and how the clock matters.

    MODEL is a source as in a spec (onnx:PATH, ...); a bare name is one of the catalogue. Figures are modelled
    unless --measure times a real GPU; a measurement that was stopped goes on from OUTPUT.journal.
    """
    with interruptible("nothing was begun"), postponed():
        from muplan.profile.bench import open_bench, virtual_bench
        from muplan.profile.buckets import Sizes, bucket_works
        from muplan.profile.modelled import modelled_profile
        from muplan.profile.profile_file import profile_bytes
        from muplan.profile.tables import profile_view
        from muplan.sources import load_source

    part = read_part(Path(part_name)) if part_name.endswith(".json") else load_part(part_name)
    source = load_source(model if ":" in model else f"catalog:{model}", Path())
    sizes = Sizes(batches=batch, prompts=prompt, contexts=context, dims=dim)
    if output is not None:
        _check_writable(output)
    if virtual and not measure:
        raise InputError("--virtual: expected together with --measure")
    if measure:
        if output is None:
            raise InputError(
                "--measure: expected --output, where the journal of finished points goes as well"
            )
        works = tuple(bucket_works(source, sizes))
        with ExitStack() as stack:
            unlocked = f"the clock is unlocked; the same command goes on from {_journal_file(output)}"
            stack.enter_context(interruptible(unlocked))
            if virtual:
                bench = stack.enter_context(virtual_bench(part, clocks, pieces))
            else:
                bench = open_bench(part, device, clocks, pieces)
            profile = _measured(source, works, bench, output)
    else:
        with interruptible("no profile was written"), _progress() as progress:
            task = progress.add_task("profiling", total=None)
            profile = modelled_profile(
                source,
                part,
                bucket_works(source, sizes),
                lambda work: progress.update(task, description=str(work)),
            )
        if output is not None:
            _write(output, profile)
    if output is not None:
        click.echo(f"muplan: profile written to {output}", err=True)
    if as_json:
        click.echo(profile_bytes(profile), nl=False)
        return
    table_console().print(profile_view(profile, top))


def _measured(source: LoadedModel, works: tuple[Work, ...], bench: Bench, output: Path) -> Profile:
    """The measured profile, continued from the journal beside ``output`` when there is one."""
    from muplan.profile.journal import Journal
    from muplan.profile.measured import journal_identity, measured_profile

    if not bench.locks:
        click.echo(
            f"muplan: the clock of {bench.gpu.identity.name} may not be locked (that needs root): "
            "measuring at its default clock only, k stays modelled",
            err=True,
        )
    identity = journal_identity(source, works, bench)
    with Journal(_journal_file(output), identity) as journal, _progress() as progress:
        profile = measured_profile(source, works, bench, journal, _Bar(progress))
        _write(output, profile)
        journal.remove()
    return profile


def _journal_file(output: Path) -> Path:
    return output.with_name(output.name + ".journal")


class _Bar:
    """A measurement's ``Watcher``: one bar over all points."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)

    def started(self, points: int, finished: int) -> None:
        if finished:
            self._progress.console.print(f"muplan: {finished} of {points} points are in the journal already")
        self._progress.update(self._task, total=points, completed=finished)

    def measuring(self, what: str) -> None:
        self._progress.update(self._task, description=what)

    def measured(self) -> None:
        self._progress.advance(self._task)


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

    content = profile_bytes(profile)
    with uninterrupted():
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(name, 0o644)
        os.replace(name, file)

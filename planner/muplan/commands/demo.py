"""``muplan demo``: the options, and progress on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from muplan.interruption import interruptible
from muplan.load.replay import LoadProgress
from muplan.measure import Watcher
from muserve.errors import InputError

_LINE_EVERY_S = 10.0
_STOPPED = "Triton and the power daemon are stopped, the clocks unlocked"
_MOST_SECONDS = 24 * 3600.0


@click.command()
@click.option(
    "--spec",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The spec to run. [default: the quickstart: 2 virtual GPUs, 3 models]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/demo"),
    show_default=True,
    help="Where plans, logs, report.json and report.html go.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(5, _MOST_SECONDS),
    default=110.0,
    show_default=True,
    help="Length of the load of each of the two arms.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the load.")
@click.option(
    "--tritonserver",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The tritonserver program; default: $TRITONSERVER, PATH, then the nvidia-pytriton wheel.",
)
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of the table.")
def command(
    spec: Path | None, output: Path, seconds: float, seed: int, tritonserver: Path | None, as_json: bool
) -> None:
    """Plan, serve, load and compare: the whole job on virtual GPUs in about 5 minutes.

    Serves the quickstart with a real Triton and replays the same real prompts twice: first come first
    served at default clocks, then shortest predicted job first with the power daemon. GPUs are VIRTUAL.
    """
    from muplan.demo import DemoOptions, run_demo
    from muplan.report.terminal import print_report

    options = DemoOptions(
        spec=spec or _quickstart(), output=output, seconds=seconds, seed=seed, tritonserver=tritonserver
    )
    console = Console(stderr=True)
    with interruptible(_STOPPED), _quiet_logs(), ConsoleWatcher(console) as watcher:
        report = run_demo(options, watcher)
    if as_json:
        click.echo(report.json_text(), nl=False)
    else:
        print_report(report, Console())
    click.echo(f"\nreport: {output / 'report.html'} and {output / 'report.json'}", err=True)


class ConsoleWatcher(Watcher):
    """Progress on a console: a live bar on a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._next_line_s = 0.0

    def __enter__(self) -> ConsoleWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str) -> None:
        self._console.print(f"[bold green]>[/] {escape(text)}", highlight=False, soft_wrap=True)
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task("", total=None, detail="")
        self._next_line_s = _LINE_EVERY_S

    def load(self, progress: LoadProgress, window_s: float, clock_mhz: Mapping[str, int]) -> None:
        clocks = "/".join(str(clock) for clock in clock_mhz.values())
        waiting = progress.sent - progress.completed - progress.failed
        detail = (
            f"{progress.time_s:.0f} of {window_s:.0f} s: {progress.completed} answered, {waiting} waiting, "
            f"{progress.failed} failed; clocks {clocks} MHz"
        )
        if self._task is not None:
            self._progress.update(self._task, total=window_s, completed=progress.time_s, detail=detail)
        if not self._console.is_terminal and progress.time_s >= self._next_line_s:
            self._console.print(f"  {detail}", highlight=False, soft_wrap=True)
            self._next_line_s += _LINE_EVERY_S


def _quickstart() -> Path:
    """The packaged quickstart spec, the same bytes as ``examples/quickstart.yaml``."""
    packaged = Path(str(resources.files("muplan") / "quickstart.yaml"))
    if not packaged.is_file():
        raise InputError(f"{packaged}: expected the packaged quickstart; give a spec with --spec")
    return packaged


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Routine log records would tear the live bar apart; warnings still show."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(before, logging.WARNING) if before != logging.DEBUG else before)
    try:
        yield
    finally:
        root.setLevel(before)

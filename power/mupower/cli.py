"""The ``mupower`` command line. Each command lives in ``mupower.commands``."""

from __future__ import annotations

import click

from muserve import __version__
from muserve.cli import LazyGroup, set_up_logging

_COMMANDS = {
    "daemon": ("mupower.commands.daemon", "Move GPU clocks to the lowest that keep the SLOs."),
    "status": ("mupower.commands.status", "Show GPUs, clocks, power and locks."),
    "reset": ("mupower.commands.reset", "Unlock the clocks of every GPU of a plan."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
@click.version_option(__version__, prog_name="mupower")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages to stderr.")
def main(verbose: bool) -> None:
    """Tune GPU clocks from Triton's metrics."""
    set_up_logging(verbose)

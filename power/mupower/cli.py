"""The ``mupower`` command line. Each command lives in ``mupower.commands``."""

from __future__ import annotations

import click

from muserve import __version__
from muserve.cli import LazyGroup, LogFormat, set_up_logging

_COMMANDS = {
    "daemon": ("mupower.commands.daemon", "Move GPU clocks to the lowest that keep the SLOs."),
    "status": ("mupower.commands.status", "Show GPUs, clocks, power and locks."),
    "check": ("mupower.commands.check", "Say what this host permits, and how to permit the rest."),
    "reset": ("mupower.commands.reset", "Unlock the clocks of every GPU of a plan."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
@click.version_option(__version__, prog_name="mupower")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages to stderr.")
@click.option(
    "--log-format",
    type=click.Choice([form.value for form in LogFormat]),
    default=LogFormat.TEXT.value,
    envvar="MUPOWER_LOG_FORMAT",
    show_default=True,
    help="Log lines for people, or one JSON object a line.",
)
@click.pass_context
def main(context: click.Context, verbose: bool, log_format: str) -> None:
    """Tune GPU clocks from Triton's metrics."""
    context.obj = LogFormat(log_format)
    set_up_logging(verbose, context.obj)

"""The ``muplan`` command line. Each command lives in ``muplan.commands``."""

from __future__ import annotations

import click

from muserve import __version__
from muserve.cli import LazyGroup, set_up_logging

_COMMANDS = {
    "generate": ("muplan.commands.generate", "Plan a spec and write its Triton model repository."),
    "simulate": ("muplan.commands.simulate", "Simulate a plan under its load, on no GPU at all."),
    "serve": ("muplan.commands.serve", "Serve a generated repository with a real Triton."),
    "demo": ("muplan.commands.demo", "Plan, serve, load and compare: the whole job in 5 minutes."),
    "catalog": ("muplan.commands.catalog", "List the models and GPUs that come with muServe."),
    "predictor": ("muplan.commands.predictor", "Train and evaluate the output-length predictor."),
}


@click.group(cls=LazyGroup, lazy_commands=_COMMANDS)
@click.version_option(__version__, prog_name="muplan")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages to stderr.")
def main(verbose: bool) -> None:
    """Plan power-aware model serving on NVIDIA Triton."""
    set_up_logging(verbose)

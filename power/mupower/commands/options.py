"""Options that every ``mupower`` command takes, declared once."""

from __future__ import annotations

from pathlib import Path

import click

plan_option = click.option(
    "--plan",
    "plan_path",
    required=True,
    type=click.Path(path_type=Path),
    help="plan.json, or the directory that `muplan generate` wrote.",
)
node_option = click.option("--node", help="Only the GPUs of this node. [default: every GPU of the plan]")

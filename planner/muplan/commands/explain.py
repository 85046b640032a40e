"""``muplan explain``: who sits where in a plan, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from muserve.gpu.parts import PARTS_DIR
from muserve.plan import read_plan


@click.command("explain")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, metavar="NAME", help="Only this model and its GPUs.")
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Only this GPU and its models.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(plan: Path, models: tuple[str, ...], gpus: tuple[str, ...], as_json: bool) -> None:
    """Explain PLAN, a plan.json or a directory written by generate: who sits where, and why.

    All figures are predicted again from the plan alone; none is measured. --model and --gpu may be repeated.
    """
    # Imported here because they bring NumPy and rich along, which --help has no use for.
    from muplan.explain import explain_plan
    from muplan.explanation import select
    from muplan.explanation_tables import explanation_tables
    from muserve.console import table_console

    directory = plan if plan.is_dir() else plan.parent
    explanation = select(explain_plan(read_plan(plan), directory / PARTS_DIR), models, gpus)
    if as_json:
        click.echo(json.dumps(asdict(explanation), indent=2))
    else:
        table_console().print(explanation_tables(explanation))

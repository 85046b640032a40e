"""``muplan generate``: plan a spec and write its Triton model repository."""

from __future__ import annotations

import json
from pathlib import Path

import click

from muplan.interruption import interruptible, postponed
from muplan.spec import read_spec
from muplan.spec_serving import Target
from muplan.summary import summary_document, summary_table
from muserve.console import table_console

_PIPED_COLUMNS = 160


@click.command("generate")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory for the plan and the repositories: new, empty, or written by muplan before.",
)
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), help="Replaces the spec's seed.")
@click.option(
    "--target",
    type=click.Choice([target.value for target in Target]),
    help="Which Triton serves: any with the Python backend, or NVIDIA's NGC containers. Replaces the spec's.",
)
@click.option(
    "--exact", is_flag=True, help="The least power there is, not a search for it. Small cases only."
)
@click.option("--no-report", is_flag=True, help="Do not draw report.html.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    spec: Path,
    output: Path,
    seed: int | None,
    target: str | None,
    exact: bool,
    no_report: bool,
    as_json: bool,
) -> None:
    """Plan SPEC and write plan.json, report.html and one Triton model repository for each node.

    report.html shows the plan in pictures; it needs matplotlib and jinja2 (the extra "demo").
    """
    with interruptible(f"{output} is as it was"):
        with postponed():
            # Imported here because --help has no use for onnx and gRPC.

            from muplan.pipeline import generate
            from muplan.report.plan_page import REPORT_FILE, missing_packages

        def on_progress(sentence: str) -> None:
            click.echo(f"muplan: {sentence}", err=True)

        missing = () if no_report else missing_packages()
        if missing:
            packages = " and ".join(missing)
            on_progress(f"no {REPORT_FILE}, which needs {packages}: pip install 'muserve[demo]'")
        drawn = not no_report and not missing
        spec_file = read_spec(spec, seed=seed, target=Target(target) if target else None)
        plan = generate(spec_file, output, on_progress, exact=exact, report=drawn)
    if as_json:
        click.echo(json.dumps(summary_document(plan, output), indent=2))
        return
    table_console(_PIPED_COLUMNS).print(summary_table(plan, output))

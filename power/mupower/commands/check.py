"""``mupower check``: what this host permits, each refusal with its fix."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mupower.commands.options import node_option

if TYPE_CHECKING:
    from mupower.checking import Finding


@click.command()
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Check the GPUs of this plan. [default: every GPU that the driver shows]",
)
@node_option
@click.option("--metrics", "urls", multiple=True, metavar="URL", help="Also scrape this endpoint of Triton.")
@click.option("--no-probe", is_flag=True, help="Only read: try no lock and no power limit.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(
    plan_path: Path | None, node: str | None, urls: tuple[str, ...], no_probe: bool, as_json: bool
) -> None:
    """Say what this host permits, and how to permit the rest. Exit code 0 when a daemon could steer here.

    To try whether clocks may be locked, each GPU is locked at its top clock for an instant and unlocked;
    its power limit is set to what it is. A GPU that a daemon steers is left alone.
    """
    from mupower.checking import can_steer, check_metrics
    from mupower.scrape import check_url

    for url in urls:
        check_url(url)
    findings = _findings(plan_path, node, probe=not no_probe)
    findings += [check_metrics(url) for url in urls]
    steerable = can_steer(findings)
    if as_json:
        document = {"steerable": steerable, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_table(findings)
    sys.exit(0 if steerable else 1)


def _findings(plan_path: Path | None, node: str | None, *, probe: bool) -> list[Finding]:
    from mupower.checking import check_driver, check_index, check_planned
    from mupower.fleet import gpus_of_node
    from muserve.errors import InputError
    from muserve.plan import read_plan

    if plan_path is None:
        if node is not None:
            raise InputError("--node: names a node of a plan: pass --plan as well")
        findings, indices = check_driver()
        return findings + [found for index in indices for found in check_index(index, probe=probe)]
    plan = read_plan(plan_path)
    plan_dir = plan_path if plan_path.is_dir() else plan_path.parent
    wanted = gpus_of_node(plan, plan_path, node)
    findings = [] if all(gpu.virtual for gpu in wanted) else check_driver()[0]
    return findings + [found for gpu in wanted for found in check_planned(gpu, plan_dir, probe=probe)]


def _print_table(findings: list[Finding]) -> None:
    from rich import box
    from rich.table import Table

    from muserve.console import table_console

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("on", "check", "verdict"):
        table.add_column(heading, no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("fix", overflow="fold")
    colours = {"ok": "green", "warning": "yellow", "refused": "red"}
    for finding in findings:
        verdict = f"[{colours[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(finding.subject, finding.check, verdict, finding.detail, finding.fix)
    table_console().print(table)

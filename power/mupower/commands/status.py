"""``mupower status``: GPUs, clocks, power and locks of a plan."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mupower.commands.options import node_option, plan_option

if TYPE_CHECKING:
    from rich.table import Table

    from mupower.fleet import Fleet


@click.command()
@plan_option
@node_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C.")
def command(plan_path: Path, node: str | None, as_json: bool, watch: bool) -> None:
    """Show GPUs, clocks, power and locks. Changes nothing."""
    from mupower.fleet import open_fleet

    fleet = open_fleet(plan_path, node)
    try:
        if as_json:
            _print_json(fleet, watch)
        else:
            _print_table(fleet, watch)
    except KeyboardInterrupt:
        click.echo()


def rows(fleet: Fleet) -> list[dict[str, Any]]:
    """One record per GPU; a device that fails has ``error`` instead of readings."""
    from mupower.reading import read_gpu
    from muserve.errors import GpuError

    found = []
    for name, gpu in fleet.gpus.items():
        row: dict[str, Any] = {"gpu": name, "virtual": fleet.plan.gpu(name).virtual}
        row["models"] = [model.name for model in fleet.plan.models_on(name)]
        try:
            row |= {"name": gpu.identity.name, "uuid": gpu.identity.uuid}
            row |= asdict(read_gpu(gpu)) | {"top_mhz": gpu.supported_clocks_mhz()[-1]}
            row["limit_w"] = gpu.power_limits().limit_w
        except GpuError as error:
            row["error"] = str(error)
        found.append(row)
    for name, problem in fleet.absent.items():
        models = [model.name for model in fleet.plan.models_on(name)]
        found.append({"gpu": name, "virtual": False, "models": models, "error": str(problem)})
    return found


def _print_json(fleet: Fleet, watch: bool) -> None:
    """One document; when watching, one line per second."""
    while watch:
        click.echo(json.dumps(rows(fleet)))
        time.sleep(1)
    click.echo(json.dumps(rows(fleet), indent=2))


def _print_table(fleet: Fleet, watch: bool) -> None:
    from rich.live import Live

    from muserve.console import table_console

    console = table_console()
    if not watch:
        console.print(_table(fleet))
        return
    with Live(_table(fleet), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(_table(fleet), refresh=True)


def _table(fleet: Fleet) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("GPU", no_wrap=True)
    table.add_column("device")
    for heading in ("MHz", "locked", "top", "W", "limit", "J", "util"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("models", overflow="fold", min_width=12)
    for row in rows(fleet):
        models = ", ".join(row["models"])
        if "error" in row:
            table.add_row(row["gpu"], row.get("name", ""), *[""] * 7, f"{models}: {row['error']}")
            continue
        table.add_row(
            row["gpu"],
            row["name"],
            str(row["clock_mhz"]),
            "-" if row["locked_mhz"] is None else str(row["locked_mhz"]),
            str(row["top_mhz"]),
            f"{row['power_w']:.1f}",
            f"{row['limit_w']:.0f}",
            f"{row['energy_j']:.0f}",
            f"{row['utilisation']:.0%}",
            models,
        )
    return table

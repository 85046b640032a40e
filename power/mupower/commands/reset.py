"""``mupower reset``: unlock every GPU of a plan."""

from __future__ import annotations

from pathlib import Path

import click

from mupower.commands.options import node_option, plan_option


@click.command()
@plan_option
@node_option
def command(plan_path: Path, node: str | None) -> None:
    """Unlock the clocks of every GPU of a plan. Safe to run at any time, twice too."""
    from mupower.clocks import ClockLocks
    from mupower.fleet import open_fleet

    gpus = open_fleet(plan_path, node).gpus
    ClockLocks(gpus).release_all()
    for name, gpu in gpus.items():
        click.echo(f"{name}: unlocked ({gpu.identity.name}, {gpu.clock_mhz()} MHz now)")

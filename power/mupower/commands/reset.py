"""``mupower reset``: unlock every GPU of a plan."""

from __future__ import annotations

from pathlib import Path

import click

from mupower.commands.options import node_option, plan_option


@click.command()
@plan_option
@node_option
def command(plan_path: Path, node: str | None) -> None:
    """Unlock the clocks of every GPU of a plan, and take back power limits that a daemon left.

    Safe to run at any time, twice too. A GPU that fails does not keep the others from being unlocked.
    """
    from mupower.actuator import restore_limit
    from mupower.fleet import gpus_of_node, open_guarded
    from mupower.run_files import LimitNote, gpu_files
    from muserve.errors import GpuError, GpuPermissionError, GpuUnsupportedError
    from muserve.plan import read_plan

    plan = read_plan(plan_path)
    plan_dir = plan_path if plan_path.is_dir() else plan_path.parent
    failures: list[GpuError] = []
    for wanted in gpus_of_node(plan, plan_path, node):
        try:
            gpu = open_guarded(wanted, plan_dir)
            note = LimitNote(gpu_files(wanted, gpu.identity.uuid, plan_dir).limit)
            was_capped = note.read() is not None
            try:
                gpu.unlock_clock()
            except (GpuPermissionError, GpuUnsupportedError):
                # It was held by a power limit just because its clock may not be locked.
                if not was_capped:
                    raise
            finally:
                restore_limit(gpu, note)
            click.echo(f"{wanted.name}: unlocked ({gpu.identity.name}, {gpu.clock_mhz()} MHz now)")
        except GpuError as error:
            click.echo(f"{wanted.name}: not unlocked: {error}", err=True)
            failures.append(error)
    if failures:
        raise failures[0]

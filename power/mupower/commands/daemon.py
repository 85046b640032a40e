"""``mupower daemon``: the control loop, its edges put together."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from pathlib import Path

import click

from mupower.clocks import ClockLocks
from mupower.commands.options import node_option, plan_option
from mupower.control import LAW_NAMES, law_named
from mupower.daemon import Charge, Daemon, Timing
from mupower.exporter import Telemetry, serving
from mupower.fleet import Fleet, open_fleet
from mupower.scrape import Endpoints, check_url
from mupower.stopping import StopSignals
from mupower.supervisor import Supervisor
from muserve.errors import InputError

logger = logging.getLogger(__name__)

_SWITCHES_PER_PERIOD = 5
"""A period shorter than this many clock switches would judge clocks that are not in force yet."""


@click.command()
@plan_option
@click.option(
    "--metrics",
    "urls",
    required=True,
    multiple=True,
    metavar="URL",
    help="Triton's metrics endpoint, like http://127.0.0.1:8002/metrics; repeat for several Tritons.",
)
@click.option("--law", type=click.Choice(LAW_NAMES), default="miad", show_default=True)
@click.option("--period", "period_s", default=1.0, show_default=True, help="Seconds between decisions.")
@node_option
@click.option("--dry-run", is_flag=True, help="Decide and log, but lock and unlock nothing.")
@click.option("--listen", default="127.0.0.1:9105", show_default=True, help="Serve own metrics here.")
@click.option("--no-exporter", is_flag=True, help="Serve no metrics.")
@click.option(
    "--stale-after",
    "stale_after_s",
    default=5.0,
    show_default=True,
    help="Unlock when the last metrics are older than this many seconds.",
)
def command(
    plan_path: Path,
    urls: tuple[str, ...],
    law: str,
    period_s: float,
    node: str | None,
    dry_run: bool,
    listen: str,
    no_exporter: bool,
    stale_after_s: float,
) -> None:
    """Move GPU clocks to the lowest that keep the SLOs, until a signal says stop.

    Clocks are unlocked on every way out: signal, error, stale metrics, even SIGKILL.
    """
    with StopSignals() as stop, ExitStack() as stack:
        endpoints = Endpoints([check_url(url) for url in dict.fromkeys(urls)], min(1.0, period_s))
        fleet = open_fleet(plan_path, node)
        timing = _timing(period_s, stale_after_s, fleet)
        telemetry = Telemetry(law, dry_run, fleet.gpus)
        if not no_exporter:
            stack.enter_context(serving(telemetry, listen))
        beat = _no_supervisor
        if not dry_run:
            beat = stack.enter_context(Supervisor(plan_path, node, timing.lease_s)).beat
        locks = stack.enter_context(ClockLocks(fleet.gpus, dry_run=dry_run))
        daemon = Daemon(
            charges=_charges(fleet),
            law=law_named(law),
            locks=locks,
            fetch=endpoints.fetch,
            clock=time.monotonic,
            beat=beat,
            telemetry=telemetry,
            timing=timing,
            dry_run=dry_run,
        )
        _announce(fleet, law, timing, dry_run)
        daemon.run(stop.wait)
        reason = stop.received.name if stop.received else "asked to stop"
        logger.info("%s: %s", reason, "nothing was locked" if dry_run else "unlocking every GPU")


def _timing(period_s: float, stale_after_s: float, fleet: Fleet) -> Timing:
    slowest = max(fleet.parts.values(), key=lambda part: part.switch_call_ms + part.switch_settle_ms)
    switch_ms = slowest.switch_call_ms + slowest.switch_settle_ms
    least_s = _SWITCHES_PER_PERIOD * switch_ms / 1000
    if not least_s <= period_s <= 3600:
        raise InputError(
            f"--period: expected {least_s:g} to 3600 seconds ({_SWITCHES_PER_PERIOD} x the "
            f"{switch_ms:g} ms a {slowest.name} takes to switch its clock), got {period_s:g}"
        )
    if not 2 * period_s <= stale_after_s <= 86400:
        raise InputError(
            f"--stale-after: expected at least two periods ({2 * period_s:g} seconds), got {stale_after_s:g}"
        )
    return Timing(period_s=period_s, stale_after_s=stale_after_s, lease_s=max(5.0, 3 * period_s))


def _charges(fleet: Fleet) -> tuple[Charge, ...]:
    return tuple(
        Charge(
            name=name,
            gpu=gpu,
            models=fleet.plan.models_on(name),
            initial_clock_mhz=fleet.plan.gpu(name).initial_clock_mhz,
            knee_mhz=fleet.parts[name].knee_mhz,
            supported_clocks_mhz=gpu.supported_clocks_mhz(),
        )
        for name, gpu in fleet.gpus.items()
    )


def _announce(fleet: Fleet, law: str, timing: Timing, dry_run: bool) -> None:
    virtual = sum(fleet.plan.gpu(name).virtual for name in fleet.gpus)
    logger.info(
        "law %s every %g s on %s (%d of %d virtual)%s",
        law,
        timing.period_s,
        ", ".join(fleet.gpus),
        virtual,
        len(fleet.gpus),
        "; dry run: nothing will be locked" if dry_run else "",
    )


def _no_supervisor() -> None:
    """In a dry run nothing is locked, so nobody has to watch over us."""

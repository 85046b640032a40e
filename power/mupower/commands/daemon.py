"""``mupower daemon``: the control loop until a signal says stop, SIGHUP reloading its settings."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from mupower.actuator import Actuator
from mupower.control import LAW_NAMES
from mupower.daemon import Daemon
from mupower.fleet import open_fleet
from mupower.notify import ServiceNotifier
from mupower.service import assembled, check_period
from mupower.settings import Settings, load_settings
from mupower.stopping import StopSignals
from muserve.cli import LogFormat
from muserve.errors import MuServeError

logger = logging.getLogger(__name__)


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="MUPOWER_CONFIG",
    help="YAML file with the settings below (period_s, stale_after_s: with their unit).",
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    help="plan.json, or the directory that `muplan generate` wrote.",
)
@click.option(
    "--metrics",
    multiple=True,
    metavar="URL",
    help="Triton's metrics endpoint, like http://127.0.0.1:8002/metrics; repeat for several Tritons.",
)
@click.option("--law", type=click.Choice(LAW_NAMES), help="[default: miad]")
@click.option(
    "--period",
    "period_s",
    type=float,
    help="Seconds between decisions. [default: 1, or 5 clock switches if that is longer]",
)
@click.option("--node", help="Only the GPUs of this node. [default: every GPU of the plan]")
@click.option(
    "--actuator",
    type=click.Choice([actuator.value for actuator in Actuator]),
    help="Lock clocks, or limit power where clocks may not be locked. [default: auto]",
)
@click.option("--dry-run/--no-dry-run", default=None, help="Decide and log, but lock and unlock nothing.")
@click.option("--listen", help="Serve own metrics and /healthz here. [default: 127.0.0.1:9105]")
@click.option("--exporter/--no-exporter", default=None, help="Serve own metrics. [default: exporter]")
@click.option(
    "--stale-after",
    "stale_after_s",
    type=float,
    help="Unlock when the last metrics are older than this many seconds. [default: 5, or 5 periods]",
)
@click.pass_context
def command(context: click.Context, /, config_file: Path | None, **flags: Any) -> None:
    """Move GPU clocks to the lowest that keep the SLOs, until a signal says stop.

    Clocks are unlocked on every way out: signal, error, stale metrics, even SIGKILL.

    A setting comes from its flag, else from MUPOWER_<SETTING>, else from the --config file, else from its
    default. SIGHUP reads them and the plan anew; if something is wrong with them, the old ones stay. In a
    terminal SIGHUP stops the daemon instead.
    """
    given = {key: value for key, value in flags.items() if value not in (None, ())}

    def load() -> Settings:
        return load_settings(given, os.environ, config_file)

    log_format = context.obj if isinstance(context.obj, LogFormat) else LogFormat.TEXT
    notifier = ServiceNotifier()
    settings, proven = load(), None
    with StopSignals(hangup_reloads=not sys.stderr.isatty()) as stop:
        while True:
            with ExitStack() as stack:
                try:
                    daemon = stack.enter_context(assembled(settings, notifier, log_format))
                except MuServeError as error:
                    if proven is None:
                        raise
                    logger.error("reload: %s: back to the old settings", error)
                    settings, proven = proven, None
                    continue
                notifier.ready(f"law {settings.law} on {settings.node or 'every node'}")
                fresh = _run(daemon, stop, load, notifier)
                if fresh is None:
                    notifier.stopping()
                    reason = stop.received.name if stop.received else "asked to stop"
                    nothing = "nothing was locked" if settings.dry_run else "unlocking every GPU"
                    logger.info("%s: %s", reason, nothing)
                    return
            settings, proven = fresh, settings


def _run(
    daemon: Daemon, stop: StopSignals, load: Callable[[], Settings], notifier: ServiceNotifier
) -> Settings | None:
    """Steer until there are new settings, which are returned, or a signal to stop: None."""
    while True:
        daemon.run(stop.wait)
        if stop.received is not None:
            return None
        if not stop.take_reload():
            continue
        notifier.reloading()
        try:
            fresh = load()
            check_period(fresh, open_fleet(fresh.plan, fresh.node))
        except MuServeError as error:
            logger.error("reload: %s: the old settings stay", error)
            notifier.ready("settings could not be reloaded")
        else:
            logger.info("reload: unlocking every GPU and starting over with the new settings")
            return fresh

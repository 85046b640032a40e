"""The daemon with its edges put together: devices, leases, supervisor, locks, exporter.

What is entered is left in reverse: clocks are unlocked first, then the supervisor is told goodbye, then
the leases go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from mupower.actuator import Actuator, CapHold, choose_actuator
from mupower.clocks import ClockLocks
from mupower.control import law_named
from mupower.daemon import Charge, Daemon, Timing
from mupower.exporter import Pulse, Telemetry, serving
from mupower.fleet import Fleet, holds, open_fleet
from mupower.lease import leases
from mupower.notify import ServiceNotifier
from mupower.scrape import Endpoints
from mupower.settings import Settings
from mupower.supervisor import Supervisor
from mupower.switching import (
    SWITCHES_PER_PERIOD,
    dwell_s,
    least_period_s,
    measure_switches,
)
from muserve.cli import LogFormat
from muserve.errors import GpuUnsupportedError, InputError
from muserve.gpu.parts import Part

logger = logging.getLogger(__name__)

_LEAST_PERIOD_S = 1.0
_LEAST_STALE_S = 5.0
# Below 5 s with the unlocking itself, which is what a daemon that hangs may cost.
_LEAST_LEASE_S = 4.5


@contextmanager
def assembled(settings: Settings, notifier: ServiceNotifier, log_format: LogFormat) -> Iterator[Daemon]:
    """A daemon ready to run, its GPUs ours and unlocked; on leaving they are unlocked again.

    Raises InputError for settings that do not fit the GPUs, GpuBusyError when another daemon steers one,
    GpuError when a device refuses, MuServeError when the supervisor does not start.
    """
    fleet = open_fleet(settings.plan, settings.node)
    check_period(settings, fleet)
    for name, problem in fleet.absent.items():
        logger.error("%s: left alone until the next start or reload: %s", name, problem)
    steers = not settings.dry_run and settings.law != "default"
    with ExitStack() as stack:
        if not settings.dry_run:
            stack.enter_context(leases({name: files.lease for name, files in fleet.files.items()}))
        telemetry = Telemetry(settings.law, settings.dry_run, fleet.gpus, absent=len(fleet.absent))
        lease_s = max(_LEAST_LEASE_S, 3 * (settings.period_s or _LEAST_PERIOD_S))
        pulse = Pulse(lease_s)
        if settings.exporter:
            stack.enter_context(serving(telemetry, settings.listen, pulse))
        actuators = _actuators(settings, fleet, probe=steers)
        beats = [pulse.beat, notifier.alive]
        if not settings.dry_run:
            capped = [name for name, actuator in actuators.items() if actuator is Actuator.CAP]
            supervisor = Supervisor(settings.plan, settings.node, lease_s, capped, log_format)
            beats.append(stack.enter_context(supervisor).beat)
        switch_s = _slowest_switch_s(fleet, actuators, telemetry, beats, measure=steers)
        timing = _timing(settings, switch_s, lease_s)
        if notifier.watchdog_s is not None and timing.period_s > notifier.watchdog_s / 2:
            raise InputError(
                f"--period: expected at most half of systemd's WatchdogSec ({notifier.watchdog_s:g} s),"
                f" got {timing.period_s:g}"
            )
        dwell = dwell_s(switch_s, timing.period_s)
        held = fleet.gpus if settings.dry_run else holds(fleet, actuators)
        # Cycles come some milliseconds early or late: without slack a dwell of one period would last two.
        patience_s = dwell - timing.period_s / 2
        locks = stack.enter_context(ClockLocks(held, dwell_s=patience_s, dry_run=settings.dry_run))
        endpoints = Endpoints(list(dict.fromkeys(settings.metrics)), min(1.0, timing.period_s))
        _announce(fleet, settings, actuators, timing, dwell, switch_s)
        yield Daemon(
            charges=_charges(fleet, held),
            law=law_named(settings.law),
            locks=locks,
            fetch=endpoints.fetch,
            clock=time.monotonic,
            beat=lambda: _all(beats),
            telemetry=telemetry,
            timing=timing,
            dry_run=settings.dry_run,
        )


def check_period(settings: Settings, fleet: Fleet) -> None:
    """InputError when the period does not suit the GPUs' published switch times, or staleness the period."""
    slowest = max(fleet.parts.values(), key=_catalogue_switch_s)
    switch_s = _catalogue_switch_s(slowest)
    least_s = least_period_s(switch_s)
    period_s = _LEAST_PERIOD_S if settings.period_s is None else settings.period_s
    if not least_s <= period_s <= 3600:
        raise InputError(
            f"--period: expected {least_s:g} to 3600 seconds ({SWITCHES_PER_PERIOD} x the "
            f"{switch_s * 1000:g} ms a {slowest.name} takes to switch its clock), got {period_s:g}"
        )
    stale_s = settings.stale_after_s
    if stale_s is not None and not 2 * period_s <= stale_s <= 86400:
        raise InputError(
            f"--stale-after: expected at least two periods ({2 * period_s:g} seconds), got {stale_s:g}"
        )


def _actuators(settings: Settings, fleet: Fleet, *, probe: bool) -> dict[str, Actuator]:
    """By GPU, what it permits; without probing the GPUs stay untouched and nothing is promised."""
    if not probe:
        plain = Actuator.CAP if settings.actuator is Actuator.CAP else Actuator.CLOCK
        return dict.fromkeys(fleet.gpus, plain)
    return {name: choose_actuator(settings.actuator, name, gpu) for name, gpu in fleet.gpus.items()}


def _slowest_switch_s(
    fleet: Fleet,
    actuators: Mapping[str, Actuator],
    telemetry: Telemetry,
    beats: list[Callable[[], None]],
    *,
    measure: bool,
) -> float:
    """The longest clock switch of the fleet: measured where clocks are locked, else the catalogue's."""
    switches_s = []
    for name, gpu in fleet.gpus.items():
        part = fleet.parts[name]
        if not measure or actuators[name] is Actuator.CAP:
            switches_s.append(_catalogue_switch_s(part))
            continue
        latency = measure_switches(gpu, part.knee_mhz, part.switch_settle_ms)
        _all(beats)
        telemetry.switch_measured(name, latency)
        logger.info(
            "%s: a clock switch takes %.1f ms to call and %.1f ms to settle%s (median of %d)",
            name,
            latency.call_ms,
            latency.settle_ms,
            "" if latency.observed else " (of the catalogue: it never showed, the GPU may be idle)",
            latency.switches,
        )
        switches_s.append(latency.switch_s)
    return max(switches_s)


def _timing(settings: Settings, switch_s: float, lease_s: float) -> Timing:
    """The rhythm that the measured switch time permits, as near as possible to what was asked for."""
    asked_s = _LEAST_PERIOD_S if settings.period_s is None else settings.period_s
    period_s = max(asked_s, least_period_s(switch_s))
    if period_s > asked_s:
        logger.warning(
            "period raised from %g to %.3g s: %d x the %.3g ms a clock switch takes here",
            asked_s,
            period_s,
            SWITCHES_PER_PERIOD,
            switch_s * 1000,
        )
    if period_s > lease_s / 2:
        raise GpuUnsupportedError(
            f"a clock switch takes {switch_s:.2f} s here: too long to steer within a lease of {lease_s:g} s"
        )
    stale_after_s = settings.stale_after_s or max(_LEAST_STALE_S, 5 * period_s)
    return Timing(period_s=period_s, stale_after_s=max(stale_after_s, 2 * period_s), lease_s=lease_s)


def _charges(fleet: Fleet, held: Mapping[str, object]) -> tuple[Charge, ...]:
    return tuple(
        Charge(
            name=name,
            gpu=gpu,
            models=fleet.plan.models_on(name),
            initial_clock_mhz=fleet.plan.gpu(name).initial_clock_mhz,
            knee_mhz=fleet.parts[name].knee_mhz,
            supported_clocks_mhz=gpu.supported_clocks_mhz(),
            cap=hold if isinstance(hold := held[name], CapHold) else None,
        )
        for name, gpu in fleet.gpus.items()
    )


def _announce(
    fleet: Fleet,
    settings: Settings,
    actuators: Mapping[str, Actuator],
    timing: Timing,
    dwell: float,
    switch_s: float,
) -> None:
    virtual = sum(fleet.plan.gpu(name).virtual for name in fleet.gpus)
    capped = [name for name, actuator in actuators.items() if actuator is Actuator.CAP]
    logger.info(
        "law %s every %g s on %s (%d of %d virtual)%s%s",
        settings.law,
        timing.period_s,
        ", ".join(fleet.gpus),
        virtual,
        len(fleet.gpus),
        f"; by power limit: {', '.join(capped)}" if capped else "",
        "; dry run: nothing will be locked" if settings.dry_run else "",
    )
    logger.info(
        "a clock switch takes %.1f ms: a clock is kept for %.3g s before it is lowered again",
        switch_s * 1000,
        dwell,
    )


def _catalogue_switch_s(part: Part) -> float:
    return (part.switch_call_ms + part.switch_settle_ms) / 1000


def _all(actions: list[Callable[[], None]]) -> None:
    for action in actions:
        action()

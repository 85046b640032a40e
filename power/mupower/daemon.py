"""The control loop: scrape, observe, decide, apply the difference, say so in one sentence.

Everything that can go wrong moves towards full speed. An endpoint that does not answer is forgiven
until its last metrics are ``stale_after_s`` old, then clocks are unlocked; text that cannot be parsed
unlocks at once; a GPU that fails is unlocked for that cycle, alone. An unexpected exception ends
``Daemon.run``, and the ``ClockLocks`` around it unlock.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mupower.actuator import CapHold, is_inert
from mupower.clocks import ClockChange, ClockLocks
from mupower.control.law import (
    Cause,
    ClockDecision,
    ControlLaw,
    GpuObservation,
    unlocked_for_stale_metrics,
)
from mupower.exporter import Telemetry
from mupower.metrics import Snapshot, merge, parse_metrics
from mupower.observation import Device, observe_gpu
from mupower.reading import GpuReading, read_gpu
from mupower.scrape import Answer
from mupower.switching import TOLERANCE_MHZ
from muserve.errors import GpuError, MetricsUnavailableError, MuServeError
from muserve.gpu.protocol import Gpu
from muserve.plan import ModelPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One GPU in the daemon's care. ``cap`` is what holds it when its clock is steered by a power limit."""

    name: str
    gpu: Gpu
    models: tuple[ModelPlan, ...]
    initial_clock_mhz: int
    knee_mhz: int
    supported_clocks_mhz: tuple[int, ...]
    cap: CapHold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The daemon's times. ``window_s`` bounds how far back a latency may look.

    ``log_every`` cycles a decision is logged even though nothing changed.
    """

    period_s: float = 1.0
    stale_after_s: float = 5.0
    window_s: float = 5.0
    lease_s: float = 5.0
    log_every: int = 30


class Daemon:
    """Drives ``charges`` by ``law``. All edges come in from outside, so tests run in virtual time.

    ``fetch`` asks every metrics endpoint once, ``clock`` is a monotonic clock in seconds, ``beat`` is
    called at the start of every cycle.
    """

    def __init__(
        self,
        *,
        charges: tuple[Charge, ...],
        law: ControlLaw[Any],
        locks: ClockLocks,
        fetch: Callable[[], tuple[Answer, ...]],
        clock: Callable[[], float],
        beat: Callable[[], None],
        telemetry: Telemetry,
        timing: Timing,
        dry_run: bool = False,
    ) -> None:
        self._charges = charges
        self._law = law
        self._locks = locks
        self._fetch = fetch
        self._clock = clock
        self._beat = beat
        self._telemetry = telemetry
        self._timing = timing
        self._dry_run = dry_run
        self._states = {c.name: law.start(c.name, c.initial_clock_mhz) for c in charges}
        self._history: list[Snapshot] = []
        self._last_causes: dict[str, Cause] = {}
        self._cycles = 0
        self._unanswered = ""
        self._oddities: dict[str, str] = {}

    def run(self, wait: Callable[[float], bool]) -> None:
        """Cycle until ``wait(seconds)`` returns True, each cycle a period after the last *planned* one."""
        planned_s = begun_s = self._clock()
        while True:
            now_s = self._clock()
            if now_s - begun_s > self._timing.lease_s:
                logger.warning("no cycle for %.1f s: locks may be gone", now_s - begun_s)
                self._locks.doubt()
            begun_s = now_s
            self.cycle()
            planned_s += self._timing.period_s
            late_s = self._clock() - planned_s
            if late_s > 0:
                logger.warning("cycle ended %.2f s late: the schedule restarts now", late_s)
                planned_s += late_s
            if wait(planned_s - self._clock()):
                return

    def cycle(self) -> None:
        """One control cycle over all GPUs."""
        self._beat()
        self._telemetry.cycle_begun()
        stale_because = self._refresh()
        for charge in self._charges:
            self._steer(charge, stale_because)
        self._cycles += 1

    def _refresh(self) -> str | None:
        """Scrape once. Why metrics are stale, "" when they are new, None to wait for the next cycle."""
        answers = self._fetch()
        now_s = self._clock()
        failed = [answer for answer in answers if answer.text is None]
        for answer in failed:
            self._telemetry.scrape_failed(answer.url)
        if failed:
            return self._without_answer("; ".join(f"{a.url}: {a.problem}" for a in failed), now_s)
        if self._unanswered:
            logger.info("metrics answer again")
            self._unanswered = ""
        parsed = []
        for answer in answers:
            try:
                parsed.append(parse_metrics(answer.text or "", now_s, answer.url))
            except MetricsUnavailableError as error:
                self._telemetry.scrape_failed(answer.url)
                return str(error)
        self._remember(merge(parsed, now_s))
        return ""

    def _without_answer(self, problem: str, now_s: float) -> str | None:
        if len(self._history) < 2:
            return f"no metrics yet ({problem})"
        age_s = now_s - self._history[-1].time_s
        if age_s > self._timing.stale_after_s:
            return f"no metrics for {age_s:.1f} s ({problem})"
        if not self._unanswered:
            limit_s = self._timing.stale_after_s
            logger.warning("no answer (%s): clocks stay until metrics are %g s old", problem, limit_s)
        self._unanswered = problem
        return None

    def _remember(self, snapshot: Snapshot) -> None:
        """Keep one window of snapshots; start over after a gap that made the old ones stale."""
        timing = self._timing
        window_s = max(timing.window_s, 2 * timing.period_s)
        if self._history and snapshot.time_s - self._history[-1].time_s > timing.stale_after_s:
            self._history.clear()
        self._history = [s for s in self._history if snapshot.time_s - s.time_s <= window_s]
        self._history.append(snapshot)

    def _steer(self, charge: Charge, stale_because: str | None) -> None:
        try:
            reading = read_gpu(charge.gpu)
            self._telemetry.read(charge.name, reading)
            if not self._dry_run:
                self._compare(charge, reading)
            if stale_because is None:
                return
            observation = self._observe(charge, reading.clock_mhz, stale_because)
            decision = self._decide(observation)
            change = self._locks.apply(charge.name, decision.clock_mhz)
        except MuServeError as error:
            decision, change = self._let_go(charge, error)
        self._telemetry.decided(decision, self._locks.commanded_mhz(charge.name))
        self._say(decision, change)

    def _compare(self, charge: Charge, reading: GpuReading) -> None:
        """Is the clock the one commanded in the cycle before, or the power limit of any effect?

        A GPU that runs faster than commanded has lost its lock: it is locked anew. One that runs slower is
        throttled, or idle, when it may rest below its lock.
        """
        commanded = self._locks.commanded_mhz(charge.name)
        oddity = ""
        if charge.cap is not None:
            cap_w = charge.cap.cap_w
            inert = cap_w is not None and is_inert(
                cap_w, reading.power_w, reading.utilisation, reading.throttle_reasons
            )
            self._telemetry.capped(charge.name, cap_w, inert)
            if inert:
                oddity = f"its power limit of {cap_w:.0f} W is inert: it draws less by itself"
        elif commanded is not None and abs(reading.clock_mhz - commanded) > TOLERANCE_MHZ:
            because = "+".join(reading.throttle_reasons)
            if reading.clock_mhz > commanded:
                self._locks.doubt(charge.name)
                because = because or "unlocked by somebody else"
            elif not because and reading.utilisation == 0:
                because = "idle"
            because = because or "unexplained"
            self._telemetry.mismatched(charge.name, because)
            oddity = f"its clock is not the commanded {commanded} MHz: {because}"
        if oddity and oddity != self._oddities.get(charge.name):
            now = f"{reading.clock_mhz} MHz, {reading.power_w:.0f} W"
            logger.warning("%s: %s (now %s)", charge.name, oddity, now)
        self._oddities[charge.name] = oddity

    def _observe(self, charge: Charge, clock_mhz: int, stale_because: str) -> GpuObservation:
        device = Device(
            name=charge.name,
            clock_mhz=clock_mhz,
            supported_clocks_mhz=charge.supported_clocks_mhz,
            knee_mhz=charge.knee_mhz,
        )
        return observe_gpu(
            device, charge.models, self._history, now_s=self._clock(), stale_because=stale_because
        )

    def _decide(self, observation: GpuObservation) -> ClockDecision:
        if len(self._history) < 2:
            # Nothing to judge by yet: unlocked, but the law still begins where the plan says.
            return unlocked_for_stale_metrics(observation)
        decision, state = self._law.decide(observation, self._states[observation.gpu])
        self._states[observation.gpu] = state
        return decision

    def _let_go(self, charge: Charge, error: MuServeError) -> tuple[ClockDecision, ClockChange | None]:
        """The device failed: tell the law, unlock, and carry on with the other GPUs."""
        observation = self._observe(charge, charge.supported_clocks_mhz[-1], str(error))
        decision = replace(self._decide(observation), clock_mhz=None, cause=Cause.ERROR, reason=str(error))
        try:
            return decision, self._locks.apply(charge.name, None)
        except GpuError as again:
            reason = f"{error}; it cannot be unlocked and may still be held: {again}"
            return replace(decision, reason=reason), None

    def _say(self, decision: ClockDecision, change: ClockChange | None) -> None:
        """Log the decision when it changed something, or every so often."""
        news = change is not None or self._last_causes.get(decision.gpu) is not decision.cause
        self._last_causes[decision.gpu] = decision.cause
        if not news and self._cycles % self._timing.log_every:
            return
        alarming = decision.cause in (Cause.STALE, Cause.ERROR)
        held = self._locks.commanded_mhz(decision.gpu)
        logger.log(
            logging.WARNING if alarming else logging.INFO,
            "%s: %s: %s",
            decision.gpu,
            _outcome(change, held, self._dry_run),
            decision.reason,
        )


def _outcome(change: ClockChange | None, held_mhz: int | None, dry_run: bool) -> str:
    """What happened to a clock, in a few words."""
    would = "would be " if dry_run else ""
    if change is None:
        return f"{would}kept {_clock(held_mhz)}"
    verb = "unlocked" if change.after_mhz is None else f"locked {_clock(change.after_mhz)}"
    return f"{would}{verb} (was {_clock(change.before_mhz)})"


def _clock(clock_mhz: int | None) -> str:
    return "unlocked" if clock_mhz is None else f"at {clock_mhz} MHz"

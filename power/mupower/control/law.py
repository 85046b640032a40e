"""The interface of every control law: one GPU's observation in, one clock decision out.

A law is a pure function of (observation, its own state). It never reads a clock, a file or a device,
so the daemon and the simulator run the very same objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

State = TypeVar("State")


class Cause(StrEnum):
    """Why a clock was chosen: the closed set that metrics and reports count decisions by."""

    DEFAULT = "default"  # the law never locks
    PLAN = "plan"  # the clock the plan asks for
    STALE = "stale"  # metrics missing or too old: full speed
    BREACH = "breach"  # an SLO is being missed: full speed
    PRESSURE = "pressure"  # an SLO is close: raise
    HOLD = "hold"  # inside the guard band: keep
    SLACK = "slack"  # SLOs have room: lower
    IDLE = "idle"  # nothing to do: lower
    ERROR = "error"  # a device or the daemon failed: full speed (decided by the daemon, not by a law)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelObservation:
    """One model in the observation window. A model on several GPUs appears on each.

    The window is the time since the last cycle, longer when that holds too few requests for a tail
    latency. ``latency_ms`` is the latency the SLO is judged by (the quantile at the attainment target
    where a histogram exists, else the window's mean) and None when nothing completed. ``pending``
    counts requests that wait in a queue. ``backlog_s`` is the predicted time to work off what is
    queued and running.
    ``rejected`` counts requests that were refused in the window; each of them missed its SLO.
    """

    name: str
    slo_ms: float
    completed: float
    latency_ms: float | None
    pending: float
    backlog_s: float
    rejected: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuObservation:
    """What is known about one GPU in one cycle.

    ``fresh`` is False when its metrics cannot be trusted; ``stale_because`` then says why.
    """

    gpu: str
    time_s: float
    clock_mhz: int
    supported_clocks_mhz: tuple[int, ...]
    knee_mhz: int
    models: tuple[ModelObservation, ...]
    fresh: bool
    stale_because: str = ""

    @property
    def top_mhz(self) -> int:
        """The highest supported clock."""
        return self.supported_clocks_mhz[-1]

    @property
    def floor_mhz(self) -> int:
        """The lowest clock worth using: below the knee a GPU loses time and energy alike."""
        return self.at_least(self.knee_mhz)

    def at_least(self, clock_mhz: float) -> int:
        """The lowest supported clock that is not below ``clock_mhz``; the top clock when none is."""
        return next((clock for clock in self.supported_clocks_mhz if clock >= clock_mhz), self.top_mhz)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockDecision:
    """The clock wanted for one GPU (None = no lock: the driver's default) and why.

    ``reason`` is one clause for a log line; ``cause`` is the same as a value to count.
    """

    gpu: str
    clock_mhz: int | None
    cause: Cause
    reason: str


class ControlLaw(Protocol, Generic[State]):
    """A control law. ``State`` is whatever it must remember between cycles, as an immutable value."""

    @property
    def name(self) -> str:
        """What ``--law`` calls it."""

    def start(self, gpu: str, initial_clock_mhz: int) -> State:
        """The state before the first cycle of a GPU whose plan asks for ``initial_clock_mhz``."""

    def decide(self, observation: GpuObservation, state: State) -> tuple[ClockDecision, State]:
        """The clock for this cycle and the state for the next one.

        A law must leave the clock unlocked when the observation is not fresh.
        """


def unlocked_for_stale_metrics(observation: GpuObservation) -> ClockDecision:
    """What every law decides when its observation is not fresh."""
    return ClockDecision(
        gpu=observation.gpu,
        clock_mhz=None,
        cause=Cause.STALE,
        reason=observation.stale_because or "its metrics are stale",
    )

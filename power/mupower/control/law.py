"""The interface of every control law: one GPU's observation in, one clock decision out.

A law is a pure function of (observation, its own state). It never reads a clock, a file or a device,
so the daemon and the simulator run the very same objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

State = TypeVar("State")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelObservation:
    """One model in the window since the last cycle. A model on several GPUs appears on each.

    ``latency_ms`` is the latency the SLO is judged by (the window's p95 where a histogram exists, else
    the window's mean) and None when nothing completed. ``backlog_s`` is the predicted time to work off
    what is queued and running.
    """

    name: str
    slo_ms: float
    completed: float
    latency_ms: float | None
    pending: float
    backlog_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuObservation:
    """What is known about one GPU in one cycle. ``fresh`` is False when its metrics are stale."""

    gpu: str
    time_s: float
    clock_mhz: int
    supported_clocks_mhz: tuple[int, ...]
    knee_mhz: int
    models: tuple[ModelObservation, ...]
    fresh: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockDecision:
    """The clock wanted for one GPU (None = no lock: the driver's default) and why, in one sentence."""

    gpu: str
    clock_mhz: int | None
    reason: str


class ControlLaw(Protocol, Generic[State]):
    """A control law. ``State`` is whatever it must remember between cycles, as an immutable value."""

    name: str

    def start(self, gpu: str, initial_clock_mhz: int) -> State:
        """The state before the first cycle of a GPU whose plan asks for ``initial_clock_mhz``."""

    def decide(self, observation: GpuObservation, state: State) -> tuple[ClockDecision, State]:
        """The clock for this cycle and the state for the next one."""

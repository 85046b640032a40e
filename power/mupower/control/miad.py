"""``miad``: multiplicative increase, additive decrease, the kind of law μ-Serve uses.

TCP's rule turned round: there, too much speed hurts others, so windows grow slowly and shrink fast;
here too little speed hurts the SLO, so clocks rise fast and fall slowly.

Latency is late news: it is known when a request has finished. The engines' predicted backlog is
early news, so it raises the clock before the first SLO is missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mupower.control.law import (
    Cause,
    ClockDecision,
    GpuObservation,
    ModelObservation,
    unlocked_for_stale_metrics,
)


class _Need(IntEnum):
    """What one model asks of its GPU; the GPU follows the neediest one."""

    IDLE = 0
    LOWER = 1
    HOLD = 2
    RAISE = 3
    FULL = 4


_CAUSES = {
    _Need.IDLE: Cause.IDLE,
    _Need.LOWER: Cause.SLACK,
    _Need.HOLD: Cause.HOLD,
    _Need.RAISE: Cause.PRESSURE,
    _Need.FULL: Cause.BREACH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MiadState:
    """The clock this law last asked for (None: it asked for no lock)."""

    clock_mhz: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MiadLaw:
    """Raise by a factor near an SLO, jump to the top on a breach, creep down while there is slack.

    ``increase_factor``: five quarters takes a V100 from its knee (945 MHz) to its top (1380) in two cycles.
    ``decrease_mhz``: 30 MHz is four steps of a V100; from top to knee takes 15 cycles, longer
    than a burst lasts. ``raise_latency_share`` .. ``hold_latency_share`` is the guard band as shares of
    the SLO: above it the clock rises, inside it stays, below it falls. ``raise_backlog_share``: a
    backlog of half an SLO is worth reacting to, because requests that arrive now wait behind it.
    """

    name: str = "miad"
    increase_factor: float = 1.25
    decrease_mhz: int = 30
    raise_latency_share: float = 0.8
    hold_latency_share: float = 0.6
    raise_backlog_share: float = 0.5

    def __post_init__(self) -> None:
        if not self.increase_factor > 1:
            raise ValueError(f"increase_factor must be above 1, got {self.increase_factor}")
        if not self.decrease_mhz > 0:
            raise ValueError(f"decrease_mhz must be positive, got {self.decrease_mhz}")
        if not 0 < self.hold_latency_share <= self.raise_latency_share <= 1:
            raise ValueError("expected 0 < hold_latency_share <= raise_latency_share <= 1")
        if not 0 < self.raise_backlog_share <= 1:
            raise ValueError("expected 0 < raise_backlog_share <= 1")

    def start(self, gpu: str, initial_clock_mhz: int) -> MiadState:
        """Begin at the plan's clock."""
        return MiadState(clock_mhz=initial_clock_mhz)

    def decide(self, observation: GpuObservation, state: MiadState) -> tuple[ClockDecision, MiadState]:
        """The clock the neediest model asks for, at or above the knee; a GPU without models is parked."""
        if not observation.fresh:
            return unlocked_for_stale_metrics(observation), MiadState(clock_mhz=None)
        if not observation.models:
            return _parked(observation)
        need, reason = self._neediest(observation)
        before = observation.top_mhz if state.clock_mhz is None else state.clock_mhz
        current = observation.at_least(max(before, observation.knee_mhz))
        clock_mhz = self._next_clock(observation, current, need)
        decision = ClockDecision(gpu=observation.gpu, clock_mhz=clock_mhz, cause=_CAUSES[need], reason=reason)
        return decision, MiadState(clock_mhz=clock_mhz)

    def _next_clock(self, observation: GpuObservation, current_mhz: int, need: _Need) -> int:
        if need is _Need.FULL:
            return observation.top_mhz
        if need is _Need.RAISE:
            return observation.at_least(current_mhz * self.increase_factor)
        if need is _Need.HOLD:
            return current_mhz
        lower = [c for c in observation.supported_clocks_mhz if observation.floor_mhz <= c < current_mhz]
        within = [clock for clock in lower if clock >= current_mhz - self.decrease_mhz]
        # A part whose steps are wider than decrease_mhz still goes down, one step at a time.
        return min(within) if within else max(lower, default=current_mhz)

    def _neediest(self, observation: GpuObservation) -> tuple[_Need, str]:
        needs = [self._need(model) for model in observation.models]
        return max(needs, key=lambda need: need[0])

    def _need(self, model: ModelObservation) -> tuple[_Need, str]:
        """What one model asks for, and the clause that says why. First match wins, neediest first."""
        latency = 0.0 if model.latency_ms is None else model.latency_ms / model.slo_ms
        backlog = model.backlog_s * 1000 / model.slo_ms
        latency_text = (
            f"latency of {model.name} is {_ms(model.latency_ms or 0)}, "
            f"{latency:.0%} of its {_ms(model.slo_ms)} SLO"
        )
        backlog_text = (
            f"{model.name} has {model.backlog_s:.3g} s of predicted work ahead, "
            f"{backlog:.0%} of its {_ms(model.slo_ms)} SLO"
        )
        if model.rejected > 0:
            return _Need.FULL, f"{model.name} rejected {model.rejected:.0f} requests"
        if latency > 1:
            return _Need.FULL, latency_text
        if backlog > 1:
            return _Need.FULL, backlog_text
        if latency > self.raise_latency_share:
            return _Need.RAISE, latency_text
        if backlog > self.raise_backlog_share:
            return _Need.RAISE, backlog_text
        if model.latency_ms is None:
            return self._need_without_completions(model)
        if latency >= self.hold_latency_share:
            return _Need.HOLD, latency_text
        return _Need.LOWER, latency_text

    def _need_without_completions(self, model: ModelObservation) -> tuple[_Need, str]:
        """Nothing completed, so there is no latency: judge by what waits and what runs."""
        if model.pending > 0:
            return _Need.RAISE, f"{model.pending:.0f} requests of {model.name} wait and none completed"
        if model.backlog_s > 0:
            return _Need.HOLD, f"requests of {model.name} run and none has completed yet"
        return _Need.IDLE, f"{model.name} is idle"


def _parked(observation: GpuObservation) -> tuple[ClockDecision, MiadState]:
    """The lowest clock of all: with no work to do there is no knee, only idle power."""
    clock_mhz = observation.supported_clocks_mhz[0]
    decision = ClockDecision(
        gpu=observation.gpu, clock_mhz=clock_mhz, cause=Cause.IDLE, reason="parked: no model lives here"
    )
    return decision, MiadState(clock_mhz=clock_mhz)


def _ms(duration_ms: float) -> str:
    return f"{duration_ms:,.0f} ms" if duration_ms >= 100 else f"{duration_ms:.3g} ms"

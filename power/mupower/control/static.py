"""``static``: the plan's clock for as long as metrics arrive, deaf to load."""

from __future__ import annotations

from dataclasses import dataclass

from mupower.control.law import Cause, ClockDecision, GpuObservation, unlocked_for_stale_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticLaw:
    """Holds the clock the plan chose offline; its state is that clock."""

    name: str = "static"

    def start(self, gpu: str, initial_clock_mhz: int) -> int:
        """Remember the plan's clock."""
        return initial_clock_mhz

    def decide(self, observation: GpuObservation, state: int) -> tuple[ClockDecision, int]:
        """The lowest supported clock at or above the plan's, never below the knee."""
        if not observation.fresh:
            return unlocked_for_stale_metrics(observation), state
        decision = ClockDecision(
            gpu=observation.gpu,
            clock_mhz=observation.at_least(max(state, observation.knee_mhz)),
            cause=Cause.PLAN,
            reason=f"the plan asks for {state} MHz",
        )
        return decision, state

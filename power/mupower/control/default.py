"""``default``: never lock. The baseline every saving is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from mupower.control.law import Cause, ClockDecision, GpuObservation


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLaw:
    """Leaves every clock to the driver."""

    name: str = "default"

    def start(self, gpu: str, initial_clock_mhz: int) -> None:
        """This law remembers nothing."""

    def decide(self, observation: GpuObservation, state: None) -> tuple[ClockDecision, None]:
        """No lock, whatever was observed."""
        decision = ClockDecision(
            gpu=observation.gpu,
            clock_mhz=None,
            cause=Cause.DEFAULT,
            reason="the default law leaves clocks to the driver",
        )
        return decision, None

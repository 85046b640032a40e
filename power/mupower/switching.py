"""How long this very GPU takes to change its clock, and the daemon's rhythm that follows from it.

Figures from publications do not transfer: a V100 needs 4.5 ms for the call and 20 ms to settle, an L20
6 to 11 ms, A100 servers have been seen at 200 ms. So it is measured at start, on the device itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from muserve.gpu.protocol import Gpu

SWITCHES_PER_PERIOD = 5
"""A period shorter than this many clock switches would judge clocks that are not in force yet."""

SWITCHES_PER_DWELL = 20
"""A clock is kept for this many switch times before it is lowered again: at most 5 % of time in transit."""

TOLERANCE_MHZ = 15
"""An observed clock this close to the commanded one is that one: parts round to their own steps."""

_ROUNDS = 2
_PATIENCE_S = 0.5
_POLL_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchLatency:
    """Medians over ``switches`` clock changes: how long the call blocks, and how much later it shows.

    ``observed`` is False when the device never showed a commanded clock (an idle GPU may rest below
    it): ``settle_ms`` is then the catalogue's figure.
    """

    call_ms: float
    settle_ms: float
    switches: int
    observed: bool

    @property
    def switch_s(self) -> float:
        """From the command to the new clock."""
        return (self.call_ms + self.settle_ms) / 1000


def measure_switches(
    gpu: Gpu,
    knee_mhz: int,
    catalogue_settle_ms: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> SwitchLatency:
    """Lock an upper clock and the top clock in turn, and unlock; takes some 0.1 s, 2 s at most.

    The upper clock is at least 85 % of the top and not below the knee, so that what the GPU serves
    meanwhile is hardly slowed down. GpuError when the device refuses.
    """
    clocks = gpu.supported_clocks_mhz()
    top = clocks[-1]
    upper = next(c for c in clocks if c >= min(top, max(0.85 * top, knee_mhz)))
    calls_ms, settles_ms = [], []
    try:
        for target in (upper, top) * _ROUNDS:
            began_s = clock()
            gpu.lock_clock(target)
            called_s = clock()
            calls_ms.append((called_s - began_s) * 1000)
            while (shown := abs(gpu.clock_mhz() - target) <= TOLERANCE_MHZ) is False:
                if clock() - called_s > _PATIENCE_S:
                    break
                sleep(_POLL_S)
            if shown:
                settles_ms.append((clock() - called_s) * 1000)
    finally:
        gpu.unlock_clock()
    return SwitchLatency(
        call_ms=median(calls_ms),
        settle_ms=median(settles_ms) if settles_ms else catalogue_settle_ms,
        switches=len(calls_ms),
        observed=bool(settles_ms),
    )


def least_period_s(switch_s: float) -> float:
    """The shortest period at which a cycle sees the clock that the cycle before commanded."""
    return SWITCHES_PER_PERIOD * switch_s


def dwell_s(switch_s: float, period_s: float) -> float:
    """How long a clock is kept before it is lowered again: never shorter than a period."""
    return max(period_s, SWITCHES_PER_DWELL * switch_s)

"""Times one workload at one clock: warmed up, repeated, with energy, and with what held the clock back."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

from muplan.profile.runtime import Workload
from muserve.errors import GpuUnsupportedError
from muserve.gpu.protocol import Gpu

# How far the clock in force may be from the one asked for: clocks have steps of up to 15 MHz.
_CLOCK_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to look.

    A repetition lasts ``window_s`` or one run if that is longer; counters of energy move every 20 to 100 ms,
    so all repetitions together should last a second or more. After a change of clock the workload runs for
    ``settle_s`` unobserved. A throttled point is tried again after ``cool_s``, up to ``retries`` times.
    """

    repetitions: int = 7
    window_s: float = 0.3
    settle_s: float = 0.3
    cool_s: float = 5.0
    retries: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Median and interquartile range of the time of one run, mean power, energy of one run."""

    latency_ms: float
    spread_ms: float
    runs: int
    power_w: float | None
    energy_j: float | None
    throttled: tuple[str, ...]


def read_workload(workload: Workload, gpu: Gpu, clock_mhz: int | None, patience: Patience) -> Reading:
    """Time ``workload`` at the clock in force, which should be ``clock_mhz`` (None: whatever it is).

    Retries while the GPU throttles; what is returned after the last try may still be ``throttled``.
    """
    for _ in range(patience.retries):
        reading = _read(workload, gpu, clock_mhz, patience)
        if not reading.throttled:
            return reading
        time.sleep(patience.cool_s)
    return _read(workload, gpu, clock_mhz, patience)


def _read(workload: Workload, gpu: Gpu, clock_mhz: int | None, patience: Patience) -> Reading:
    runs = _runs_in(patience.window_s, workload, patience.settle_s)
    held_back: set[str] = set()
    seconds = []
    before_j, began_s = _energy_j(gpu), time.monotonic()
    for _ in range(patience.repetitions):
        seconds.append(workload.run(runs) / runs)
        held_back |= gpu.throttle_reasons()
        observed_mhz = gpu.clock_mhz()
        if clock_mhz is not None and abs(observed_mhz - clock_mhz) > _CLOCK_TOLERANCE * clock_mhz:
            held_back.add(f"ran at {observed_mhz} MHz")
    after_j, elapsed_s = _energy_j(gpu), time.monotonic() - began_s
    total = runs * patience.repetitions
    spent_j = None if before_j is None or after_j is None else after_j - before_j
    return Reading(
        latency_ms=statistics.median(seconds) * 1e3,
        spread_ms=_interquartile(seconds) * 1e3,
        runs=total,
        power_w=None if spent_j is None else spent_j / elapsed_s,
        energy_j=None if spent_j is None else spent_j / total,
        throttled=tuple(sorted(held_back)),
    )


def _runs_in(window_s: float, workload: Workload, settle_s: float) -> int:
    """How many runs fill a window, found while the clock settles and caches warm."""
    until_s = time.monotonic() + settle_s
    runs = 1
    while True:
        run_s = max(workload.run(runs) / runs, 1e-7)
        remaining_s = until_s - time.monotonic()
        if remaining_s <= 0:
            return max(1, math.ceil(window_s / run_s))
        runs = max(1, min(int(remaining_s / run_s), 2 * runs))


def _energy_j(gpu: Gpu) -> float | None:
    try:
        return gpu.energy_j()
    except GpuUnsupportedError:
        return None


def _interquartile(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low

"""What one GPU reports at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from muserve.errors import GpuUnsupportedError
from muserve.gpu.protocol import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """``locked_mhz`` is None when nothing is locked or the device cannot tell.

    ``throttle_reasons`` (sorted) are why the clock is below the requested one; none from a device that
    does not tell.
    """

    clock_mhz: int
    locked_mhz: int | None
    power_w: float
    energy_j: float
    utilisation: float
    throttle_reasons: tuple[str, ...]


def read_gpu(gpu: Gpu) -> GpuReading:
    """Ask the device; raises GpuError when it fails."""
    return GpuReading(
        clock_mhz=gpu.clock_mhz(),
        locked_mhz=gpu.locked_clock_mhz(),
        power_w=gpu.power_w(),
        energy_j=gpu.energy_j(),
        utilisation=gpu.utilisation(),
        throttle_reasons=_throttle_reasons(gpu),
    )


def _throttle_reasons(gpu: Gpu) -> tuple[str, ...]:
    try:
        return tuple(sorted(gpu.throttle_reasons()))
    except GpuUnsupportedError:
        return ()

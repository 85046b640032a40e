"""What muServe asks of a GPU. ``NvmlGpu`` and ``VirtualGpu`` are the two implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuIdentity:
    """Who a device is. ``virtual`` devices say so in ``name`` as well."""

    index: int
    uuid: str
    name: str
    virtual: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLimits:
    """Board power limits: the range that can be set, the factory's setting, and the one in force."""

    least_w: float
    most_w: float
    default_w: float
    limit_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHealth:
    """How a device is; None for what it does not tell.

    ``persistence``: the driver keeps the device set up, locks included, when nobody uses it.
    ``uncorrected_ecc_errors`` count since the last boot. ``needs_reset``: memory rows wait to be
    remapped, or could not be.
    """

    temperature_c: int | None = None
    persistence: bool | None = None
    uncorrected_ecc_errors: int | None = None
    needs_reset: bool = False


class Gpu(Protocol):
    """One GPU whose SM clock can be read and locked, and whose power can be limited.

    Every method may raise a ``muserve.errors.GpuError``; none blocks for longer than the driver does.
    """

    @property
    def identity(self) -> GpuIdentity:
        """Index on its node, UUID and product name."""

    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """SM clocks that ``lock_clock`` accepts, ascending; the last one is the top clock."""

    def clock_mhz(self) -> int:
        """SM clock in force now (observed, not commanded)."""

    def locked_clock_mhz(self) -> int | None:
        """The lock in force where the device can tell, else None: unlocked, or not observable."""

    def lock_clock(self, clock_mhz: int) -> None:
        """Hold the SM clock at ``clock_mhz`` until ``unlock_clock``."""

    def unlock_clock(self) -> None:
        """Give the clock back to the driver. Harmless when nothing is locked."""

    def power_limits(self) -> PowerLimits:
        """The range of limits that ``limit_power`` accepts, and the limit in force."""

    def limit_power(self, limit_w: float) -> None:
        """Let the device lower its clock as far as it takes to draw at most ``limit_w``."""

    def power_w(self) -> float:
        """Board power now."""

    def energy_j(self) -> float:
        """Energy since some fixed moment in the past; use differences."""

    def utilisation(self) -> float:
        """Share of recent time in [0, 1] in which at least one kernel ran."""

    def throttle_reasons(self) -> frozenset[str]:
        """Why the clock is below the requested one, in NVML's words; empty when it is not."""

    def health(self) -> GpuHealth:
        """Temperature, persistence mode, memory errors."""

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


class Gpu(Protocol):
    """One GPU whose SM clock can be read and locked.

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

    def power_w(self) -> float:
        """Board power now."""

    def energy_j(self) -> float:
        """Energy since some fixed moment in the past; use differences."""

    def utilisation(self) -> float:
        """Share of recent time in [0, 1] in which at least one kernel ran."""

    def throttle_reasons(self) -> frozenset[str]:
        """Why the clock is below the requested one, in NVML's words; empty when it is not."""

"""How a clock is brought about: by locking it, or, where that is not allowed, by a power limit.

A power limit (``cap``) is a blunt tool. The GPU lowers its clock only as far as its present work would
draw more, so the limit for a wanted clock is the most that any of the GPU's models draws at that clock:
no model runs slower than asked, a frugal one runs faster. A limit above the natural draw does nothing at
all, which is reported as inert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Protocol

from mupower.run_files import LimitNote
from muserve.errors import GpuError, GpuPermissionError, GpuUnsupportedError
from muserve.gpu.parts import Part
from muserve.gpu.protocol import Gpu
from muserve.physics import busy_power_w
from muserve.plan import ModelPlan

_REFUSALS = (GpuPermissionError, GpuUnsupportedError)
_SAME_W = 0.5
_INERT_SHARE = 0.98


class Actuator(StrEnum):
    """The two ways, and ``auto``: clock where it may be locked, else cap."""

    AUTO = "auto"
    CLOCK = "clock"
    CAP = "cap"


class ClockHold(Protocol):
    """What can hold a GPU at a clock. Every ``Gpu`` can; so can a power limit."""

    def locked_clock_mhz(self) -> int | None:
        """The clock held where that can be told, else None."""

    def lock_clock(self, clock_mhz: int) -> None:
        """Hold the GPU at ``clock_mhz``."""

    def unlock_clock(self) -> None:
        """Hold it no more. Harmless when nothing is held."""


class LockHold:
    """Holds a clock by locking it. Letting go also takes back a power limit that a dead daemon left."""

    def __init__(self, gpu: Gpu, note: LimitNote) -> None:
        self._gpu = gpu
        self._note = note

    def locked_clock_mhz(self) -> int | None:
        """The GPU's lock."""
        return self._gpu.locked_clock_mhz()

    def lock_clock(self, clock_mhz: int) -> None:
        """Lock the clock."""
        self._gpu.lock_clock(clock_mhz)

    def unlock_clock(self) -> None:
        """Unlock the clock."""
        try:
            self._gpu.unlock_clock()
        finally:
            restore_limit(self._gpu, self._note)


class CapHold:
    """Holds a clock by the power limit ``watts_at(clock)``; never above the limit found in force."""

    def __init__(self, gpu: Gpu, note: LimitNote, watts_at: Callable[[int], float]) -> None:
        self._gpu = gpu
        self._note = note
        self._watts_at = watts_at
        self._held: tuple[int, float] | None = None

    @property
    def cap_w(self) -> float | None:
        """The power limit that we hold; None when it is the one that was found."""
        return self._held[1] if self._held else None

    def locked_clock_mhz(self) -> int | None:
        """The clock whose limit is in force; None when none is, or somebody else set another."""
        if self._held is None:
            return None
        clock_mhz, cap_w = self._held
        return clock_mhz if abs(self._gpu.power_limits().limit_w - cap_w) < _SAME_W else None

    def lock_clock(self, clock_mhz: int) -> None:
        """Limit power to what the GPU's models need at ``clock_mhz``.

        The limit in force before is noted first: it is the operator's, and comes back at the end.
        """
        limits = self._gpu.power_limits()
        found_w = self._note.read()
        if found_w is None:
            found_w = limits.limit_w
            self._note.write(found_w)
        top = clock_mhz >= self._gpu.supported_clocks_mhz()[-1]
        cap_w = found_w if top else min(found_w, max(limits.least_w, self._watts_at(clock_mhz)))
        self._gpu.limit_power(cap_w)
        self._held = (clock_mhz, cap_w)

    def unlock_clock(self) -> None:
        """Bring back the limit that was found, and remove any lock as far as that is allowed."""
        self._held = None
        try:
            restore_limit(self._gpu, self._note)
        finally:
            with suppress(*_REFUSALS):
                self._gpu.unlock_clock()


def restore_limit(gpu: Gpu, note: LimitNote) -> None:
    """Undo a power limit of ours; nothing happens when none is in force."""
    found_w = note.read()
    if found_w is not None:
        gpu.limit_power(found_w)
        note.remove()


def cap_watts(part: Part, models: Sequence[ModelPlan]) -> Callable[[int], float]:
    """The power limit for a clock: the most that any phase of ``models`` draws there on ``part``."""
    laws = [law for model in models for partition in model.partitions for law in partition.laws]
    sensitivities = {law.sensitivity.value for law in laws}
    if not sensitivities:
        sensitivities = {curve.sensitivity for curve in part.busy_curves}
    return lambda clock_mhz: max(busy_power_w(part, k, clock_mhz) for k in sensitivities)


def is_inert(cap_w: float, power_w: float, utilisation: float, reasons: Sequence[str]) -> bool:
    """True when a working GPU draws less than its limit by itself, so the limit changes nothing."""
    return utilisation > 0 and "SwPowerCap" not in reasons and power_w < _INERT_SHARE * cap_w


def refusal_of_clock(gpu: Gpu) -> GpuError | None:
    """Why this GPU's clock may not be locked, None when it may: locks the top clock and unlocks."""
    try:
        gpu.lock_clock(gpu.supported_clocks_mhz()[-1])
        gpu.unlock_clock()
    except _REFUSALS as error:
        return error
    return None


def refusal_of_cap(gpu: Gpu) -> GpuError | None:
    """Why this GPU's power may not be limited, None when it may: sets the limit that is in force."""
    try:
        gpu.limit_power(gpu.power_limits().limit_w)
    except _REFUSALS as error:
        return error
    return None


def choose_actuator(asked: Actuator, name: str, gpu: Gpu) -> Actuator:
    """What this GPU permits, of what was asked for.

    GpuPermissionError or GpuUnsupportedError when it permits none of it; other GpuErrors when it fails.
    """
    refusals = []
    for actuator, probe in ((Actuator.CLOCK, refusal_of_clock), (Actuator.CAP, refusal_of_cap)):
        if asked in (Actuator.AUTO, actuator):
            refusal = probe(gpu)
            if refusal is None:
                return actuator
            refusals.append(f"{actuator}: {refusal}")
    raise GpuPermissionError(f"{name}: may not be steered: {'; '.join(refusals)} (see `mupower check`)")

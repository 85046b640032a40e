"""How time and power of a GPU follow its SM clock. Pure functions of a part of the catalogue.

Three ranges, never mixed:

* From the knee up, time follows ``t(f) = t(top) * ((1 - k) + k * top / f)``, where ``k`` is the compute
  share (sensitivity). On the curves of the catalogue its error is below 2.2 %, on those of the V100-16GB
  below 0.6 %.
* Between the lowest clock of the busy curves and the knee even memory-bound work slows, more than any such
  law says, so the part's table is interpolated (linearly in 1/f, and in ``k`` between its classes) and
  joined to the law at the knee.
* Below the lowest clock of the busy curves nothing was measured: time is *modelled* as 1/f and busy power
  as idle power plus a share linear in f (the voltage is at its floor).

Power is the part's table interpolated linearly in f and in ``k``; nothing is fitted here. Outside the
sensitivities of the classes the nearest class is used. The table itself is measured or modelled, as the
part says; ``is_modelled`` tells both kinds of modelling from measurement.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import pairwise

from muserve.gpu.parts import BusyCurve, Part
from muserve.plan import Basis


def slowdown(part: Part, sensitivity: float, clock_mhz: float) -> float:
    """``t(clock) / t(top clock)`` of work with compute share ``sensitivity`` in [0, 1]; at least 1.

    ValueError when the clock lies outside the part's range or the sensitivity outside [0, 1].
    """
    _check(part, sensitivity, clock_mhz)
    if clock_mhz >= part.knee_mhz:
        return _law(part, sensitivity, clock_mhz)
    lowest = part.lowest_measured_mhz
    measured_mhz = max(clock_mhz, lowest)

    def below_knee(curve: BusyCurve) -> float:
        return _time_ratio(curve, measured_mhz) / _time_ratio(curve, part.knee_mhz)

    table = _between_classes(part, sensitivity, below_knee)
    return _law(part, sensitivity, part.knee_mhz) * table * measured_mhz / clock_mhz


def busy_power_w(part: Part, sensitivity: float, clock_mhz: float) -> float:
    """Board power while work of this sensitivity runs. ValueError as for ``slowdown``."""
    _check(part, sensitivity, clock_mhz)
    measured_mhz = max(clock_mhz, part.lowest_measured_mhz)
    power_w = _between_classes(part, sensitivity, lambda curve: _power_w(curve, measured_mhz))
    if clock_mhz == measured_mhz:
        return power_w
    above_idle_w = power_w - idle_power_w(part, measured_mhz)
    return idle_power_w(part, clock_mhz) + above_idle_w * clock_mhz / measured_mhz


def idle_power_w(part: Part, clock_mhz: float) -> float:
    """Board power with a context loaded and no work: linear between the two measured clocks.

    ValueError when the clock lies outside the part's range.
    """
    _check(part, 0.0, clock_mhz)
    lowest, top = part.clocks_mhz[0], part.top_clock_mhz
    return part.idle_w + (part.idle_default_w - part.idle_w) * (clock_mhz - lowest) / (top - lowest)


def is_modelled(part: Part, clock_mhz: float) -> bool:
    """True when busy time and power at this clock are an assumption, not an interpolated measurement."""
    return part.response_basis is Basis.MODELLED or clock_mhz < part.lowest_measured_mhz


def lowest_clock_within(part: Part, sensitivity: float, allowed_slowdown: float) -> int:
    """The lowest supported clock, at or above the knee, whose slowdown is at most ``allowed_slowdown``.

    ValueError when ``allowed_slowdown`` is below 1: even the top clock cannot meet that.
    """
    if allowed_slowdown < 1.0:
        raise ValueError(f"allowed slowdown must be at least 1, got {allowed_slowdown}")
    return next(c for c in part.working_clocks_mhz if slowdown(part, sensitivity, c) <= allowed_slowdown)


def energy_optimal_clock_mhz(part: Part, sensitivity: float) -> int:
    """The supported clock, within the busy curves, that spends the least energy on a given piece of work."""
    within = part.clocks_mhz[bisect_left(part.clocks_mhz, part.lowest_measured_mhz) :]
    return min(within, key=lambda c: busy_power_w(part, sensitivity, c) * slowdown(part, sensitivity, c))


def _check(part: Part, sensitivity: float, clock_mhz: float) -> None:
    if not 0.0 <= sensitivity <= 1.0:
        raise ValueError(f"sensitivity must lie in [0, 1], got {sensitivity}")
    lowest, top = part.clocks_mhz[0], part.top_clock_mhz
    if not lowest <= clock_mhz <= top:
        raise ValueError(f"{part.name} has clocks from {lowest} to {top} MHz, got {clock_mhz}")


def _law(part: Part, sensitivity: float, clock_mhz: float) -> float:
    return (1.0 - sensitivity) + sensitivity * part.top_clock_mhz / clock_mhz


def _between_classes(part: Part, sensitivity: float, value: Callable[[BusyCurve], float]) -> float:
    """``value`` interpolated in sensitivity between the two measured classes around it, else clipped."""
    curves = part.busy_curves
    if sensitivity <= curves[0].sensitivity:
        return value(curves[0])
    for low, high in pairwise(curves):
        if sensitivity <= high.sensitivity:
            share = (sensitivity - low.sensitivity) / (high.sensitivity - low.sensitivity)
            return (1.0 - share) * value(low) + share * value(high)
    return value(curves[-1])


def _time_ratio(curve: BusyCurve, clock_mhz: float) -> float:
    """Measured time ratio, linear in 1/f between points: each piece is then a time law of its own."""
    left, right = _neighbours(curve, clock_mhz)
    low, high = curve.points[left], curve.points[right]
    if left == right:
        return low.time_ratio
    share = (1 / low.clock_mhz - 1 / clock_mhz) / (1 / low.clock_mhz - 1 / high.clock_mhz)
    return low.time_ratio + share * (high.time_ratio - low.time_ratio)


def _power_w(curve: BusyCurve, clock_mhz: float) -> float:
    left, right = _neighbours(curve, clock_mhz)
    low, high = curve.points[left], curve.points[right]
    if left == right:
        return low.power_w
    share = (clock_mhz - low.clock_mhz) / (high.clock_mhz - low.clock_mhz)
    return low.power_w + share * (high.power_w - low.power_w)


def _neighbours(curve: BusyCurve, clock_mhz: float) -> tuple[int, int]:
    """Indices of the points around ``clock_mhz``; equal when it is one of them."""
    right = bisect_left(curve.points, clock_mhz, key=lambda point: point.clock_mhz)
    left = bisect_right(curve.points, clock_mhz, key=lambda point: point.clock_mhz) - 1
    return left, right

"""The orders in which an engine can serve waiting requests, by name and with their parameters.

The planner writes them into ``config.pbtxt``, the engine reads them there: this is what both know. What
each order does is in ``mubackend.llm_engine.disciplines``; why ``bounded`` is the default, with figures
and proofs, is in ``docs/decisions/0011-a-bound-that-follows-the-backlog.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum

from muserve.errors import InputError


class Order(StrEnum):
    """Who is served first.

    ``bounded``: shortest predicted first, within a bound on waiting that follows the backlog. ``ssjf``:
    shortest predicted first, without a bound. ``aging``: arrival + alpha x predicted service.
    ``adaptive``: the same with an alpha that follows the backlog. ``relative_cap``: shortest predicted
    first, except for requests that have waited ``cap_factor`` times their own predicted service. ``hrrn``:
    highest response ratio next. ``classes``: a few levels by percentile of the predicted length.
    ``fcfs``: first come, first served. ``oracle``: shortest true length first, for experiments in which
    each request tells its true length.
    """

    BOUNDED = "bounded"
    SSJF = "ssjf"
    AGING = "aging"
    ADAPTIVE = "adaptive"
    RELATIVE_CAP = "relative_cap"
    HRRN = "hrrn"
    CLASSES = "classes"
    FCFS = "fcfs"
    ORACLE = "oracle"


class TrafficClass(StrEnum):
    """Goes before length: interactive requests first, batch requests last, each with a share of its own."""

    INTERACTIVE = "interactive"
    STANDARD = "standard"
    BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderParameters:
    """Numbers of the orders; every one is >= 0 and has a default.

    ``alpha``: of ``aging``; may be infinite. ``adaptive_factor``, ``adaptive_floor``: alpha is
    ``max(floor, factor x backlog / mean predicted service)``. ``cap_factor``: of ``relative_cap``.
    ``class_levels``: of ``classes``. ``bound_quantile``, ``bound_ordinary``, ``bound_extreme``: of
    ``bounded``; a request is overdue when it has waited ``bound_ordinary`` times that quantile of the
    backlogs that earlier requests met, or, if it meets a longer backlog than that quantile, a factor
    times its own that grows from 1 to ``bound_extreme`` (>= 1). ``standard_share``, ``batch_share``:
    service that waiting requests of the class get for each unit of service that other classes get.
    """

    alpha: float = 30.0
    adaptive_factor: float = 2.0
    adaptive_floor: float = 3.0
    cap_factor: float = 100.0
    class_levels: float = 5.0
    bound_quantile: float = 0.99
    bound_ordinary: float = 0.9
    bound_extreme: float = 2.5
    standard_share: float = 0.2
    batch_share: float = 0.05

    def __post_init__(self) -> None:
        """Raise InputError, naming the parameter, when one is out of its range."""
        for parameter in fields(self):
            name, value = parameter.name, getattr(self, parameter.name)
            lowest, highest = RANGES.get(name, (0.0, 1e6))
            if not (lowest <= value <= highest or (name == "alpha" and value == math.inf)):
                raise InputError(f"{name}: expected a number from {lowest:g} to {highest:g}, got {value:g}")

    def share(self, traffic_class: TrafficClass) -> float:
        """The share of a class below another; 0 for the highest class, which needs none."""
        shares = {TrafficClass.STANDARD: self.standard_share, TrafficClass.BATCH: self.batch_share}
        return shares.get(traffic_class, 0.0)


RANGES: Mapping[str, tuple[float, float]] = {
    "bound_quantile": (0.5, 1.0),
    "bound_ordinary": (0.0, 100.0),
    "bound_extreme": (1.0, 100.0),
    "class_levels": (1.0, 100.0),
    "standard_share": (0.001, 1.0),
    "batch_share": (0.001, 1.0),
}
"""Lowest and highest value; 0 to 1e6 for the others. A share of nothing would let a class starve."""

_SHARES = ("standard_share", "batch_share")
PARAMETERS_OF: Mapping[Order, tuple[str, ...]] = {
    Order.BOUNDED: ("bound_quantile", "bound_ordinary", "bound_extreme", *_SHARES),
    Order.SSJF: _SHARES,
    Order.AGING: ("alpha", *_SHARES),
    Order.ADAPTIVE: ("adaptive_factor", "adaptive_floor", *_SHARES),
    Order.RELATIVE_CAP: ("cap_factor", *_SHARES),
    Order.HRRN: _SHARES,
    Order.CLASSES: ("class_levels", *_SHARES),
    Order.FCFS: _SHARES,
    Order.ORACLE: _SHARES,
}
"""Which parameters an order uses."""

"""How much of its SLO each model needs at given clocks. Pure.

The needed limit is the shortest one within which the model's attainment target is still met, everything
else as it is. Load does not depend on limits, so all models are searched for at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from muplan.operating import Assignment, ClusterModel

# A model that needs more than this many times its SLO is overloaded: no limit would do.
_LARGEST_FACTOR = 64.0
_BISECTIONS = 24


def needed_slos_ms(
    model: ClusterModel, assignment: Assignment, clocks_mhz: Sequence[int]
) -> tuple[float | None, ...]:
    """The shortest limit each demand could have, in milliseconds; None when no limit would do."""
    loads = model.group(assignment).loads(dict(enumerate(clocks_mhz)))

    def met(factors: Sequence[float]) -> list[bool]:
        pairs = zip(model.demands, factors, strict=True)
        demands = [replace(demand, slo_ms=demand.slo_ms * factor) for demand, factor in pairs]
        group = ClusterModel(demands, model.slots).group(assignment)
        return [
            group.response(owner, loads).attainment >= demand.attainment_target
            for owner, demand in enumerate(demands)
        ]

    lows, highs = _brackets(met, len(model.demands))
    for _ in range(_BISECTIONS):
        middles = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
        for owner, kept in enumerate(met(middles)):
            (highs if kept else lows)[owner] = middles[owner]
    found = met(highs)
    return tuple(
        demand.slo_ms * high if enough else None
        for demand, high, enough in zip(model.demands, highs, found, strict=True)
    )


def _brackets(met: Callable[[Sequence[float]], list[bool]], count: int) -> tuple[list[float], list[float]]:
    """For each demand a factor of its limit that is too short, and one long enough if there is one."""
    lows, highs = [0.0] * count, [1.0] * count
    while highs and max(highs) < _LARGEST_FACTOR:
        kept = met(highs)
        if all(kept):
            break
        for owner in range(count):
            if not kept[owner]:
                lows[owner], highs[owner] = highs[owner], 2 * highs[owner]
    return lows, highs

"""Which GPUs every partition goes on: the least average power at the lowest clocks that keep the SLOs. Pure.

Nothing here looks at sensitivities directly. A GPU has one clock for all it runs, and that clock is set
by the resident that bears the least, so putting together what suffers alike follows from minimising
power.

    units -> costs of groups of GPUs -> layout -> insertion -> search -> pools -> result

The result is deterministic for a seed and independent of the order of the models and of the GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from muplan.placement.costs import GroupCosts, latency_shares, watts
from muplan.placement.exact import exact_search
from muplan.placement.pools import search_cluster, usual_effort
from muplan.placement.result import Placement, Score, placement_of
from muplan.placement.search import Effort, Found
from muplan.placement.units import Units
from muplan.workload import Demand, Slot

__all__ = ["SLO_GUARD", "Objective", "Placement", "Score", "feasible", "group_costs", "in_order", "place"]

Objective = Literal["energy", "latency"]

# Share of each SLO that the plan may use up: what the queueing approximations may be wrong by.
SLO_GUARD = 0.9


def place(
    demands: Sequence[Demand],
    slots: Sequence[Slot],
    *,
    guard: float = SLO_GUARD,
    objective: Objective = "energy",
    seed: int = 0,
    exact: bool = False,
) -> Placement:
    """The best placement found; ``score.feasible`` tells whether it keeps every SLO.

    ``energy`` minimises power, ``latency`` the mean latency as a share of the SLO at the top clocks.
    ``slots`` must not be empty and names must be distinct. An infeasible result is the least bad one. With
    ``exact`` it is the best there is, and InputError is raised when the case is too large for that.
    """
    models, gpus = in_order(demands, slots)
    costs = group_costs(models, gpus, guard=guard, objective=objective)
    found = exact_search(costs) if exact else None
    if found is None:
        found = search_cluster(costs, usual_effort(len(models)), seed)
    return placement_of(
        models, slots, _on(found, gpus, slots), guard=guard, at_top_clocks=objective == "latency"
    )


def feasible(demands: Sequence[Demand], slots: Sequence[Slot], *, guard: float = SLO_GUARD) -> bool:
    """Whether a short search finds a placement that keeps every SLO."""
    models, gpus = in_order(demands, slots)
    rounds = max(10, min(60, 1000 // len(models)))
    effort = Effort(starts=3 if len(models) <= 24 else 1, rounds=rounds, any_feasible=True)
    found = search_cluster(group_costs(models, gpus, guard=guard), effort, 0)
    return found.cost[:2] == (0, 0)


def group_costs(
    demands: Sequence[Demand],
    slots: Sequence[Slot],
    *,
    guard: float = SLO_GUARD,
    objective: Objective = "energy",
) -> GroupCosts:
    """What groups of ``slots`` cost when ``demands`` may use up ``guard`` of their SLOs."""
    units = Units([replace(demand, slo_ms=demand.slo_ms * guard) for demand in demands])
    if objective == "latency":
        return GroupCosts(units, slots, latency_shares, at_lowest_clocks=False)
    return GroupCosts(units, slots, watts)


def in_order(demands: Sequence[Demand], slots: Sequence[Slot]) -> tuple[tuple[Demand, ...], tuple[Slot, ...]]:
    """Models by name and GPUs by part and node: an order of their own, so that the user's does not matter."""
    models = tuple(sorted(demands, key=lambda demand: demand.name))
    return models, tuple(sorted(slots, key=lambda slot: (slot.part.name, slot.node, slot.index)))


def _on(found: Found, gpus: Sequence[Slot], slots: Sequence[Slot]) -> Found:
    """``found``, whose GPUs are positions in ``gpus``, as positions in ``slots``."""
    position = {slot.name: number for number, slot in enumerate(slots)}
    spots = tuple(
        replace(spot, homes=tuple(tuple(position[gpus[gpu].name] for gpu in home) for home in spot.homes))
        for spot in found.spots
    )
    return replace(found, spots=spots)

"""A placement as the rest of the planner sees it: names, clocks with their reasons, predictions. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from muplan.deployment import Deployment
from muplan.initial_clocks import clock_reason, lowest_clocks, top_clocks
from muplan.operating import ClusterModel, Point
from muplan.placement.search import Found
from muplan.placement.units import Units
from muplan.workload import Demand, Slot, StageKey


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Score:
    """How good a placement is, smallest first: memory missing, attainment missing, then the objective.

    ``cost`` is what the objective minimises over parked GPUs, or the power at the top clocks, in watts, when
    some SLO cannot be kept.
    """

    overflow_bytes: int
    shortfall: float
    cost: float

    @property
    def feasible(self) -> bool:
        """Memory suffices and every attainment target is met at the top clocks."""
        return self.overflow_bytes == 0 and self.shortfall == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each stage goes and what is predicted there.

    ``replicas`` has, by the name of the stage, the GPU names of each replica: one name, or those of its
    tensor parallel group. ``point`` is at the chosen clocks, ``default_point`` the same placement at the
    driver's default clock everywhere. Attainments are those of the whole SLO, in the order of ``demands``,
    as are ``deployments``; ``guarded_attainment`` is that within the share of the SLO which the plan may use.
    """

    demands: tuple[Demand, ...]
    deployments: tuple[Deployment, ...]
    replicas: dict[str, tuple[tuple[str, ...], ...]]
    clock_reasons: tuple[str, ...]
    point: Point
    default_point: Point
    guarded_attainment: tuple[float, ...]
    score: Score

    @property
    def gpu_of(self) -> dict[str, str]:
        """The first GPU of each stage's first replica, by the name of the stage."""
        return {stage: replicas[0][0] for stage, replicas in self.replicas.items() if replicas}


def placement_of(
    demands: Sequence[Demand],
    slots: Sequence[Slot],
    found: Found,
    *,
    guard: float,
    at_top_clocks: bool = False,
) -> Placement:
    """The placement ``found`` for ``demands``, whose spots are positions in ``slots``.

    Clocks are the lowest that keep ``guard`` times the SLOs, or the top ones if asked for or necessary.
    """
    units = Units(demands)
    chosen = [ways[spot.way] for ways, spot in zip(units.ways, found.spots, strict=True)]
    homed = [way.units[: len(spot.homes)] for way, spot in zip(chosen, found.spots, strict=True)]
    placed = [units.demands[unit] for replicas in homed for unit in replicas]
    homes = [home for spot in found.spots for home in spot.homes]
    assignment: dict[StageKey, int] = {
        (number, stage): gpu for number, home in enumerate(homes) for stage, gpu in enumerate(home)
    }
    feasible = found.cost[:2] == (0, 0)
    guarded = ClusterModel([replace(d, slo_ms=d.slo_ms * guard) for d in placed], slots)
    clock_of: dict[int, int] = {}
    reason_of: dict[int, str] = {}
    for group in guarded.groups(assignment):
        own = lowest_clocks(group) if feasible and not at_top_clocks else top_clocks(group)
        clock_of |= own
        for gpu in own:
            asked = at_top_clocks and group.residents[gpu]
            reason_of[gpu] = (
                "The top clock: the objective is latency." if asked else clock_reason(group, own, gpu, guard)
            )
    exact = ClusterModel(placed, slots)
    positions = range(len(slots))
    clocks_mhz = [clock_of[gpu] for gpu in positions]
    point, guarded_point = exact.point(assignment, clocks_mhz), guarded.point(assignment, clocks_mhz)
    default = exact.point(assignment, [slot.part.top_clock_mhz for slot in slots])
    owners = [model for model, replicas in enumerate(homed) for _ in replicas]
    return Placement(
        demands=tuple(demands),
        deployments=tuple(way.deployment for way in chosen),
        replicas=_replicas(demands, slots, found),
        clock_reasons=tuple(reason_of[gpu] for gpu in positions),
        point=_by_model(point, owners, len(demands)),
        default_point=_by_model(default, owners, len(demands)),
        guarded_attainment=_by_model(guarded_point, owners, len(demands)).attainment,
        score=Score(overflow_bytes=found.cost[0], shortfall=found.cost[1] / 1e9, cost=found.cost[2] / 1e6),
    )


def _by_model(point: Point, owners: Sequence[int], models: int) -> Point:
    """The same point with the attainment of each model: the mean over its replicas, which share its load.

    A model without any has 0.
    """
    met: list[list[float]] = [[] for _ in range(models)]
    for owner, attainment in zip(owners, point.attainment, strict=True):
        met[owner].append(attainment)
    return replace(
        point, attainment=tuple(math.fsum(values) / len(values) if values else 0.0 for values in met)
    )


def _replicas(
    demands: Sequence[Demand], slots: Sequence[Slot], found: Found
) -> dict[str, tuple[tuple[str, ...], ...]]:
    replicas: dict[str, tuple[tuple[str, ...], ...]] = {}
    for demand, spot in zip(demands, found.spots, strict=True):
        names = [tuple(slots[gpu].name for gpu in home) for home in spot.homes]
        if len({stage.name for stage in demand.stages}) == 1:
            replicas[demand.stages[0].name] = tuple(names)
            continue
        for number, stage in enumerate(demand.stages):
            replicas[stage.name] = tuple((home[number],) for home in names)
    return replicas

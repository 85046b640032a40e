"""Placements that others would make, judged by the same model of the cluster and the same SLOs. Pure.

Each baseline decides where models go, as its authors would. What that costs is then computed as for our own
placements: at the top clocks, where the authors leave them, and at the lowest clocks that keep the SLOs, so
that what clocks save is told apart from what the placement saves. GPUs without a model are parked for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from muplan.baselines.alpaserve import alpaserve_filling_memory, alpaserve_like
from muplan.baselines.simple import one_model_per_gpu, round_robin, selective_replication
from muplan.initial_clocks import top_clocks
from muplan.placement import SLO_GUARD, Placement, group_costs, in_order
from muplan.placement.costs import GroupCosts
from muplan.placement.layout import Layout, Spot
from muplan.placement.pools import classes_of, search_cluster, usual_effort
from muplan.placement.result import placement_of
from muplan.placement.search import Found, placed
from muplan.workload import Demand, Slot
from muserve.plan import TimeLaw

__all__ = ["BASELINES", "Chosen", "Judged", "choose", "judge"]

OURS = "ours"
REFERENCE = "AlpaServe-like"
FILLED = "AlpaServe-like, memory filled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One placement's predictions: power at both clocks in watts, GPUs in use, and who misses the SLO.

    ``lowest_clock_power_w`` is None when some model misses its target even at the top clocks; ``attainment``
    is the mean over the models at the top clocks.
    """

    feasible: bool
    gpus_in_use: int
    top_clock_power_w: float
    lowest_clock_power_w: float | None
    attainment: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Where a baseline puts ``demands`` on ``slots``, both in the planner's own order."""

    demands: tuple[Demand, ...]
    slots: tuple[Slot, ...]
    layout: Layout

    def judged(self) -> Judged:
        """What the planner's model of the cluster predicts of it."""
        return _judged(self.layout.costs, self.layout)

    def placement(self, *, at_top_clocks: bool) -> Placement:
        """It in full, at the top clocks or at the lowest that keep the SLOs."""
        found = Found(cost=self.layout.total, spots=placed(self.layout), reach=tuple(self.layout.reach))
        return placement_of(self.demands, self.slots, found, guard=SLO_GUARD, at_top_clocks=at_top_clocks)


def choose(name: str, demands: Sequence[Demand], slots: Sequence[Slot], *, seed: int = 0) -> Chosen:
    """What the baseline called ``name`` (a key of ``BASELINES``) does with ``demands`` on ``slots``."""
    models, gpus = in_order(demands, slots)
    if name == FILLED:
        models = tuple(_replicated_at_will(model, len(gpus)) for model in models)
    costs = group_costs(models, gpus, guard=SLO_GUARD)
    spots = BASELINES[name](costs, seed)
    layout = Layout(costs, classes_of(gpus))
    for model, spot in enumerate(spots):
        layout.put(model, spot)
    return Chosen(demands=models, slots=gpus, layout=layout)


def judge(name: str, demands: Sequence[Demand], slots: Sequence[Slot], *, seed: int = 0) -> Judged:
    """What is predicted of the baseline called ``name`` (a key of ``BASELINES``)."""
    return choose(name, demands, slots, seed=seed).judged()


def _replicated_at_will(demand: Demand, gpus: int) -> Demand:
    """``demand`` with no limit to its replicas but the GPUs, unless its spec fixes their number."""
    counts = demand.replica_counts
    more = range(counts[-1] + 1, gpus + 1) if len(counts) > 1 else ()
    return replace(demand, replica_counts=(*counts, *more))


def _judged(costs: GroupCosts, layout: Layout) -> Judged:
    assignment = {key: gpu for gpu, keys in layout.residents.items() for key in keys}
    group = costs.model.group(assignment)
    clocks = top_clocks(group)
    loads = group.loads(clocks)
    met = [group.response(unit, loads).attainment for unit in group.models]
    feasible = layout.total[:2] == (0, 0)
    parked_w = sum(costs.model.idle_w(s.part, s.part.clocks_mhz[0]) for s in costs.model.slots)
    return Judged(
        feasible=feasible,
        gpus_in_use=len(layout.residents),
        top_clock_power_w=group.power_w(clocks),
        lowest_clock_power_w=parked_w + layout.total[2] * 1e-6 if feasible else None,
        attainment=sum(met) / len(met) if met else 0.0,
    )


def _ours(costs: GroupCosts, seed: int) -> tuple[Spot, ...]:
    return search_cluster(costs, usual_effort(len(costs.units.models)), seed).spots


def _without_sensitivity(costs: GroupCosts, seed: int) -> tuple[Spot, ...]:
    """Our search, told that every partition and phase has the mean sensitivity of all."""
    models = costs.units.models
    values = [
        law.sensitivity.value for m in models for s in m.stages for laws in s.laws.values() for law in laws
    ]
    mean = sum(values) / len(values)

    def levelled(law: TimeLaw) -> TimeLaw:
        return replace(law, sensitivity=replace(law.sensitivity, value=mean))

    def blind(demand: Demand) -> Demand:
        stages = tuple(
            replace(s, laws={part: tuple(map(levelled, laws)) for part, laws in s.laws.items()})
            for s in demand.stages
        )
        return replace(demand, stages=stages)

    # The SLOs of the costs' models are guarded already.
    seen = group_costs([blind(m) for m in models], costs.model.slots, guard=1.0)
    return search_cluster(seen, usual_effort(len(models)), seed).spots


def _unseeded(
    rule: Callable[[GroupCosts], tuple[Spot, ...]],
) -> Callable[[GroupCosts, int], tuple[Spot, ...]]:
    return lambda costs, seed: rule(costs)


BASELINES: dict[str, Callable[[GroupCosts, int], tuple[Spot, ...]]] = {
    REFERENCE: _unseeded(alpaserve_like),
    FILLED: _unseeded(alpaserve_filling_memory),
    "selective replication": _unseeded(selective_replication),
    "round robin": _unseeded(round_robin),
    "one model per GPU": _unseeded(one_model_per_gpu),
    "ours without sensitivity": _without_sensitivity,
    OURS: _ours,
}

"""Placements that others would make, judged by the same model of the cluster and the same SLOs. Pure.

Each baseline decides where models go, as its authors would. What that costs is then computed as for our own
placements: at the top clocks, where the authors leave them, and at the lowest clocks that keep the SLOs, so
that what clocks save is told apart from what the placement saves. GPUs without a model are parked for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from muplan.baselines.alpaserve import alpaserve_like
from muplan.baselines.simple import one_model_per_gpu, round_robin, selective_replication
from muplan.initial_clocks import top_clocks
from muplan.placement import SLO_GUARD, group_costs, in_order
from muplan.placement.costs import GroupCosts
from muplan.placement.layout import Layout, Spot
from muplan.placement.pools import classes_of, search_cluster, usual_effort
from muplan.workload import Demand, Slot
from muserve.plan import TimeLaw

__all__ = ["BASELINES", "Judged", "judge"]

OURS = "ours"
REFERENCE = "AlpaServe-like"


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


def judge(name: str, demands: Sequence[Demand], slots: Sequence[Slot], *, seed: int = 0) -> Judged:
    """What the baseline called ``name`` (a key of ``BASELINES``) does with ``demands`` on ``slots``."""
    models, gpus = in_order(demands, slots)
    costs = group_costs(models, gpus, guard=SLO_GUARD)
    spots = BASELINES[name](costs, seed)
    layout = Layout(costs, classes_of(gpus))
    for model, spot in enumerate(spots):
        layout.put(model, spot)
    return _judged(costs, layout)


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
    "selective replication": _unseeded(selective_replication),
    "round robin": _unseeded(round_robin),
    "one model per GPU": _unseeded(one_model_per_gpu),
    "ours without sensitivity": _without_sensitivity,
    OURS: _ours,
}

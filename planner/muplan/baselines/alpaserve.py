"""A placement like AlpaServe's (Li et al. 2023, OSDI, arXiv 2302.11665, algorithms 1 and 2). Pure.

Device groups of equal size - powers of two, of equal GPUs of one node - are enumerated. For each size models
are spread over the groups greedily: again and again the model with the most unserved requests gets a replica
on the group, with memory for it, where fewest requests then go unserved. The size that serves most requests
wins, and among equals the one with the least latency: fastest first. Clocks are the driver's.

AlpaServe goes on until the memory is full; here that is a second placement, for replicas that nobody needs
keep GPUs awake that the first one can park.

Within a group a model runs as its stages or its tensor parallel degree allow. What AlpaServe's simulator
counts - requests within the SLO - is here the predicted attainment, so that all placements are judged alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from muplan.baselines.simple import busiest_first, one_replica_more, replicated
from muplan.initial_clocks import top_clocks
from muplan.placement.costs import GroupCosts, latency_shares
from muplan.placement.layout import NOWHERE, Layout, Spot
from muplan.placement.pools import classes_of
from muplan.placement.search import placed

_GROUP_SIZES = (1, 2, 4, 8)


def alpaserve_like(costs: GroupCosts) -> tuple[Spot, ...]:
    """The best of the placements for each group size."""
    best: tuple[tuple[int, int], float, tuple[Spot, ...]] | None = None
    for size in _GROUP_SIZES:
        groups = list(_groups(costs, size))
        if not groups:
            continue
        layout = Layout(costs, classes_of(costs.model.slots))
        for model in busiest_first(costs):
            layout.put(model, _best_spot(layout, model, groups))
        spots = replicated(layout)
        found = (layout.total[:2], _latency(layout), spots)
        if best is None or found[:2] < best[:2]:
            best = found
    assert best is not None, "groups of one GPU always exist"
    return best[2]


def alpaserve_filling_memory(costs: GroupCosts) -> tuple[Spot, ...]:
    """The same, then replicas while there is memory and nobody suffers, for whom each serves most work."""
    layout = Layout(costs, classes_of(costs.model.slots))
    for model, spot in enumerate(alpaserve_like(costs)):
        layout.put(model, spot)
    while any(_extended(layout, model) for model in _most_work_a_replica_first(layout)):
        pass
    return placed(layout)


def _extended(layout: Layout, model: int) -> bool:
    """Whether the model got one replica more."""
    before, spot = layout.total[:2], layout.take(model)
    more = one_replica_more(layout, model, spot)
    layout.put(model, more or spot)
    if more is None or layout.total[:2] <= before:
        return more is not None
    layout.take(model)
    layout.put(model, spot)
    return False


def _most_work_a_replica_first(layout: Layout) -> list[int]:
    part = layout.costs.model.slots[0].part.name

    def work(model: int) -> float:
        demand, spot = layout.costs.units.models[model], layout.spots[model]
        assert spot is not None, "every model is placed"
        return demand.rate_rps * demand.isolated_latency_ms(part) / demand.slots / max(1, len(spot.homes))

    return sorted(range(len(layout.spots)), key=lambda model: (-work(model), model))


def _groups(costs: GroupCosts, size: int) -> Iterator[Sequence[int]]:
    """Runs of ``size`` equal GPUs of one node; what is left over of a node is a smaller group."""
    for members in classes_of(costs.model.slots):
        if len(members) >= size:
            yield from (members[i : i + size] for i in range(0, len(members), size))


def _best_spot(layout: Layout, model: int, groups: Sequence[Sequence[int]]) -> Spot:
    """On the group where fewest requests miss, then where latency is least: its pipeline over the group."""
    best: tuple[tuple[int, int], float, Spot] | None = None
    for group in groups:
        for spot in _spots_in(layout, model, group):
            layout.put(model, spot)
            found = (layout.total[:2], _latency(layout), spot)
            layout.take(model)
            if best is None or found[:2] < best[:2]:
                best = found
    return best[2] if best is not None else NOWHERE


def _spots_in(layout: Layout, model: int, group: Sequence[int]) -> Iterator[Spot]:
    """The model as a pipeline over the group's GPUs, or in a way that fits into the group."""
    for number, way in enumerate(layout.costs.units.ways[model]):
        if len(way.units) > 1:
            continue
        if way.deployment.degree > 1:
            if way.deployment.degree == len(group):
                yield Spot(way=number, homes=(tuple(group),))
        elif way.stages > 1:
            per_gpu = -(-way.stages // len(group))
            yield Spot(way=number, homes=(tuple(group[stage // per_gpu] for stage in range(way.stages)),))
        else:
            yield from (Spot(way=number, homes=((gpu,),)) for gpu in group)


def _latency(layout: Layout) -> float:
    """Mean latency as a share of the SLOs over all models placed, at the top clocks."""
    assignment = {key: gpu for gpu, keys in layout.residents.items() for key in keys}
    group = layout.costs.model.group(assignment)
    return latency_shares(group, top_clocks(group))

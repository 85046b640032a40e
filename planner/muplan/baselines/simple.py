"""Rules of thumb for placing models: in turn, each alone, and replicas for whoever needs them. Pure.

A model that has to be on several GPUs is put on the emptiest ones of a node, whatever the rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from muplan.placement.costs import GroupCosts
from muplan.placement.layout import NOWHERE, Layout, Spot
from muplan.placement.pools import classes_of
from muplan.placement.search import placed
from muplan.placement.units import Way


def round_robin(costs: GroupCosts) -> tuple[Spot, ...]:
    """Models by name on the GPUs in turn, skipping GPUs without the memory."""
    layout = Layout(costs, classes_of(costs.model.slots))
    gpus = list(range(len(costs.model.slots)))
    turn = 0
    for model in range(len(costs.units.models)):
        spot = first_that_fits(layout, model, gpus[turn:] + gpus[:turn])
        layout.put(model, spot)
        if spot.homes:
            turn = (spot.homes[-1][-1] + 1) % len(gpus)
    return placed(layout)


def one_model_per_gpu(costs: GroupCosts) -> tuple[Spot, ...]:
    """The busiest model on the first GPU, and so on; with too few GPUs the rest joins the least busy ones."""
    layout = Layout(costs, classes_of(costs.model.slots))
    for model in busiest_first(costs):
        layout.put(model, first_that_fits(layout, model, least_loaded_first(layout)))
    return placed(layout)


def selective_replication(costs: GroupCosts) -> tuple[Spot, ...]:
    """Each model on the least loaded GPU, then a replica more for whoever misses most, while that helps.

    The baseline "SR" of AlpaServe (Li et al. 2023, arXiv 2302.11665, section 6.1): greedy replication, no
    model parallelism.
    """
    layout = Layout(costs, classes_of(costs.model.slots))
    for model in busiest_first(costs):
        layout.put(model, first_that_fits(layout, model, least_loaded_first(layout)))
    return replicated(layout)


def replicated(layout: Layout) -> tuple[Spot, ...]:
    """More replicas, on the least loaded GPUs, for whoever then meets more of the SLO, until nobody does."""
    improved = True
    while improved and layout.total[:2] != (0, 0):
        improved = False
        for model in busiest_first(layout.costs):
            before, spot = layout.total, layout.take(model)
            others = _with_more_replicas(layout, model, spot)
            layout.put(model, min(others, key=partial(_missing, layout, model)))
            improved = improved or layout.total[:2] < before[:2]
    return placed(layout)


def _missing(layout: Layout, model: int, spot: Spot) -> tuple[int, int]:
    """Memory and attainment missing with ``model`` there."""
    layout.put(model, spot)
    missing = layout.total[:2]
    layout.take(model)
    return missing


def _with_more_replicas(layout: Layout, model: int, spot: Spot) -> list[Spot]:
    """The same spot, and the ways of the same degree with more replicas."""
    ways = layout.costs.units.ways[model]
    here = ways[spot.way].deployment
    gpus = least_loaded_first(layout)
    spots = [spot]
    for number, way in enumerate(ways):
        if way.deployment.degree == here.degree and way.deployment.replicas > here.replicas:
            homes = _on_equal_gpus(layout, way, gpus)
            spots += [Spot(way=number, homes=homes)] if homes else []
    return spots


def one_replica_more(layout: Layout, model: int, spot: Spot) -> Spot | None:
    """The way of the same degree with one replica more, on the least loaded GPUs; None without room."""
    here = layout.costs.units.ways[model][spot.way].deployment
    for number, way in enumerate(layout.costs.units.ways[model]):
        if way.deployment == replace(here, replicas=here.replicas + 1):
            homes = _on_equal_gpus(layout, way, least_loaded_first(layout))
            return Spot(way=number, homes=homes) if homes else None
    return None


def first_that_fits(layout: Layout, model: int, gpus: Sequence[int]) -> Spot:
    """The way with the fewest GPUs that has room on ``gpus``, tried in their order; else the first at all."""
    ways = layout.costs.units.ways[model]
    for number, way in enumerate(ways):
        if way.single:
            for gpu in gpus:
                if _has_room(layout, way, gpu):
                    return Spot(way=number, homes=((gpu,) * way.stages,))
        else:
            homes = _on_equal_gpus(layout, way, gpus)
            if homes:
                return Spot(way=number, homes=homes)
    if ways[0].single:
        return Spot(way=0, homes=((gpus[0],) * ways[0].stages,))
    return NOWHERE


def busiest_first(costs: GroupCosts) -> list[int]:
    """Models by the time they need on the first part, those that need several GPUs before all."""
    part = costs.model.slots[0].part.name
    models = costs.units.models
    several = [not any(way.single for way in ways) for ways in costs.units.ways]
    work = [demand.rate_rps * demand.isolated_latency_ms(part) / demand.slots for demand in models]
    return sorted(range(len(models)), key=lambda model: (not several[model], -work[model], model))


def least_loaded_first(layout: Layout) -> list[int]:
    """All GPUs by the time that their residents need."""
    demands, slots = layout.costs.model.demands, layout.costs.model.slots

    def load(gpu: int) -> float:
        part = slots[gpu].part.name
        owners = {unit for unit, _ in layout.residents.get(gpu, ())}
        return sum(
            demands[u].rate_rps * demands[u].isolated_latency_ms(part) / demands[u].slots for u in owners
        )

    return sorted(itertools.chain.from_iterable(layout.pool), key=lambda gpu: (load(gpu), gpu))


def _on_equal_gpus(layout: Layout, way: Way, gpus: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """The first ``gpus`` of one part and node with room for all replicas; () when there are not enough."""
    class_of = {gpu: number for number, members in enumerate(layout.pool) for gpu in members}
    need, degree = len(way.units) * way.deployment.degree, way.deployment.degree
    found: dict[int, list[int]] = {}
    for gpu in gpus:
        if _has_room(layout, way, gpu):
            members = found.setdefault(class_of[gpu], [])
            members.append(gpu)
            if len(members) == need:
                if degree == 1:
                    return tuple((member,) * way.stages for member in members)
                return tuple(tuple(members[i : i + degree]) for i in range(0, need, degree))
    return ()


def _has_room(layout: Layout, way: Way, gpu: int) -> bool:
    """Whether one replica, or one tensor parallel part of it, fits beside what is there."""
    demands = layout.costs.model.demands
    stages = demands[way.units[0]].stages
    need = sum(stage.memory_bytes for stage in stages) // way.deployment.degree
    used = sum(demands[unit].stages[stage].memory_bytes for unit, stage in layout.residents.get(gpu, ()))
    return used + need <= layout.costs.model.slots[gpu].part.memory_bytes

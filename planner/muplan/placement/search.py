"""Construction and ruin-and-recreate local search for one pool of GPUs. Pure and deterministic for a seed.

Models are inserted one by one, hardest first, each where it costs least; then, again and again, the models
of a few GPUs, or a few models at random, are taken out and inserted anew in another order, and the result
is kept unless it is worse (ruin and recreate: Schrimpf et al. 2000; large neighbourhood search: Shaw 1998).
Models may be told to shun GPUs they come from. That covers moving, swapping, emptying a GPU, merging two.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from muplan.placement.costs import Cost, GroupCosts
from muplan.placement.insertion import Inserter
from muplan.placement.layout import Layout, Spot

_MOST_GPUS_RUINED = 3
_MOST_MODELS_RUINED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where every model is, what that costs, and per class of equal GPUs how many were within reach."""

    cost: Cost
    spots: tuple[Spot, ...]
    reach: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long to search: starts, and rounds of ruin and recreate after each."""

    starts: int
    rounds: int
    any_feasible: bool = False


def search(costs: GroupCosts, pool: Sequence[Sequence[int]], effort: Effort, seed: int) -> Found:
    """The best layout found on the GPUs of ``pool``, which lists classes of equal GPUs by position.

    With ``effort.any_feasible`` the first feasible one. A larger pool gives the same result as long as its
    classes are those of ``Found.reach`` or larger.
    """
    draw = random.Random(seed)
    best: Found | None = None
    reach = [0] * len(pool)
    for order in _orders(costs)[: effort.starts]:
        layout = Layout(costs, pool)
        inserter = Inserter(layout)
        for model in order:
            inserter.insert(model)
        _improve(layout, inserter, order, effort, draw)
        reach = [max(pair) for pair in zip(reach, layout.reach, strict=True)]
        found = Found(cost=layout.total, spots=placed(layout), reach=tuple(reach))
        if best is None or found.cost < best.cost:
            best = found
        if effort.any_feasible and best.cost[:2] == (0, 0):
            break
    assert best is not None, "there is at least one start"
    return Found(cost=best.cost, spots=best.spots, reach=tuple(reach))


def placed(layout: Layout) -> tuple[Spot, ...]:
    """The spots of a layout in which every model is placed."""
    return tuple(spot for spot in layout.spots if spot is not None)


def _improve(
    layout: Layout, inserter: Inserter, order: Sequence[int], effort: Effort, draw: random.Random
) -> None:
    """Rounds of ruin and recreate; a round that ends worse is undone."""
    rank = {model: position for position, model in enumerate(order)}
    for _ in range(effort.rounds):
        if effort.any_feasible and layout.total[:2] == (0, 0):
            return
        models, shunned = _ruined(layout, draw)
        before = layout.total
        spots = {model: layout.take(model) for model in models}
        if draw.random() < 0.5:
            draw.shuffle(models)
        else:
            models.sort(key=rank.__getitem__)
        for model in models:
            inserter.insert(model, draw, shunned)
        if layout.total > before:
            for model in models:
                layout.take(model)
            for model, spot in spots.items():
                layout.put(model, spot)


def _ruined(layout: Layout, draw: random.Random) -> tuple[list[int], frozenset[int]]:
    """The models to take out, of a few GPUs or any, and those of the GPUs that they should not go back to."""
    if draw.random() < 0.25:
        count = min(len(layout.spots), draw.randint(1, _MOST_MODELS_RUINED))
        return sorted(draw.sample(range(len(layout.spots)), count)), frozenset()
    gpus = layout.in_use()
    ruined = draw.sample(gpus, min(len(gpus), draw.randint(1, _MOST_GPUS_RUINED)))
    shunned = ruined[: draw.randint(0, len(ruined))]
    return layout.models_on(ruined), frozenset(shunned)


def _orders(costs: GroupCosts) -> tuple[list[int], ...]:
    """Models by what may be hard to place: the tightest SLO, the busiest, the largest first.

    Those that cannot do with one GPU come before all others.
    """
    part = costs.model.slots[0].part.name
    models = costs.units.models
    memory = [sum(stage.memory_bytes for stage in demand.stages) for demand in models]
    alone_ms = [demand.isolated_latency_ms(part) for demand in models]
    work = [demand.rate_rps * ms for demand, ms in zip(models, alone_ms, strict=True)]
    tightness = [ms / demand.slo_ms for demand, ms in zip(models, alone_ms, strict=True)]
    several = [not any(way.single for way in ways) for ways in costs.units.ways]

    def hardest_first(hardness: Sequence[float]) -> list[int]:
        return sorted(range(len(models)), key=lambda model: (not several[model], -hardness[model], model))

    return hardest_first(tightness), hardest_first(work), hardest_first(memory)

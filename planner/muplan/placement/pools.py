"""Search over a cluster such that more GPUs never make the plan worse. Pure and deterministic for a seed.

GPUs of equal part and node are interchangeable, so a cluster is how many there are of each class. What is
promised of a cluster and the same cluster with one more GPU in one of its classes:

* the search never asks for more than ``Found.reach`` of a class, so with ``reach`` GPUs of that class or
  more it takes exactly the same course: the plan stays, and the added GPU is parked;
* where a class is smaller than the search's reach, the results for one GPU less of that class are among the
  candidates, and theirs in turn, so the best of them cannot be worse than without the GPU. This is done for
  clusters with at most ``MOST_POOLS`` sub-clusters and ``MOST_MODELS`` models.

Either way the cluster's power grows by no more than the parked power of the added GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from muplan.placement.costs import GroupCosts
from muplan.placement.search import Effort, Found, search
from muplan.workload import Slot

MOST_POOLS = 64
MOST_MODELS = 24


def classes_of(slots: Sequence[Slot]) -> list[list[int]]:
    """Positions of the GPUs of each part and node, in the order of the slots."""
    classes: dict[tuple[str, str], list[int]] = {}
    for position, slot in enumerate(slots):
        classes.setdefault((slot.part.name, slot.node), []).append(position)
    return list(classes.values())


def usual_effort(models: int) -> Effort:
    """More starts and rounds for a model in a small case, a bounded number in a large one."""
    if models <= 100:
        return Effort(starts=3, rounds=min(20 + 8 * models, 300))
    return Effort(starts=1, rounds=2000)


def search_cluster(costs: GroupCosts, effort: Effort, seed: int) -> Found:
    """The best layout found on all GPUs of the costs' model and on the sub-clusters that matter."""
    classes = classes_of(costs.model.slots)
    sizes = tuple(map(len, classes))
    every = (
        len(costs.units.models) <= MOST_MODELS
        and math.prod(size + 1 for size in sizes) <= MOST_POOLS
        and not effort.any_feasible
    )
    known: dict[tuple[int, ...], Found] = {}

    def best(sizes: tuple[int, ...]) -> Found:
        if sizes not in known:
            found = _search(costs, classes, sizes, effort, seed)
            for number, (size, reach) in enumerate(zip(sizes, found.reach, strict=True)):
                if every and 0 < size <= reach and sum(sizes) > 1:
                    fewer = best((*sizes[:number], size - 1, *sizes[number + 1 :]))
                    found = min(found, fewer, key=lambda f: f.cost)
            known[sizes] = found
        return known[sizes]

    return best(sizes)


def _search(
    costs: GroupCosts, classes: Sequence[Sequence[int]], sizes: Sequence[int], effort: Effort, seed: int
) -> Found:
    used = [number for number, size in enumerate(sizes) if size]
    found = search(costs, [classes[number][: sizes[number]] for number in used], effort, seed)
    reach = dict(zip(used, found.reach, strict=True))
    return Found(
        cost=found.cost, spots=found.spots, reach=tuple(reach.get(n, 0) for n in range(len(classes)))
    )

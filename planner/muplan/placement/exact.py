"""The least cost there is, for small cases. Pure; needs SciPy, which the extra ``plan`` brings.

Where every model can only live whole on single GPUs, a placement is a choice of *columns*: a column is a set
of residents that one GPU of a class bears, with its cost at the lowest clocks that keep the SLOs. The choice
is a set partitioning problem, solved as a mixed integer linear programme by HiGHS (Huangfu and Hall 2018):

    minimise    sum over columns j of cost_j x_j
    such that   sum of x_j over columns of class c that hold way w of model m = replicas_w y_mwc
                sum over w, c of y_mwc = 1    for every model m
                sum of x_j over columns of class c <= GPUs of class c

Models that span GPUs - several partitions, tensor parallel engines - make the cost of a GPU depend on
others; such cases are enumerated by branch and bound instead. Both rely on one law: another resident never
makes a group of GPUs cheaper or feasible.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from muplan.placement.costs import GroupCosts
from muplan.placement.layout import Layout, Spot
from muplan.placement.pools import classes_of
from muplan.placement.search import Found, placed
from muplan.placement.units import Way
from muserve.errors import InputError

# What "small" means: columns of the programme, placements looked at by branch and bound, seconds in HiGHS.
MOST_COLUMNS = 50_000
MOST_PLACEMENTS = 500_000
_MOST_SECONDS = 300.0

# (model, way) pairs on one GPU.
_Residents = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    gpu_class: int
    residents: _Residents
    cost: int


def exact_search(costs: GroupCosts) -> Found | None:
    """A placement of least cost on all GPUs of the costs' model; None when no placement keeps the SLOs.

    InputError when the case is too large, or SciPy is missing.
    """
    every_way = [way for ways in costs.units.ways for way in ways]
    return (
        _by_programme(costs)
        if all(way.stages == 1 for way in every_way)
        else exact_search_by_enumeration(costs)
    )


def _by_programme(costs: GroupCosts) -> Found | None:
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError as error:
        raise InputError("exact search needs SciPy: install muserve[plan]") from error
    classes = classes_of(costs.model.slots)
    columns = list(_columns(costs, classes))
    ways = [
        (model, number, gpu_class)
        for model, options in enumerate(costs.units.ways)
        for number in range(len(options))
        for gpu_class in range(len(classes))
    ]
    way_row = {key: row for row, key in enumerate(ways)}
    model_row, class_row = len(ways), len(ways) + len(costs.units.models)
    entries: list[tuple[int, int, float]] = []
    for position, column in enumerate(columns):
        entries += [(way_row[m, w, column.gpu_class], position, 1.0) for m, w in column.residents]
        entries.append((class_row + column.gpu_class, position, 1.0))
    for offset, (model, number, _) in enumerate(ways):
        replicas = len(costs.units.ways[model][number].units)
        entries.append((offset, len(columns) + offset, -float(replicas)))
        entries.append((model_row + model, len(columns) + offset, 1.0))
    rows, positions, values = zip(*entries, strict=True)
    shape = class_row + len(classes), len(columns) + len(ways)
    lower = [0.0] * len(ways) + [1.0] * len(costs.units.models) + [0.0] * len(classes)
    upper = [*lower[:class_row], *(float(len(gpus)) for gpus in classes)]
    limits = [float(len(classes[column.gpu_class])) for column in columns] + [1.0] * len(ways)
    solution = milp(
        c=[column.cost * 1e-6 for column in columns] + [0.0] * len(ways),
        integrality=[1] * shape[1],
        bounds=Bounds(0.0, limits),
        constraints=LinearConstraint(
            coo_array((values, (rows, positions)), shape=shape).tocsr(), lower, upper
        ),
        options={"mip_rel_gap": 0.0, "time_limit": _MOST_SECONDS},
    )
    if solution.status == 2:  # infeasible
        return None
    if solution.status != 0:
        raise InputError(
            f"exact search: expected a case HiGHS solves in {_MOST_SECONDS:g} s, got a larger one"
        )
    times = [round(value) for value in solution.x[: len(columns)]]
    chosen = [column for column, count in zip(columns, times, strict=True) for _ in range(count)]
    return _decoded(costs, classes, chosen)


def _columns(costs: GroupCosts, classes: Sequence[Sequence[int]]) -> Iterator[_Column]:
    """Every set of residents that a GPU bears, no model twice."""
    count = 0
    for gpu_class, gpus in enumerate(classes):
        waiting: list[tuple[_Residents, int]] = [((), 0)]
        while waiting:
            residents, first = waiting.pop()
            for model in range(first, len(costs.units.models)):
                for number in range(len(costs.units.ways[model])):
                    more = (*residents, (model, number))
                    keys = tuple((costs.units.ways[m][w].units[0], 0) for m, w in more)
                    cost = costs.of_gpu(gpus[0], keys).cost
                    if cost[:2] != (0, 0):
                        continue
                    count += 1
                    if count > MOST_COLUMNS:
                        raise InputError(
                            f"exact search: expected a case with at most {MOST_COLUMNS} ways to fill a GPU, "
                            f"got {len(costs.units.models)} models with more"
                        )
                    yield _Column(gpu_class=gpu_class, residents=more, cost=cost[2])
                    waiting.append((more, model + 1))


def _decoded(costs: GroupCosts, classes: Sequence[Sequence[int]], columns: Sequence[_Column]) -> Found:
    """The placement in which each column fills a GPU of its own."""
    homes: dict[tuple[int, int], list[int]] = defaultdict(list)
    filled = [0] * len(classes)
    for column in columns:
        gpu = classes[column.gpu_class][filled[column.gpu_class]]
        filled[column.gpu_class] += 1
        for key in column.residents:
            homes[key].append(gpu)
    layout = Layout(costs, classes)
    for (model, number), gpus in sorted(homes.items()):
        layout.put(model, Spot(way=number, homes=tuple((gpu,) for gpu in gpus)))
    return Found(cost=layout.total, spots=placed(layout), reach=tuple(map(len, classes)))


def exact_search_by_enumeration(costs: GroupCosts) -> Found | None:
    """The same by branch and bound over all placements."""
    layout = Layout(costs, classes_of(costs.model.slots))
    best: Found | None = None
    looked_at = 0

    def extend(model: int) -> None:
        nonlocal best, looked_at
        if model == len(costs.units.models):
            best = Found(cost=layout.total, spots=placed(layout), reach=tuple(map(len, layout.pool)))
            return
        for spot in _spots(layout, costs.units.ways[model]):
            looked_at += 1
            if looked_at > MOST_PLACEMENTS:
                raise InputError(
                    f"exact search: expected a case with at most {MOST_PLACEMENTS} placements to look at, "
                    f"got {len(costs.units.models)} models with more"
                )
            layout.put(model, spot)
            if layout.total[:2] == (0, 0) and (best is None or layout.total < best.cost):
                extend(model + 1)
            layout.take(model)

    extend(0)
    return best


def _spots(layout: Layout, ways: Sequence[Way]) -> Iterator[Spot]:
    """Every spot of a model, of those that only exchange empty equal GPUs or replicas the first."""
    nodes: dict[str, list[int]] = defaultdict(list)
    for number, gpus in enumerate(layout.pool):
        nodes[layout.costs.model.slots[gpus[0]].node].append(number)
    for number, way in enumerate(ways):
        for classes in nodes.values():
            for homes in _homes(layout, classes, way):
                yield Spot(way=number, homes=homes)


def _homes(layout: Layout, classes: Sequence[int], way: Way) -> Iterator[tuple[tuple[int, ...], ...]]:
    count = len(way.units)
    if count == 1 and way.deployment.degree == 1:
        yield from ((home,) for home in _chains(layout, classes, way.stages))
        return
    for number in classes:
        gpus = [gpu for gpu in layout.pool[number] if gpu in layout.residents]
        gpus += layout.empty(number, way.deployment.degree * count)
        if way.deployment.degree == 1:
            for chosen in itertools.combinations(gpus, count):
                yield tuple((gpu,) * way.stages for gpu in chosen)
        else:
            groups = list(itertools.combinations(gpus, way.stages))
            for several in itertools.combinations(groups, count):
                if len(set(itertools.chain.from_iterable(several))) == way.stages * count:
                    yield several


def _chains(layout: Layout, classes: Sequence[int], stages: int) -> Iterator[tuple[int, ...]]:
    """A GPU for each stage of a pipeline, empty equal GPUs taken in order."""

    def extend(home: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(home) == stages:
            yield home
            return
        for number in classes:
            for gpu in layout.pool[number]:
                yield from extend((*home, gpu))
                if gpu not in layout.residents and gpu not in home:
                    break

    yield from extend(())

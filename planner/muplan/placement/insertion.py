"""Where a model that is not placed could go, and where it costs least. Pure.

On one GPU, a model is best off beside residents that need about the clock it needs itself, so of the GPUs
in use those nearest in clock are tried, and one empty GPU of each class. A model on several GPUs is put
together on one node, replica by replica or stage by stage, each where it costs least.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from muplan.placement.costs import Cost
from muplan.placement.layout import NOWHERE, Layout, Spot
from muplan.placement.units import Homes, Way
from muplan.workload import StageKey

# GPUs in use that are tried for a model, and nodes for one on several GPUs.
_NEAREST_GPUS = 12
_NODES = 4
# Groups of GPUs of one node that are tried for a tensor parallel engine.
_ENGINE_GROUPS = 12
# Chance that a spot is overlooked while models are inserted anew.
_BLINK = 0.05
# Chance that a pipeline is tried on several GPUs while models are inserted anew; always on so few GPUs.
_SPLIT = 0.2
_FEW_GPUS = 4

Priced = tuple[Cost, Spot]


class Inserter:
    """Finds spots in layouts of the given classes of equal GPUs."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._costs = layout.costs
        slots = self._costs.model.slots
        self._parts = [slots[gpus[0]].part.name for gpus in layout.pool]
        self._nodes: dict[str, list[int]] = {}
        for number, gpus in enumerate(layout.pool):
            self._nodes.setdefault(slots[gpus[0]].node, []).append(number)
        self._class_of = {gpu: number for number, gpus in enumerate(layout.pool) for gpu in gpus}

    def insert(
        self, model: int, draw: random.Random | None = None, shunned: frozenset[int] = frozenset()
    ) -> None:
        """Put a model where it costs least; with ``draw`` good spots are overlooked now and then.

        Overlooking is what lets ruin and recreate leave a local optimum (Christiaens and Vanden Berghe 2020,
        Slack Induction by String Removals, section 5.2). ``shunned`` GPUs, and empty ones of their classes,
        are only for models that fit nowhere else.
        """
        best: Priced | None = None
        last_resort: Priced | None = None
        empty_shunned = {self._class_of[gpu] for gpu in shunned}
        few = len(self._layout.residents) <= _FEW_GPUS
        split = draw is None or few or draw.random() < _SPLIT
        for priced in self._spots(model, split=split):
            cost, spot = priced
            if best is not None and cost >= best[0]:
                continue
            if last_resort is None or cost < last_resort[0]:
                last_resort = priced
            if shunned and any(
                self._is_shunned(gpu, shunned, empty_shunned) for h in spot.homes for gpu in h
            ):
                continue
            if draw is None or draw.random() >= _BLINK:
                best = priced
        if best is None or best[0][:2] > (0, 0):
            best = last_resort
        self._layout.put(model, NOWHERE if best is None else best[1])

    def _is_shunned(self, gpu: int, shunned: frozenset[int], empty_shunned: set[int]) -> bool:
        if gpu in self._layout.residents:
            return gpu in shunned
        return self._class_of[gpu] in empty_shunned

    def _spots(self, model: int, *, split: bool) -> Iterator[Priced]:
        """Spots with what the total cost grows by; ways that cannot pay are left out.

        Unless ``split``, a model that one GPU can hold is not tried on several, which takes long.
        """
        feasible_clocks: list[int] = []
        for number, way in enumerate(self._costs.units.ways[model]):
            if way.single:
                alone = self._alone_clock(way)
                yield from self._on_one_gpu(number, way, alone)
                if way.stages > 1 and (split or alone is None):
                    yield from self._on_several(model, number, way)
                if alone is not None:
                    feasible_clocks.append(alone)
            elif self._worth_more_gpus(way, feasible_clocks):
                yield from self._on_several(model, number, way)

    def _worth_more_gpus(self, way: Way, feasible_clocks: Sequence[int]) -> bool:
        """Whether fewer GPUs fail, or replicas could run slower, or few GPUs are in use and all is tried."""
        if not feasible_clocks or len(self._layout.residents) <= _NEAREST_GPUS:
            return True
        if way.deployment.degree > 1:
            return False
        alone = self._alone_clock(way)
        return alone is not None and alone < min(feasible_clocks)

    def _alone_clock(self, way: Way) -> int | None:
        """The lowest clock at which a replica alone on a GPU keeps its SLO, over the parts; None if none."""
        if way.deployment.degree > 1:
            return None
        keys = _keys(way, 0)
        clocks = []
        for number, gpus in enumerate(self._layout.pool):
            if self._parts[number] in self._parts[:number]:
                continue
            verdict = self._costs.of_gpu(gpus[0], keys)
            if verdict.cost[:2] == (0, 0):
                clocks.append(verdict.clock_mhz)
        return min(clocks, default=None)

    def _on_one_gpu(self, number: int, way: Way, alone_clock: int | None) -> Iterator[Priced]:
        keys = _keys(way, 0)
        for gpu in self._nearest(self._layout.in_use(), alone_clock):
            yield self._priced(gpu, keys, number, way)
        for gpu in self._one_empty_of_each(range(len(self._parts))):
            yield self._priced(gpu, keys, number, way)

    def _priced(self, gpu: int, keys: tuple[StageKey, ...], number: int, way: Way) -> Priced:
        spot = Spot(way=number, homes=((gpu,) * way.stages,))
        if self._layout.alone(gpu):
            return self._layout.price(gpu, keys), spot
        owner = self._costs.units.owner[way.units[0]]
        return self._tried(owner, spot), spot

    def _tried(self, model: int, spot: Spot) -> Cost:
        before = self._layout.total
        self._layout.put(model, spot)
        after = self._layout.total
        self._layout.take(model)
        return after[0] - before[0], after[1] - before[1], after[2] - before[2]

    def _nearest(self, gpus: Sequence[int], clock_mhz: int | None) -> list[int]:
        if len(gpus) <= _NEAREST_GPUS or clock_mhz is None:
            return list(gpus[:_NEAREST_GPUS])
        return sorted(gpus, key=lambda gpu: (abs(self._layout.clock_mhz(gpu) - clock_mhz), gpu))[
            :_NEAREST_GPUS
        ]

    def _one_empty_of_each(self, classes: Sequence[int]) -> list[int]:
        """The first empty GPU of each class; of many classes only one for each part."""
        found = []
        parts: dict[str, int] = {}
        for number in classes:
            part = self._parts[number]
            if parts.get(part, 0) >= _NODES:
                continue
            empty = self._layout.empty(number)
            if empty:
                parts[part] = parts.get(part, 0) + 1
                found += empty
        return found

    def _on_several(self, model: int, number: int, way: Way) -> Iterator[Priced]:
        """Replicas, stages and tensor parallel groups on several GPUs of one node."""
        for classes in self._promising_nodes():
            if way.deployment.degree > 1:
                candidates = self._engine_homes(classes, way)
            elif len(way.units) > 1:
                yield from self._replicas(number, classes, way)
                continue
            else:
                candidates = self._staged_homes(model, number, classes, way)
            for homes in candidates:
                spot = Spot(way=number, homes=homes)
                yield self._tried(model, spot), spot

    def _promising_nodes(self) -> list[list[int]]:
        """The classes of each node; of many nodes only the emptiest of those in use, and one not in use."""
        nodes = list(self._nodes.values())
        if len(nodes) <= _NODES:
            return nodes
        used = [sum(len(self._used_of(number)) for number in node) for node in nodes]
        started = sorted((n for n, count in enumerate(used) if count), key=lambda n: (used[n], n))
        fresh = [n for n, count in enumerate(used) if not count]
        return [nodes[n] for n in [*started[: _NODES - 1], *fresh[:1]]]

    def _replicas(self, number: int, classes: Sequence[int], way: Way) -> Iterator[Priced]:
        """For each part, the GPUs where one replica costs least, as many as there are replicas."""
        count, keys = len(way.units), _keys(way, 0)
        for gpu_class in classes:
            gpus = self._used_of(gpu_class) + self._layout.empty(gpu_class, count)
            prices = sorted((self._layout.price(gpu, keys), gpu) for gpu in gpus if self._layout.alone(gpu))
            if len(prices) < count:
                continue
            chosen = prices[:count]
            total = (
                sum(price[0] for price, _ in chosen),
                sum(price[1] for price, _ in chosen),
                sum(price[2] for price, _ in chosen),
            )
            homes = tuple((gpu,) * way.stages for _, gpu in chosen)
            yield total, Spot(way=number, homes=homes)

    def _staged_homes(self, model: int, number: int, classes: Sequence[int], way: Way) -> Iterator[Homes]:
        """The stages of one replica, each moved where it then costs least."""
        gpus: list[int] = []
        for c in classes:
            gpus += self._used_of(c)[:_NEAREST_GPUS] + self._layout.empty(c, way.stages)
        start = min(gpus, key=lambda gpu: (self._tried(model, _whole(number, gpu, way)), gpu))
        home = [start] * way.stages
        cost = self._tried(model, _whole(number, start, way))
        for stage, gpu in itertools.product(range(way.stages), gpus):
            trial = [*home[:stage], gpu, *home[stage + 1 :]]
            trial_cost = self._tried(model, Spot(way=number, homes=(tuple(trial),)))
            if trial_cost < cost:
                home, cost = trial, trial_cost
        yield (tuple(home),)

    def _engine_homes(self, classes: Sequence[int], way: Way) -> Iterator[Homes]:
        """Groups of equal GPUs, one for each replica: runs of the GPUs ordered by how full they are."""
        degree, count = way.stages, len(way.units)
        for number in classes:
            gpus = self._used_of(number) + self._layout.empty(number, degree * count)
            memory = {gpu: self._memory(gpu) for gpu in gpus}
            ranked = sorted(gpus, key=lambda gpu: (memory[gpu], gpu))
            for first in range(min(_ENGINE_GROUPS, len(ranked) - degree * count + 1)):
                chosen = sorted(ranked[first : first + degree * count])
                yield tuple(tuple(chosen[i * degree : (i + 1) * degree]) for i in range(count))

    def _memory(self, gpu: int) -> int:
        demands = self._costs.model.demands
        return sum(demands[u].stages[s].memory_bytes for u, s in self._layout.residents.get(gpu, ()))

    def _used_of(self, number: int) -> list[int]:
        return [gpu for gpu in self._layout.pool[number] if gpu in self._layout.residents]


def _keys(way: Way, replica: int) -> tuple[StageKey, ...]:
    return tuple((way.units[replica], stage) for stage in range(way.stages))


def _whole(number: int, gpu: int, way: Way) -> Spot:
    return Spot(way=number, homes=((gpu,) * way.stages,))

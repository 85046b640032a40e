"""A placement that can be changed in place and always knows its cost. Pure but for its own state.

Only the groups of GPUs that a change touches are judged again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from muplan.placement.costs import FREE, Cost, GroupCosts, Verdict
from muplan.placement.units import Homes
from muplan.workload import StageKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a model is: the number of its way, and the GPUs of every stage of every replica.

    A model for which no node has enough GPUs has no ``homes``; its whole memory counts as missing.
    """

    way: int
    homes: Homes


NOWHERE = Spot(way=0, homes=())


class Layout:
    """Models on GPUs. ``pool`` lists the positions of the GPUs that may be used, in classes of equals.

    Equal GPUs have the same part and node. ``reach[c]`` is the most GPUs of class ``c`` that were in use or
    on offer at any time: with that many GPUs, or more, everything would have gone the same way.
    """

    def __init__(self, costs: GroupCosts, pool: Sequence[Sequence[int]]) -> None:
        self.costs = costs
        self.pool = [list(gpus) for gpus in pool]
        self.spots: list[Spot | None] = [None] * len(costs.units.models)
        self.residents: dict[int, tuple[StageKey, ...]] = {}
        self.total: Cost = FREE
        self.reach = [0] * len(self.pool)
        self._group: dict[int, tuple[int, ...]] = {}
        self._verdicts: dict[int, Verdict] = {}

    def in_use(self) -> list[int]:
        """GPUs with residents, ascending."""
        return sorted(self.residents)

    def alone(self, gpu: int) -> bool:
        """Whether no resident of ``gpu`` has stages elsewhere."""
        return len(self._group.get(gpu, (gpu,))) == 1

    def clock_mhz(self, gpu: int) -> int:
        """The clock of a GPU in use; of a group, that of its first GPU."""
        return self._verdicts[self._group[gpu][0]].clock_mhz

    def empty(self, number: int, count: int = 1) -> list[int]:
        """Up to ``count`` unused GPUs of class ``number``, the first ones."""
        found: list[int] = []
        used = 0
        for gpu in self.pool[number]:
            if gpu in self.residents:
                used += 1
            elif len(found) < count:
                found.append(gpu)
        self.reach[number] = max(self.reach[number], used + count)
        return found

    def price(self, gpu: int, keys: tuple[StageKey, ...]) -> Cost:
        """What the cost grows by when ``keys``, all stages of one replica, join a GPU that is ``alone``."""
        present = self.residents.get(gpu, ())
        after = self.costs.of_gpu(gpu, present + keys).cost
        before = self._verdicts[gpu].cost if present else FREE
        return after[0] - before[0], after[1] - before[1], after[2] - before[2]

    def put(self, model: int, spot: Spot) -> None:
        """Place a model that is not placed."""
        assert self.spots[model] is None, "a model is placed once"
        self.spots[model] = spot
        if not spot.homes:
            self._add((self._memory_bytes(model), 0, 0), sign=1)
            return
        for key, gpu in self._keys(model, spot):
            # In order, so that a GPU's history does not show in its cost.
            self.residents[gpu] = tuple(sorted((*self.residents.get(gpu, ()), key)))
        self._judge({gpu for homes in spot.homes for gpu in homes})

    def take(self, model: int) -> Spot:
        """Remove a model that is placed; returns where it was."""
        spot = self.spots[model]
        assert spot is not None, "only a placed model can be taken"
        self.spots[model] = None
        if not spot.homes:
            self._add((self._memory_bytes(model), 0, 0), sign=-1)
            return spot
        for key, gpu in self._keys(model, spot):
            left = tuple(other for other in self.residents[gpu] if other != key)
            if left:
                self.residents[gpu] = left
            else:
                del self.residents[gpu]
        self._judge({gpu for homes in spot.homes for gpu in homes})
        return spot

    def models_on(self, gpus: Iterable[int]) -> list[int]:
        """Models with a stage on any of ``gpus``, ascending."""
        owners = self.costs.units.owner
        return sorted({owners[unit] for gpu in gpus for unit, _ in self.residents.get(gpu, ())})

    def _memory_bytes(self, model: int) -> int:
        return sum(stage.memory_bytes for stage in self.costs.units.models[model].stages)

    def _keys(self, model: int, spot: Spot) -> Iterable[tuple[StageKey, int]]:
        units = self.costs.units.ways[model][spot.way].units
        for unit, homes in zip(units, spot.homes, strict=True):
            for stage, gpu in enumerate(homes):
                yield (unit, stage), gpu

    def _judge(self, touched: set[int]) -> None:
        """Bring groups and the total up to date after a change on the ``touched`` GPUs."""
        members = set(touched)
        for gpu in touched:
            members.update(self._group.get(gpu, ()))
        for gpu in members:
            group = self._group.pop(gpu, None)
            if group is not None and group[0] == gpu:
                self._add(self._verdicts.pop(gpu).cost, sign=-1)
        for gpu in sorted(members):
            if gpu in self._group or gpu not in self.residents:
                continue
            group = self._connected(gpu)
            verdict = self.costs.of_group({member: self.residents[member] for member in group})
            self._verdicts[group[0]] = verdict
            self._add(verdict.cost, sign=1)
            for member in group:
                self._group[member] = group

    def _connected(self, gpu: int) -> tuple[int, ...]:
        """All GPUs that models connect to ``gpu``, ascending."""
        seen = {gpu}
        waiting = [gpu]
        while waiting:
            for unit, _ in self.residents[waiting.pop()]:
                for other in self._homes_of(unit):
                    if other not in seen:
                        seen.add(other)
                        waiting.append(other)
        return tuple(sorted(seen))

    def _homes_of(self, unit: int) -> tuple[int, ...]:
        model = self.costs.units.owner[unit]
        spot = self.spots[model]
        assert spot is not None, "a resident's model is placed"
        return spot.homes[unit - self.costs.units.ways[model][spot.way].units[0]]

    def _add(self, cost: Cost, *, sign: int) -> None:
        total = self.total
        self.total = (
            total[0] + sign * cost[0],
            total[1] + sign * cost[1],
            total[2] + sign * cost[2],
        )

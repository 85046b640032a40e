"""What a group of connected GPUs costs, remembered by what is on it. Pure.

Costs are triples of integers - bytes of memory missing, billionths of attainment missing, millionths of the
objective's unit - compared in this order: sums of integers are exact, so a total kept up to date move by
move never drifts, and equal placements have equal costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from muplan.group import Group
from muplan.initial_clocks import lowest_clocks, top_clocks
from muplan.operating import ClusterModel
from muplan.placement.units import Units
from muplan.workload import Slot, StageKey
from muserve.plan import ModelKind

Cost = tuple[int, int, int]

FREE: Cost = (0, 0, 0)

_SHORTFALL_UNIT = 1e9
_OBJECTIVE_UNIT = 1e6

# What a group costs at the given clocks, over and above its GPUs being parked.
Objective = Callable[[Group, Mapping[int, int]], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Cost of one group, and the clock of its first GPU (the top clock unless it is feasible)."""

    cost: Cost
    clock_mhz: int


def watts(group: Group, clocks_mhz: Mapping[int, int]) -> float:
    """Power of the group's GPUs above their parked power."""
    parts = [group.model.slots[gpu].part for gpu in group.residents]
    return group.power_w(clocks_mhz) - sum(group.model.idle_w(part, part.clocks_mhz[0]) for part in parts)


def latency_shares(group: Group, clocks_mhz: Mapping[int, int]) -> float:
    """Mean latency as a share of the SLO, times requests per second, summed over the models."""
    loads = group.loads(clocks_mhz)
    demands = group.model.demands
    return sum(
        demands[owner].rate_rps * group.response(owner, loads).mean_ms / demands[owner].slo_ms
        for owner in group.models
    )


class GroupCosts:
    """Costs of groups of GPUs of ``slots`` that hold replicas of ``units``.

    ``at_lowest_clocks``: judge a feasible group at the lowest clocks that keep its SLOs, else at the top
    ones.
    """

    def __init__(
        self,
        units: Units,
        slots: Sequence[Slot],
        objective: Objective = watts,
        *,
        at_lowest_clocks: bool = True,
    ) -> None:
        self.units = units
        self.model = ClusterModel(units.demands, slots)
        self._objective = objective
        self._clocks = lowest_clocks if at_lowest_clocks else top_clocks
        self._known: dict[object, Verdict] = {}

    def of_gpu(self, gpu: int, keys: tuple[StageKey, ...]) -> Verdict:
        """Cost of a GPU whose residents ``keys`` have no stage elsewhere."""
        kind = self.units.kind
        what = (self.model.slots[gpu].part.name, tuple(sorted([(kind[unit], stage) for unit, stage in keys])))
        found = self._known.get(what)
        if found is None:
            found = self._known[what] = self._judge({gpu: tuple(sorted(keys))})
        return found

    def of_group(self, residents: Mapping[int, tuple[StageKey, ...]]) -> Verdict:
        """Cost of connected GPUs with all their residents."""
        if len(residents) == 1:
            ((gpu, keys),) = residents.items()
            return self.of_gpu(gpu, keys)
        what = self._signature(residents)
        found = self._known.get(what)
        if found is None:
            found = self._known[what] = self._judge(residents)
        return found

    def _signature(self, residents: Mapping[int, tuple[StageKey, ...]]) -> object:
        """The same for groups that differ by exchanged equal GPUs or replicas only."""
        kind, slots = self.units.kind, self.model.slots
        rows = sorted(
            (slots[gpu].part.name, [(kind[unit], stage, unit) for unit, stage in keys])
            for gpu, keys in residents.items()
        )
        numbers: dict[int, int] = {}
        return tuple(
            (part, tuple((what, stage, numbers.setdefault(unit, len(numbers))) for what, stage, unit in row))
            for part, row in rows
        )

    def _judge(self, residents: Mapping[int, tuple[StageKey, ...]]) -> Verdict:
        group = Group(self.model, {gpu: residents[gpu] for gpu in sorted(residents)})
        first = self.model.slots[next(iter(group.residents))].part.top_clock_mhz
        missing = self._missing_bytes(group)
        if missing:
            return Verdict(cost=(missing, 0, 0), clock_mhz=first)
        clocks = top_clocks(group)
        shortfall = self._shortfall(group, clocks)
        if shortfall:
            pressure = round(watts(group, clocks) * _OBJECTIVE_UNIT)
            return Verdict(cost=(0, shortfall, pressure), clock_mhz=first)
        clocks = self._clocks(group)
        cost = round(self._objective(group, clocks) * _OBJECTIVE_UNIT)
        return Verdict(cost=(0, 0, cost), clock_mhz=clocks[next(iter(group.residents))])

    def _missing_bytes(self, group: Group) -> int:
        demands, missing = self.model.demands, 0
        for gpu, keys in group.residents.items():
            used = sum(demands[owner].stages[stage].memory_bytes for owner, stage in keys)
            missing += max(0, used - self.model.slots[gpu].part.memory_bytes)
        return missing

    def _shortfall(self, group: Group, clocks_mhz: Mapping[int, int]) -> int:
        """Attainment missing, and work beyond the GPUs' time, so that overload has degrees."""
        demands, loads = self.model.demands, group.loads(clocks_mhz)
        missing = 0.0
        for owner in group.models:
            missing += max(0.0, demands[owner].attainment_target - group.response(owner, loads).attainment)
        if missing == 0.0:
            return 0
        missing += sum(max(0.0, load.stage_share - 1.0) for load in loads.values())
        for owner in group.models:
            demand = demands[owner]
            if demand.kind is ModelKind.GENERATIVE:
                engine = loads[group.homes[owner][0]].engines[owner]
                fastest = float(engine.completions_per_ms[-1])
                missing += max(0.0, demand.rate_rps / 1000.0 / fastest - 1.0)
        return max(1, math.ceil(missing * _SHORTFALL_UNIT))

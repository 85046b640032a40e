"""What a cluster does in the long run with given partitions on given GPUs at given clocks. Pure.

Power is that of the whole cluster, idle time included: a GPU draws busy power for the share of time
each resident works and idle power for the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.group import GpuPoint, Group
from muplan.queueing import length_quantiles
from muplan.workload import Demand, Slot, StageKey
from muserve.gpu.parts import Part
from muserve.physics import busy_power_w, idle_power_w, slowdown
from muserve.plan import Phase

# Which GPU (by position) each stage sits on. Stages may be missing while a placement is being built.
Assignment = Mapping[StageKey, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Long-run behaviour of the cluster: one entry per GPU, and per model its predicted attainment."""

    gpus: tuple[GpuPoint, ...]
    attainment: tuple[float, ...]
    power_w: float


class ClusterModel:
    """Predicts power and attainment of ``demands`` on ``slots``; remembers what it looked up.

    A demand here is one replica: a model served by several is as many demands (``muplan.deployment``).
    """

    def __init__(self, demands: Sequence[Demand], slots: Sequence[Slot]) -> None:
        self.demands = tuple(demands)
        self.slots = tuple(slots)
        self._works: dict[tuple[StageKey, str, Phase, int], tuple[float, float, float]] = {}
        self._idle: dict[tuple[str, int], float] = {}
        self._lengths: dict[tuple[float, float], NDArray[np.float64]] = {}

    def point(self, assignment: Assignment, clocks_mhz: Sequence[int]) -> Point:
        """Long-run behaviour. Models with a stage not yet placed count as meeting their SLO."""
        group = self.group(assignment)
        loads = group.loads(dict(enumerate(clocks_mhz)))
        gpus = tuple(group.gpu_point(gpu, loads) for gpu in range(len(self.slots)))
        attainment = [1.0] * len(self.demands)
        for model in group.models:
            attainment[model] = group.response(model, loads).attainment
        return Point(gpus=gpus, attainment=tuple(attainment), power_w=sum(g.power_w for g in gpus))

    def group(self, assignment: Assignment) -> Group:
        """All GPUs of the cluster, with what ``assignment`` puts there."""
        residents: dict[int, list[StageKey]] = {gpu: [] for gpu in range(len(self.slots))}
        for key in sorted(assignment):
            residents[assignment[key]].append(key)
        return Group(self, residents)

    def groups(self, assignment: Assignment) -> list[Group]:
        """The GPUs of the cluster in groups that no model connects, in the order of their first GPU."""
        group_of = list(range(len(self.slots)))
        everything = self.group(assignment)
        for gpus in everything.homes.values():
            together = {group_of[gpu] for gpu in gpus}
            if len(together) > 1:
                group_of = [min(together) if first in together else first for first in group_of]
        members: dict[int, dict[int, Sequence[StageKey]]] = defaultdict(dict)
        for gpu, first in enumerate(group_of):
            members[first][gpu] = everything.residents[gpu]
        return [Group(self, members[first]) for first in sorted(members)]

    def work(self, key: StageKey, part: Part, phase: Phase, clock_mhz: int) -> tuple[float, float, float]:
        """Time of one run in milliseconds, busy power in watts, and the slowdown, of a stage at a clock."""
        found = self._works.get((key, part.name, phase, clock_mhz))
        if found is None:
            law = self.demands[key[0]].stages[key[1]].law(part.name, phase)
            slower = slowdown(part, law.sensitivity.value, clock_mhz)
            found = law.latency_ms * slower, busy_power_w(part, law.sensitivity.value, clock_mhz), slower
            self._works[key, part.name, phase, clock_mhz] = found
        return found

    def idle_w(self, part: Part, clock_mhz: int) -> float:
        """Power of an idle GPU."""
        if (part.name, clock_mhz) not in self._idle:
            self._idle[part.name, clock_mhz] = idle_power_w(part, clock_mhz)
        return self._idle[part.name, clock_mhz]

    def answer_lengths(self, demand: Demand) -> NDArray[np.float64]:
        """Equally likely answer lengths, in tokens, of a generative model."""
        shape = demand.output_tokens, demand.output_cv
        if shape not in self._lengths:
            self._lengths[shape] = np.array(length_quantiles(*shape))
        return self._lengths[shape]

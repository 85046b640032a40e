"""What the partitions on some GPUs do to each other at given clocks. Pure.

A GPU's *stage share* is the share of time its single-pass partitions need; its engines are the token
engines that step on it. An engine that is tensor parallel steps on several GPUs at once, as fast as the
slowest of them. The waiting-time approximations are those of ``muplan.queueing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from muplan.queueing import processor_sharing
from muplan.slot_queue import SlotQueue, slot_queue
from muplan.workload import Demand

# Work that shares a GPU with an engine makes the engine busier, and that the work slower: converges in
# a few rounds.
_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A token engine: its times at the clocks in force, and the share of time that it runs any request."""

    prefill_ms: float
    step_ms: float
    growth_ms: float
    active: float = 0.0

    def per_token_ms(self, demand: Demand) -> NDArray[np.float64]:
        """Time per token of one of 1, 2, ... up to all slots' requests, alone on the GPU; shape [slots].

        A request pays its own prefill besides. The others' hold it up: each is replaced once while it runs.
        """
        others = np.arange(demand.slots)
        return self.step_ms + others * (self.growth_ms + self.prefill_ms / demand.output_tokens)

    def completions_per_ms(self, demand: Demand) -> NDArray[np.float64]:
        """Rate of completions when 1, 2, ... up to all slots run, alone on the GPU; shape [slots]."""
        slot_ms = self.prefill_ms + demand.output_tokens * self.per_token_ms(demand)
        return np.arange(1, demand.slots + 1) / slot_ms

    def line(self, demand: Demand, crowding: float) -> SlotQueue | None:
        """The line for a slot when everything takes ``crowding`` times as long; None if overloaded."""
        completions = self.completions_per_ms(demand) / crowding
        return slot_queue(demand.rate_rps / 1000.0, completions, demand.burstiness_cv, demand.output_cv)

    def busier(self, demand: Demand, crowding: float) -> Engine:
        """The same engine, as busy as the crowding makes it."""
        line = self.line(demand, crowding)
        return replace(self, active=line.busy if line else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoad:
    """One GPU at one clock: the share of time its single-pass stages need, and its engines by model."""

    clock_mhz: int
    stage_share: float
    engines: Mapping[int, Engine] = field(default_factory=dict)

    def crowding(self, without: int | None = None) -> float:
        """How many times as long work takes here as alone, leaving one engine's own work out."""
        if not self.engines:
            return processor_sharing(self.stage_share, 0.0)
        active = sum(engine.active for model, engine in self.engines.items() if model != without)
        return processor_sharing(self.stage_share, active)

    def pace(self, own_share: float) -> float:
        """How many times as long a model's stages take here as alone; ``own_share`` is their own load.

        Their own requests wait in line and do not count: while one is worked on it shares with others only.
        """
        if self.stage_share >= 1.0:
            return math.inf
        active = sum(engine.active for engine in self.engines.values())
        return processor_sharing(self.stage_share - own_share, active)

    @property
    def quiet(self) -> float:
        """Chance that nothing runs here."""
        idle = math.prod(1.0 - engine.active for engine in self.engines.values())
        return max(0.0, 1.0 - self.stage_share) * idle


def settled_loads(
    loads: Mapping[int, GpuLoad],
    engine_gpus: Mapping[int, Sequence[int]],
    demand_of: Callable[[int], Demand],
) -> dict[int, GpuLoad]:
    """The loads by GPU once every engine is as busy as its neighbours make it.

    ``engine_gpus`` lists the GPUs of every engine, by model.
    """
    settled = dict(loads)
    for _ in range(_ROUNDS):
        busier = {}
        for model, gpus in engine_gpus.items():
            crowding = max(settled[gpu].crowding(without=model) for gpu in gpus)
            if not math.isinf(crowding):
                busier[model] = settled[gpus[0]].engines[model].busier(demand_of(model), crowding)
        before = dict(settled)
        for gpu, load in before.items():
            if load.engines:
                engines = {model: busier.get(model, engine) for model, engine in load.engines.items()}
                settled[gpu] = replace(load, engines=engines)
        if settled == before:
            break
    return settled

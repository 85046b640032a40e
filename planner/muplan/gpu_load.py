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
    """A token engine at the clocks in force, and the share of time that it runs any request.

    When 1, 2, ... up to all slots' requests run, alone on the GPU, ``per_token_ms`` is the time per token of
    one of them and ``completions_per_ms`` the rate at which they end ([slots]). A request pays its own
    prefill besides. The others' hold it up: each is replaced once while it runs.
    """

    prefill_ms: float
    per_token_ms: NDArray[np.float64] = field(compare=False)
    completions_per_ms: NDArray[np.float64] = field(compare=False)
    active: float = 0.0

    def line(self, demand: Demand, crowding: float) -> SlotQueue | None:
        """The line for a slot when everything takes ``crowding`` times as long; None if overloaded."""
        completions = self.completions_per_ms / crowding
        return slot_queue(demand.rate_rps / 1000.0, completions, demand.burstiness_cv, demand.output_cv)


def engine_of(demand: Demand, prefill_ms: float, step_ms: float, growth_ms: float) -> Engine:
    """An idle engine of ``demand``; ``growth_ms`` is what each other request adds to a step."""
    per_token_ms = step_ms + np.arange(demand.slots) * (growth_ms + prefill_ms / demand.output_tokens)
    slot_ms = prefill_ms + demand.output_tokens * per_token_ms
    return Engine(
        prefill_ms=prefill_ms,
        per_token_ms=per_token_ms,
        completions_per_ms=np.arange(1, demand.slots + 1) / slot_ms,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLoad:
    """One GPU at one clock: the shares of time its single-pass stages need, and its engines, by model."""

    clock_mhz: int
    stage_shares: Mapping[int, float]
    engines: Mapping[int, Engine] = field(default_factory=dict)

    @property
    def stage_share(self) -> float:
        """The share of time that all single-pass stages need."""
        return sum(self.stage_shares.values())

    def crowding(self, active: Mapping[int, float], without: int) -> float:
        """How many times as long one engine's work takes here as alone when the others are ``active``."""
        others = sum(active[model] for model in self.engines if model != without)
        return processor_sharing(self.stage_share, others)

    @property
    def active(self) -> dict[int, float]:
        """The share of time that each engine here runs any request."""
        return {model: engine.active for model, engine in self.engines.items()}

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
    active = {model: loads[gpus[0]].engines[model].active for model, gpus in engine_gpus.items()}
    for _ in range(_ROUNDS):
        busier = {}
        for model, gpus in engine_gpus.items():
            crowding = max(loads[gpu].crowding(active, without=model) for gpu in gpus)
            if math.isinf(crowding):
                busier[model] = active[model]
                continue
            line = loads[gpus[0]].engines[model].line(demand_of(model), crowding)
            busier[model] = line.busy if line else 1.0
        if busier == active:
            break
        active = busier
    return {
        gpu: replace(
            load, engines={m: replace(engine, active=active[m]) for m, engine in load.engines.items()}
        )
        for gpu, load in loads.items()
    }

"""What the partitions on some GPUs do to each other at given clocks. Pure.

A GPU's *stage share* is the share of time its single-pass partitions need; its engines are the token
engines that step on it. An engine that is tensor parallel steps on several GPUs at once, as fast as the
slowest of them. The waiting-time approximations are those of ``muplan.queueing``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from muplan.queueing import busy_probability, processor_sharing
from muplan.workload import Demand

# Work that shares a GPU with an engine makes the engine busier, and that the work slower: converges in
# a few rounds.
_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A token engine: its times at the clocks in force, the requests it runs, the chance that it runs any."""

    prefill_ms: float
    step_ms: float
    growth_ms: float
    running: float = 1.0
    active: float = 0.0

    def service_ms(self, demand: Demand, crowding: float) -> tuple[float, float]:
        """Time in a slot when everything takes ``crowding`` times as long: a constant, and per token.

        Prefills of the other requests hold up a running one, so its steps stretch by their share.
        """
        step_ms = self.step_ms + self.growth_ms * max(0.0, self.running - 1.0)
        prefills = min(0.99, demand.rate_rps / 1000.0 * self.prefill_ms * crowding)
        return crowding * self.prefill_ms, crowding * step_ms / (1.0 - prefills)

    def mean_service_ms(self, demand: Demand, crowding: float) -> float:
        """Time in a slot of a request of mean length."""
        constant_ms, per_token_ms = self.service_ms(demand, crowding)
        return constant_ms + demand.output_tokens * per_token_ms

    def busier(self, demand: Demand, crowding: float) -> Engine:
        """The same engine, as busy as the crowding makes it."""
        offered = demand.rate_rps / 1000.0 * self.mean_service_ms(demand, crowding)
        running = min(offered, float(demand.slots))
        return replace(self, running=running, active=busy_probability(demand.slots, offered))


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
        for gpu, load in settled.items():
            if load.engines:
                engines = {model: busier.get(model, engine) for model, engine in load.engines.items()}
                settled[gpu] = replace(load, engines=engines)
    return settled

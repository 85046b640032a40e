"""What a cluster does in the long run with given partitions on given GPUs at given clocks. Pure.

Power is that of the whole cluster, idle time included: a GPU draws busy power for the share of time
each resident works and idle power for the rest. The waiting-time approximations are those of
``muplan.queueing``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from muplan.queueing import (
    busy_probability,
    decay_rate,
    erlang_c,
    length_quantiles,
    line_within,
    processor_sharing,
    slot_wait_ms,
    within,
)
from muplan.workload import Demand, Slot, StageKey
from muserve.gpu.parts import Part
from muserve.physics import busy_power_w, idle_power_w, slowdown
from muserve.plan import ModelKind, Phase, TimeLaw

# Which GPU (by position) each stage sits on. Stages may be missing while a placement is being built.
Assignment = Mapping[StageKey, int]

# Work that shares a GPU with an engine makes the engine busier, and that the work slower: converges in
# a few rounds.
_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPoint:
    """Long-run behaviour of one GPU at one clock."""

    clock_mhz: int
    busy_share: float
    power_w: float
    memory_used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Long-run behaviour of the cluster: one entry per GPU, and per model its predicted attainment."""

    gpus: tuple[GpuPoint, ...]
    attainment: tuple[float, ...]
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """A token engine on a GPU: its times there, how many requests it runs, the chance that it runs any."""

    prefill_ms: float
    step_ms: float
    growth_ms: float
    running: float = 1.0
    active: float = 0.0

    def service_ms(self, demand: Demand, tokens: float, crowding: float) -> float:
        """Time in a slot of a request with ``tokens`` when everything takes ``crowding`` times as long.

        Prefills of the other requests hold up a running one, so its steps stretch by their share.
        """
        step_ms = self.step_ms + self.growth_ms * max(0.0, self.running - 1.0)
        prefills = min(0.99, demand.rate_rps / 1000.0 * self.prefill_ms * crowding)
        return crowding * (self.prefill_ms + tokens * step_ms / (1.0 - prefills))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """One GPU: the share of time its single-pass stages need, and its engines by model."""

    clock_mhz: int
    stage_share: float
    engines: Mapping[int, _Engine] = field(default_factory=dict)

    def crowding(self, without: int | None = None) -> float:
        """How many times as long work takes here as alone, leaving one engine's own work out."""
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


class ClusterModel:
    """Predicts power and attainment of ``demands`` on ``slots``; remembers what it looked up."""

    def __init__(self, demands: Sequence[Demand], slots: Sequence[Slot]) -> None:
        self.demands = tuple(demands)
        self.slots = tuple(slots)
        self._slowdowns: dict[tuple[str, float, int], float] = {}
        self._powers: dict[tuple[str, float, int], float] = {}
        self._lengths = [length_quantiles(d.output_tokens, d.output_cv) for d in self.demands]

    def memory_used(self, assignment: Assignment) -> list[int]:
        """Bytes taken on each GPU."""
        used = [0] * len(self.slots)
        for (model, stage), gpu in assignment.items():
            used[gpu] += self.demands[model].stages[stage].memory_bytes
        return used

    def point(self, assignment: Assignment, clocks_mhz: Sequence[int]) -> Point:
        """Long-run behaviour. Models with a stage not yet placed count as meeting their SLO."""
        residents: dict[int, list[StageKey]] = defaultdict(list)
        for key in sorted(assignment):
            residents[assignment[key]].append(key)
        used = self.memory_used(assignment)
        loads = [self._load(residents[gpu], gpu, clock) for gpu, clock in enumerate(clocks_mhz)]
        gpus = []
        for gpu, load in enumerate(loads):
            busy_share, power_w = self._power(residents[gpu], gpu, load)
            gpus.append(
                GpuPoint(
                    clock_mhz=load.clock_mhz,
                    busy_share=busy_share,
                    power_w=power_w,
                    memory_used_bytes=used[gpu],
                )
            )
        attainment = tuple(self._attainment(m, assignment, loads) for m in range(len(self.demands)))
        return Point(gpus=tuple(gpus), attainment=attainment, power_w=sum(g.power_w for g in gpus))

    def _load(self, residents: Sequence[StageKey], gpu: int, clock_mhz: int) -> _Load:
        part = self.slots[gpu].part
        share = 0.0
        engines: dict[int, _Engine] = {}
        for model, stage in residents:
            demand = self.demands[model]
            if demand.kind is ModelKind.GENERATIVE:
                engines[model] = self._engine(demand, part, clock_mhz)
            else:
                law = demand.stages[stage].law(part.name, Phase.INFERENCE)
                share += demand.rate_rps / 1000.0 * self._time_ms(law, part, clock_mhz)
        load = _Load(clock_mhz=clock_mhz, stage_share=share, engines=engines)
        for _ in range(_ROUNDS if engines and share < 1.0 else 0):
            settled = {m: self._busier(m, e, load.crowding(m)) for m, e in load.engines.items()}
            load = _Load(clock_mhz=clock_mhz, stage_share=share, engines=settled)
        return load

    def _engine(self, demand: Demand, part: Part, clock_mhz: int) -> _Engine:
        (stage,) = demand.stages
        step = stage.law(part.name, Phase.DECODE)
        step_ms = self._time_ms(step, part, clock_mhz)
        growth_ms = demand.decode_growth_ms.get(part.name, 0.0) * step_ms / step.latency_ms
        prefill_ms = self._time_ms(stage.law(part.name, Phase.PREFILL), part, clock_mhz)
        return _Engine(prefill_ms=prefill_ms, step_ms=step_ms, growth_ms=growth_ms)

    def _busier(self, model: int, engine: _Engine, crowding: float) -> _Engine:
        demand = self.demands[model]
        offered = demand.rate_rps / 1000.0 * engine.service_ms(demand, demand.output_tokens, crowding)
        return _Engine(
            prefill_ms=engine.prefill_ms,
            step_ms=engine.step_ms,
            growth_ms=engine.growth_ms,
            running=min(offered, float(demand.slots)),
            active=busy_probability(demand.slots, offered),
        )

    def _power(self, residents: Sequence[StageKey], gpu: int, load: _Load) -> tuple[float, float]:
        """Busy share and average power of one GPU."""
        part = self.slots[gpu].part
        shares: list[tuple[float, float]] = []
        active_sum = sum(e.active for e in load.engines.values())
        engines_share = max(0.0, 1.0 - load.stage_share) - load.quiet
        for model, stage in residents:
            demand = self.demands[model]
            if demand.kind is ModelKind.GENERATIVE:
                share = engines_share * load.engines[model].active / active_sum if active_sum else 0.0
                shares += self._phase_shares(demand, part, load.engines[model], share)
                continue
            law = demand.stages[stage].law(part.name, Phase.INFERENCE)
            work = demand.rate_rps / 1000.0 * self._time_ms(law, part, load.clock_mhz)
            shares.append((work / max(1.0, load.stage_share), law.sensitivity.value))
        busy = min(1.0, sum(share for share, _ in shares))
        idle_w = (1.0 - busy) * idle_power_w(part, load.clock_mhz)
        return busy, idle_w + sum(s * self._busy_w(part, k, load.clock_mhz) for s, k in shares)

    def _phase_shares(
        self, demand: Demand, part: Part, engine: _Engine, share: float
    ) -> list[tuple[float, float]]:
        """An engine's share of the GPU, split into prefill and decode, each with its sensitivity."""
        (stage,) = demand.stages
        prefill = min(share, demand.rate_rps / 1000.0 * engine.prefill_ms)
        return [
            (prefill, stage.law(part.name, Phase.PREFILL).sensitivity.value),
            (share - prefill, stage.law(part.name, Phase.DECODE).sensitivity.value),
        ]

    def _attainment(self, model: int, assignment: Assignment, loads: Sequence[_Load]) -> float:
        demand = self.demands[model]
        gpus = [assignment[model, s] for s in range(len(demand.stages)) if (model, s) in assignment]
        if len(gpus) < len(demand.stages):
            return 1.0
        if demand.kind is ModelKind.GENERATIVE:
            return self._engine_attainment(model, loads[gpus[0]])
        times_ms: dict[int, float] = defaultdict(float)
        slack_ms = demand.slo_ms
        for number, (stage, gpu) in enumerate(zip(demand.stages, gpus, strict=True)):
            part, load = self.slots[gpu].part, loads[gpu]
            times_ms[gpu] += self._time_ms(stage.law(part.name, Phase.INFERENCE), part, load.clock_mhz)
            if number > 0 and gpu != gpus[number - 1]:
                slack_ms -= stage.transfer_ms
        rate, decay = demand.rate_rps / 1000.0, math.inf
        for gpu, time_ms in times_ms.items():
            paced_ms = time_ms * loads[gpu].pace(rate * time_ms)
            slack_ms -= paced_ms
            decay = min(decay, decay_rate(rate, paced_ms, demand.burstiness_cv))
        return line_within(slack_ms, decay)

    def _engine_attainment(self, model: int, load: _Load) -> float:
        """Share of answers whose wait for a slot and time in it fit, over the lengths of the answers."""
        demand, engine, crowding = self.demands[model], load.engines[model], load.crowding(model)
        if math.isinf(crowding):
            return 0.0
        mean_ms = engine.service_ms(demand, demand.output_tokens, crowding)
        rate = demand.rate_rps / 1000.0
        wait_ms = slot_wait_ms(demand.slots, rate, mean_ms, demand.burstiness_cv, demand.output_cv)
        waits = erlang_c(demand.slots, rate * mean_ms)
        times_ms = [engine.service_ms(demand, tokens, crowding) for tokens in self._lengths[model]]
        return math.fsum(within(demand.slo_ms, t, wait_ms, waits) for t in times_ms) / len(times_ms)

    def _time_ms(self, law: TimeLaw, part: Part, clock_mhz: int) -> float:
        key = (part.name, law.sensitivity.value, clock_mhz)
        if key not in self._slowdowns:
            self._slowdowns[key] = slowdown(part, law.sensitivity.value, clock_mhz)
        return law.latency_ms * self._slowdowns[key]

    def _busy_w(self, part: Part, sensitivity: float, clock_mhz: int) -> float:
        key = (part.name, sensitivity, clock_mhz)
        if key not in self._powers:
            self._powers[key] = busy_power_w(part, sensitivity, clock_mhz)
        return self._powers[key]

"""GPUs that share models, and what the requests see and the GPUs draw at given clocks. Pure.

GPUs affect each other only through models with partitions on several of them, so connected GPUs are
evaluated without the others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from muplan.gpu_load import Engine, GpuLoad, engine_of, settled_loads
from muplan.queueing import decay_rate, line_within, present, processor_sharing
from muplan.workload import StageKey
from muserve.plan import ModelKind, Phase

if TYPE_CHECKING:
    from muplan.operating import ClusterModel

# The stages on each GPU (by position), in ascending order.
Residents = Mapping[int, Sequence[StageKey]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPoint:
    """Long-run behaviour of one GPU at one clock."""

    clock_mhz: int
    busy_share: float
    power_w: float
    memory_used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the requests of one model see: share within the SLO, and mean latency in milliseconds."""

    attainment: float
    mean_ms: float


_OVERLOADED = Response(attainment=0.0, mean_ms=math.inf)


class Group:
    """GPUs, by position, and all stages on them; no model may have stages elsewhere unless incomplete.

    ``models`` are those with every stage on the group's GPUs, ``homes`` the GPU of each of their stages.
    """

    def __init__(self, model: ClusterModel, residents: Residents) -> None:
        self.model = model
        self.residents = residents
        found: dict[int, dict[int, int]] = defaultdict(dict)
        for gpu, keys in residents.items():
            for owner, stage in keys:
                found[owner][stage] = gpu
        demands = model.demands
        self.homes = {
            owner: [gpus[stage] for stage in sorted(gpus)]
            for owner, gpus in found.items()
            if len(gpus) == len(demands[owner].stages)
        }
        self.models = sorted(self.homes)
        self._strictest_first = list(self.models)
        self._engine_gpus = {
            owner: [gpus[stage] for stage in sorted(gpus)]
            for owner, gpus in found.items()
            if demands[owner].kind is ModelKind.GENERATIVE
        }

    def loads(self, clocks_mhz: Mapping[int, int]) -> dict[int, GpuLoad]:
        """The load of every GPU at the given clocks."""
        work, demands, slots = self.model.work, self.model.demands, self.model.slots
        shares: dict[int, dict[int, float]] = {gpu: {} for gpu in self.residents}
        for gpu, keys in self.residents.items():
            part, clock = slots[gpu].part, clocks_mhz[gpu]
            for key in keys:
                demand = demands[key[0]]
                if demand.kind is ModelKind.SINGLE_PASS:
                    share = demand.rate_rps / 1000.0 * work(key, part, Phase.INFERENCE, clock)[0]
                    shares[gpu][key[0]] = shares[gpu].get(key[0], 0.0) + share
        engines: dict[int, dict[int, Engine]] = {gpu: {} for gpu in self.residents}
        for owner, gpus in self._engine_gpus.items():
            engine = self._engine(owner, gpus, clocks_mhz)
            for gpu in gpus:
                engines[gpu][owner] = engine
        loads = {
            gpu: GpuLoad(clock_mhz=clocks_mhz[gpu], stage_shares=shares[gpu], engines=engines[gpu])
            for gpu in self.residents
        }
        if not self._engine_gpus:
            return loads
        return settled_loads(loads, self._engine_gpus, demands.__getitem__)

    def meets_targets(self, clocks_mhz: Mapping[int, int]) -> bool:
        """Whether every model's predicted attainment reaches its target."""
        loads = self.loads(clocks_mhz)
        for position, owner in enumerate(self._strictest_first):
            if self.response(owner, loads).attainment < self.model.demands[owner].attainment_target:
                # The next clock is probably refused by the same model: it is asked first.
                self._strictest_first.insert(0, self._strictest_first.pop(position))
                return False
        return True

    def response(self, owner: int, loads: Mapping[int, GpuLoad]) -> Response:
        """What the requests of one of ``models`` see."""
        demand, gpus = self.model.demands[owner], self.homes[owner]
        if demand.kind is ModelKind.GENERATIVE:
            return self._engine_response(owner, loads)
        times_ms: dict[int, float] = defaultdict(float)
        sending_ms = 0.0
        for number, gpu in enumerate(gpus):
            part, clock = self.model.slots[gpu].part, loads[gpu].clock_mhz
            times_ms[gpu] += self.model.work((owner, number), part, Phase.INFERENCE, clock)[0]
            if number > 0 and gpu != gpus[number - 1]:
                sending_ms += demand.stages[number].transfer_ms
        rate, decay, service_ms = demand.rate_rps / 1000.0, math.inf, sending_ms
        spare_ms = demand.slo_ms - sending_ms - sum(times_ms.values())
        # Chance, time left for waiting, and how fast the chance of a long wait falls.
        cases = [(1.0, spare_ms, math.inf)]
        for gpu, time_ms in times_ms.items():
            paced_ms = time_ms * loads[gpu].pace(rate * time_ms)
            if math.isinf(paced_ms):
                return _OVERLOADED
            service_ms += paced_ms
            decay = min(decay, decay_rate(rate, paced_ms, demand.burstiness_cv))
            if spare_ms > 0.0:
                company = self._company(owner, loads[gpu], time_ms, int(spare_ms / time_ms))
                cases = [
                    (chance * here, spare - extra_ms, min(falls, falls_here))
                    for chance, spare, falls in cases
                    for here, extra_ms, falls_here in company
                ]
        met = math.fsum(chance * line_within(spare, falls) for chance, spare, falls in cases)
        return Response(attainment=met, mean_ms=service_ms + 1.0 / decay if decay else math.inf)

    def _company(
        self, owner: int, load: GpuLoad, time_ms: float, most: int
    ) -> list[tuple[float, float, float]]:
        """Who may work beside a request: chance, what that adds to its time, and how its line's tail falls.

        At most ``most`` others. Engines and longer stages come and go slowly: while they work, the line is
        one for a slower GPU.
        """
        demand = self.model.demands[owner]
        rate = demand.rate_rps / 1000.0
        slow, quick = [engine.active for engine in load.engines.values()], []
        for model, share in load.stage_shares.items():
            if model == owner:
                continue
            if share * 1000.0 > time_ms * self.model.demands[model].rate_rps:
                slow.append(min(1.0, share * load.pace(share)))
            else:
                quick.append(share)
        company = []
        for number, chance in enumerate(present(slow, most)):
            if chance > 0.0:
                paced_ms = time_ms * processor_sharing(sum(quick), number)
                falls = decay_rate(rate, paced_ms, demand.burstiness_cv)
                chances = (
                    min(1.0, share * processor_sharing(load.stage_share - share, number)) for share in quick
                )
                company += [
                    (chance * here, (number + count) * time_ms, falls)
                    for count, here in enumerate(present(chances, most - number))
                ]
        return company

    def gpu_point(self, gpu: int, loads: Mapping[int, GpuLoad]) -> GpuPoint:
        """Busy share, average power and memory of one GPU."""
        load, part = loads[gpu], self.model.slots[gpu].part
        busy = power_w = 0.0
        memory = 0
        for owner, stage in self.residents[gpu]:
            share, watts = self.resident_power(gpu, (owner, stage), loads)
            busy += share
            power_w += watts
            memory += self.model.demands[owner].stages[stage].memory_bytes
        busy = min(1.0, busy)
        power_w += (1.0 - busy) * self.model.idle_w(part, load.clock_mhz)
        return GpuPoint(clock_mhz=load.clock_mhz, busy_share=busy, power_w=power_w, memory_used_bytes=memory)

    def power_w(self, clocks_mhz: Mapping[int, int]) -> float:
        """Average power of all the group's GPUs together."""
        loads = self.loads(clocks_mhz)
        return sum(self.gpu_point(gpu, loads).power_w for gpu in self.residents)

    def _engine(self, owner: int, gpus: Sequence[int], clocks_mhz: Mapping[int, int]) -> Engine:
        """The engine as its slowest GPU lets it run."""
        demand = self.model.demands[owner]
        prefill_ms = step_ms = growth_ms = 0.0
        for number, gpu in enumerate(gpus):
            part, clock = self.model.slots[gpu].part, clocks_mhz[gpu]
            prefill_ms = max(prefill_ms, self.model.work((owner, number), part, Phase.PREFILL, clock)[0])
            time_ms, _, slower = self.model.work((owner, number), part, Phase.DECODE, clock)
            step_ms = max(step_ms, time_ms)
            growth_ms = max(growth_ms, demand.decode_growth_ms.get(part.name, 0.0) * slower)
        return engine_of(demand, prefill_ms, step_ms, growth_ms)

    def resident_power(self, gpu: int, key: StageKey, loads: Mapping[int, GpuLoad]) -> tuple[float, float]:
        """Share of time that one resident keeps ``gpu`` busy, and its part of the average power in watts."""
        load, part, demand = loads[gpu], self.model.slots[gpu].part, self.model.demands[key[0]]
        rate = demand.rate_rps / 1000.0
        if demand.kind is ModelKind.SINGLE_PASS:
            time_ms, watts, _ = self.model.work(key, part, Phase.INFERENCE, load.clock_mhz)
            share = rate * time_ms / max(1.0, load.stage_share)
            return share, share * watts
        engine = load.engines[key[0]]
        active = sum(other.active for other in load.engines.values())
        engines_share = max(0.0, 1.0 - load.stage_share) - load.quiet
        share = engines_share * engine.active / active if active else 0.0
        prefill = min(share, rate * engine.prefill_ms)
        prefill_w = self.model.work(key, part, Phase.PREFILL, load.clock_mhz)[1]
        decode_w = self.model.work(key, part, Phase.DECODE, load.clock_mhz)[1]
        return share, prefill * prefill_w + (share - prefill) * decode_w

    def _engine_response(self, owner: int, loads: Mapping[int, GpuLoad]) -> Response:
        """Share of answers whose wait for a slot and time in it fit, over the lengths of the answers.

        A request goes at the pace of as many as it finds there, itself included, to its end: its mean time is
        then the one that Little's law gives the queue.
        """
        demand, gpus = self.model.demands[owner], self.homes[owner]
        engine = loads[gpus[0]].engines[owner]
        crowding = max(loads[gpu].crowding(loads[gpu].active, without=owner) for gpu in gpus)
        if math.isinf(crowding):
            return _OVERLOADED
        line = engine.line(demand, crowding)
        if line is None:
            return _OVERLOADED
        prefill_ms, per_token_ms = crowding * engine.prefill_ms, crowding * engine.per_token_ms
        lengths = self.model.answer_lengths(demand)
        most_tokens = (demand.slo_ms - prefill_ms) / per_token_ms
        short = np.searchsorted(lengths, most_tokens, side="right") / len(lengths)
        slack_ms = demand.slo_ms - prefill_ms - per_token_ms[-1] * lengths
        late = np.exp(-line.decay * np.maximum(slack_ms, 0.0))
        met = float(line.finds @ short + line.waits * (1.0 - late.mean()))
        mean_tokens_ms = demand.output_tokens * (line.finds @ per_token_ms + line.waits * per_token_ms[-1])
        return Response(attainment=met, mean_ms=prefill_ms + float(mean_tokens_ms) + line.waits / line.decay)

"""Lays a scenario out as a ``World``, and sets the clocks of one. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from muplan.simulator.scenario import Discipline, Routing, Scenario, SimulatedModel, SimulatedStage
from muplan.simulator.world import (
    ARRIVAL,
    BINS,
    CLOCK,
    EXECUTOR,
    GPU,
    GROUPS,
    ISLAND,
    MODEL,
    REQUEST,
    STAGE,
    STATION,
    TALLY,
    Array,
    World,
)
from muserve.gpu.parts import Part
from muserve.physics import busy_power_w, idle_power_w, slowdown
from muserve.plan import ModelKind, Phase, TimeLaw

_INITIAL_POOL = 4096
_UNBOUNDED = 2**62
_NOBODY = -1


class Layout:
    """The world of a scenario before its first arrival, and what its arrays were made from.

    ``watched`` keeps every latency in bins of its own, for control laws to see.
    """

    def __init__(self, scenario: Scenario, *, watched: bool = False) -> None:
        self.scenario = scenario
        self.gpu_number = {gpu.name: number for number, gpu in enumerate(scenario.gpus)}
        self._member_k: list[tuple[float, float]] = []
        self._member_gpu: list[int] = []
        self._executors: list[tuple[object, ...]] = []
        self._stations: list[tuple[object, ...]] = []
        stages: list[tuple[int, int, float]] = []
        models: list[tuple[object, ...]] = []
        for model in scenario.models:
            models.append((len(stages), len(model.stages), *_order(model), model.slo_ms))
            for stage in model.stages:
                first = len(self._stations)
                self._add_stage(len(models) - 1, model, stage)
                stages.append((first, len(self._stations) - first, stage.transfer_ms))
        self.world = self._world(np.array(models, MODEL), np.array(stages, STAGE), watched)
        for gpu in scenario.gpus:
            self.set_clock(gpu.name, gpu.clock_mhz)

    def set_clock(self, gpu: str, clock_mhz: int) -> None:
        """Put a clock into force; what has been done so far must be settled before, paces refreshed after."""
        number, part = self.gpu_number[gpu], self._part(gpu)
        self.world.gpus["idle_w"][number] = idle_power_w(part, clock_mhz)
        for member, on_gpu in enumerate(self._member_gpu):
            if on_gpu == number:
                for phase, k in enumerate(self._member_k[member]):
                    self.world.slowdown[member, phase] = slowdown(part, k, clock_mhz)
                    self.world.power_w[member, phase] = busy_power_w(part, k, clock_mhz)

    def _part(self, gpu: str) -> Part:
        return self.scenario.gpus[self.gpu_number[gpu]].part

    def _add_stage(self, number: int, model: SimulatedModel, stage: SimulatedStage) -> None:
        if stage.routing is Routing.SHARED_QUEUE:
            self._add_station(number, model, stage, stage.replicas)
            return
        for replica in stage.replicas:
            self._add_station(number, model, stage, [replica])

    def _add_station(
        self,
        number: int,
        model: SimulatedModel,
        stage: SimulatedStage,
        replicas: Sequence[tuple[str, ...]],
    ) -> None:
        engine = model.kind is ModelKind.GENERATIVE
        station, first = len(self._stations), len(self._executors)
        for _ in range(1 if engine else model.slots):
            for gpus in replicas:
                self._add_executor(station, stage, gpus, engine)
        part = self._part(replicas[0][0]).name
        latency_ms = _law(stage, part, Phase.PREFILL if engine else Phase.INFERENCE).latency_ms
        unit_ms = 0.0
        if engine:
            growth_ms = stage.decode_growth_ms.get(part, 0.0) * (model.slots - 1)
            unit_ms = _law(stage, part, Phase.DECODE).latency_ms + growth_ms
        only_gpu = self.gpu_number[replicas[0][0]] if len(set(replicas)) == 1 else _NOBODY
        limit = _UNBOUNDED if model.queue_limit is None else model.queue_limit
        executors = len(self._executors) - first
        slots = model.slots if engine else executors
        batching = model.batching
        self._stations.append(
            (
                *(number, engine, only_gpu, first, executors, slots, limit),
                *(batching.max_batch, batching.growth, batching.max_delay_ms, latency_ms, unit_ms),
                *(_NOBODY, 0, 0, 0.0),
            )
        )

    def _add_executor(self, station: int, stage: SimulatedStage, gpus: tuple[str, ...], engine: bool) -> None:
        part = self._part(gpus[0]).name
        first = _law(stage, part, Phase.PREFILL if engine else Phase.INFERENCE)
        second = _law(stage, part, Phase.DECODE) if engine else first
        member = len(self._member_gpu)
        for gpu in gpus:
            self._member_gpu.append(self.gpu_number[gpu])
            self._member_k.append((first.sensitivity.value, second.sensitivity.value))
        self._executors.append(
            (
                *(station, 0, member, len(gpus), 0, 0, 0.0, 0.0, _NOBODY, 0, 0, 0, 0.0),
                *(first.latency_ms, second.latency_ms, stage.decode_growth_ms.get(part, 0.0)),
            )
        )

    def _world(self, models: Array, stages: Array, watched: bool) -> World:
        scenario = self.scenario
        executors, stations = np.array(self._executors, EXECUTOR), np.array(self._stations, STATION)
        member_gpu = np.array(self._member_gpu, np.int64)
        groups = list(_islands(len(scenario.gpus), executors, member_gpu))
        islands = np.zeros(len(groups), ISLAND)
        islands["next"] = _NOBODY
        customers = np.zeros(len(executors), np.int64)
        island_of = {gpu: island for island, gpus in enumerate(groups) for gpu in gpus}
        executors["island"] = [island_of[int(member_gpu[m])] for m in executors["first_member"]]
        order = np.argsort(executors["island"], kind="stable")
        executors["place"][order] = np.arange(len(executors))
        customers[:] = order
        islands["gpus"] = [len(gpus) for gpus in groups]
        islands["first_gpu"] = np.cumsum(islands["gpus"]) - islands["gpus"]
        population = np.bincount(executors["island"], minlength=len(groups))
        islands["first_place"] = np.cumsum(population) - population
        sources = len(islands) + len(stations)
        clock = np.zeros(1, CLOCK)
        clock["transfers"] = _NOBODY
        clock["free"] = _NOBODY
        clock["measured_from_ms"] = scenario.warm_up_s * 1000.0
        clock["measured_until_ms"] = scenario.horizon_s * 1000.0
        count = len(models)
        world = World(
            clock=clock,
            requests=np.zeros(0, REQUEST),
            models=models,
            stages=stages,
            stations=stations,
            executors=executors,
            islands=islands,
            gpus=np.zeros(len(scenario.gpus), GPU),
            island_gpus=np.array([gpu for gpus in groups for gpu in gpus], np.int64),
            member_gpu=member_gpu,
            slowdown=np.ones((len(member_gpu), 2)),
            power_w=np.zeros((len(member_gpu), 2)),
            customers=customers,
            due_ms=np.full(sources, math.inf),
            order=np.arange(sources),
            place=np.arange(sources),
            tallies=np.zeros((count, GROUPS), TALLY),
            histogram=np.zeros((count, BINS), np.int64),
            seen=np.zeros(count, TALLY),
            seen_histogram=np.zeros((count, BINS if watched else 0), np.int64),
        )
        return with_room(world)


def with_room(world: World) -> World:
    """The world with twice the room for requests under way."""
    old = world.requests
    requests = np.zeros(max(_INITIAL_POOL, 2 * len(old)), REQUEST)
    requests[: len(old)] = old
    fresh = np.arange(len(old), len(requests))
    requests["model"][fresh] = _NOBODY
    requests["right"][fresh] = fresh + 1
    requests["right"][-1] = world.clock["free"][0]
    world.clock["free"] = len(old)
    return world._replace(requests=requests)


def no_arrivals() -> Array:
    """An empty list of requests to come."""
    return np.zeros(0, ARRIVAL)


def _order(model: SimulatedModel) -> tuple[int, float]:
    """Discipline as a number, and the alpha it uses; shortest first is what priority tends to."""
    discipline = model.discipline
    if discipline is Discipline.PRIORITY and math.isinf(model.alpha):
        discipline = Discipline.SSJF
    alpha = 0.0 if math.isinf(model.alpha) else model.alpha
    return tuple(Discipline).index(discipline), alpha


def _law(stage: SimulatedStage, part: str, phase: Phase) -> TimeLaw:
    for law in stage.laws[part]:
        if law.phase is phase:
            return law
    raise KeyError(f"stage {stage.name} has no {phase} law for {part}")


def _islands(gpus: int, executors: Array, member_gpu: Array) -> Iterator[tuple[int, ...]]:
    """GPUs that executors tie together, directly or through others; in the order of their first GPU."""
    root = list(range(gpus))

    def find(gpu: int) -> int:
        while root[gpu] != gpu:
            gpu = root[gpu]
        return gpu

    for first, count in zip(executors["first_member"], executors["members"], strict=True):
        tied = [find(int(gpu)) for gpu in member_gpu[first : first + count]]
        for gpu in tied:
            root[gpu] = min(tied)
    members: dict[int, list[int]] = {}
    for gpu in range(gpus):
        members.setdefault(find(gpu), []).append(gpu)
    yield from (tuple(found) for _, found in sorted(members.items()))

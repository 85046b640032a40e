# mypy: disable-error-code="no-any-return"
"""Waiting lines and who is served next, compiled.

A token engine's batch stays the same until a request ends or one is admitted, so all decode steps up to
then are one piece of work (a *stretch*); a request that finds a free slot meanwhile cuts it short at the
end of the running step. That is the engine of ``mubackend.llm_engine``, without a tick for each token.
"""

from __future__ import annotations

import math

from muplan.simulator.compiled import NOBODY, compiled
from muplan.simulator.heaps import popped, pushed, reschedule
from muplan.simulator.sharing import join, quit_island, refresh, settle
from muplan.simulator.tallies import group_of, release
from muplan.simulator.world import World

_FCFS, _SSJF, _SJF = 0, 1, 2


@compiled
def predicted_ms(world: World, number: int) -> float:
    """Predicted time of a request in its station's slot, at the top clock."""
    request = world.requests[number]
    station = world.stations[request.station]
    return station.ms_per_size * request.size + station.ms_per_unit * request.predicted


@compiled
def route(world: World, number: int) -> None:
    """Choose the station of the request's stage with the least predicted work, its own included."""
    request = world.requests[number]
    stage = world.stages[world.models[request.model].first_stage + request.stage]
    least_ms = math.inf
    chosen = stage.first_station
    if stage.stations > 1:
        for place in range(stage.first_station, stage.first_station + stage.stations):
            request.station = place
            station = world.stations[place]
            ahead_ms = (station.backlog_ms + predicted_ms(world, number)) / station.slots
            if ahead_ms < least_ms:
                least_ms = ahead_ms
                chosen = place
    request.station = chosen
    world.stations[chosen].present += 1
    world.stations[chosen].backlog_ms += predicted_ms(world, number)


@compiled
def leave_station(world: World, number: int) -> None:
    station = world.stations[world.requests[number].station]
    station.present -= 1
    # Exactly zero when nobody is there, whatever rounding has left.
    station.backlog_ms = station.backlog_ms - predicted_ms(world, number) if station.present else 0.0


@compiled
def enter(world: World, number: int, now_ms: float) -> None:
    """Join the waiting line, or be dropped because it is full."""
    request = world.requests[number]
    station = world.stations[request.station]
    if station.waiting >= station.limit and _idle_executor(world, request.station) == NOBODY:
        leave_station(world, number)
        world.seen[request.model].dropped += 1
        group = group_of(world, request.arrival_ms)
        if group >= 0:
            world.tallies[request.model, group].dropped += 1
        release(world, number)
        return
    request.executor = NOBODY
    request.since_ms = now_ms
    request.key = _key(world, number)
    station.first = pushed(world.requests, station.first, number)
    station.waiting += 1
    start(world, request.station, now_ms)


@compiled
def _key(world: World, number: int) -> float:
    """The request's place in its line: lowest first."""
    request = world.requests[number]
    station = world.stations[request.station]
    model = world.models[request.model]
    if model.discipline == _FCFS:
        return request.since_ms
    if model.discipline == _SJF:
        return station.ms_per_size * request.size + station.ms_per_unit * request.units
    if model.discipline == _SSJF:
        return predicted_ms(world, number)
    return request.arrival_ms + model.alpha * predicted_ms(world, number)


@compiled
def _idle_executor(world: World, place: int) -> int:
    """The station's first executor without work."""
    station = world.stations[place]
    for number in range(station.first_executor, station.first_executor + station.executors):
        if not world.executors[number].running:
            return number
    return NOBODY


@compiled
def start(world: World, place: int, now_ms: float) -> None:
    """Give waiting requests to executors as far as that is possible now."""
    station = world.stations[place]
    if station.engine:
        executor = world.executors[station.first_executor]
        if not executor.running:
            settle(world, executor.island, now_ms)
            join(world, station.first_executor)
            iterate(world, station.first_executor)
            refresh(world, executor.island)
        elif executor.phase == 1 and executor.running < station.slots:
            _cut_short(world, station.first_executor, now_ms)
        return
    wake_ms = math.inf
    while station.waiting:
        number = _idle_executor(world, place)
        if number == NOBODY:
            break
        ready_ms = world.requests[station.first].since_ms + station.max_delay_ms
        if station.waiting < station.max_batch and ready_ms > now_ms:
            wake_ms = ready_ms
            break
        _run_batch(world, number, now_ms)
    source = len(world.islands) + place
    if world.due_ms[source] != wake_ms:
        reschedule(world.due_ms, world.order, world.place, source, wake_ms)


@compiled
def _run_batch(world: World, number: int, now_ms: float) -> None:
    """Start one run of a single-pass stage on an idle executor."""
    executor = world.executors[number]
    station = world.stations[executor.station]
    longest, total = 0.0, 0.0
    executor.first = NOBODY
    while station.waiting and executor.running < station.max_batch:
        taken = station.first
        station.first = popped(world.requests, taken)
        station.waiting -= 1
        request = world.requests[taken]
        request.executor = number
        longest = max(longest, request.size)
        total += request.size
        executor.first = pushed(world.requests, executor.first, taken)
        executor.running += 1
    settle(world, executor.island, now_ms)
    executor.phase = 0
    executor.remaining_ms = executor.latency_ms * (longest + station.batch_growth * (total - longest))
    join(world, number)
    refresh(world, executor.island)


@compiled
def iterate(world: World, number: int) -> None:
    """Begin an iteration of a token engine: admit, pay prefill, else decode, else fall idle."""
    executor = world.executors[number]
    station = world.stations[executor.station]
    prefill_ms = 0.0
    while station.waiting and executor.running < station.slots:
        taken = station.first
        station.first = popped(world.requests, taken)
        station.waiting -= 1
        request = world.requests[taken]
        request.executor = number
        request.key = executor.steps + request.units
        executor.first = pushed(world.requests, executor.first, taken)
        executor.running += 1
        prefill_ms += executor.latency_ms * request.size
    if prefill_ms > 0.0:
        executor.phase = 0
        executor.remaining_ms = prefill_ms
    elif executor.running:
        decode(world, number)
    else:
        executor.steps = 0
        quit_island(world, number)


@compiled
def decode(world: World, number: int) -> None:
    """Decode until the first request ends, or for one step when somebody waits for a free slot."""
    executor = world.executors[number]
    station = world.stations[executor.station]
    executor.stretch = int(world.requests[executor.first].key) - executor.steps
    if station.waiting and executor.running < station.slots:
        executor.stretch = 1
    executor.phase = 1
    executor.step_ms = executor.decode_ms + executor.growth_ms * (executor.running - 1)
    executor.remaining_ms = executor.stretch * executor.step_ms


@compiled
def _cut_short(world: World, number: int, now_ms: float) -> None:
    """End a stretch with the step that is running."""
    executor = world.executors[number]
    settle(world, executor.island, now_ms)
    left = math.ceil(executor.remaining_ms / executor.step_ms)
    spared = min(left, executor.stretch) - 1
    if spared > 0:
        executor.stretch -= spared
        executor.remaining_ms = max(0.0, executor.remaining_ms - spared * executor.step_ms)
        refresh(world, executor.island)

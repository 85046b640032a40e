# mypy: disable-error-code="no-any-return"
"""The event loop, compiled.

Events of the same time: completions (lowest island first), batches whose delay is over (lowest station),
transfers, arrivals (of either the first that arrived). Times in milliseconds.
"""

from __future__ import annotations

import math

from muplan.simulator.compiled import NOBODY, compiled
from muplan.simulator.heaps import popped, pushed
from muplan.simulator.sharing import quit_island, refresh, refresh_all, settle, settle_all
from muplan.simulator.stations import decode, enter, iterate, leave_station, predicted_ms, route, start
from muplan.simulator.tallies import count_completion, group_of, release
from muplan.simulator.world import Array, World

__all__ = ["DONE", "FULL", "backlogs", "refresh_all", "run_until", "settle_all"]

DONE, FULL = 0, 1


@compiled
def run_until(world: World, arrivals: Array, until_ms: float) -> int:
    """Handle every event up to and including ``until_ms``.

    ``arrivals`` ascend in time. FULL when the pool of requests has no room for the next arrival; call
    again with more.
    """
    clock = world.clock[0]
    while True:
        source = world.order[0]
        event_ms = world.due_ms[source]
        transfer_ms = math.inf if clock.transfers == NOBODY else world.requests[clock.transfers].key
        arrival_ms = math.inf
        if clock.arrived < len(arrivals):
            arrival_ms = arrivals[clock.arrived].time_ms
        now_ms = min(event_ms, transfer_ms, arrival_ms)
        if now_ms > until_ms or now_ms == math.inf:
            return DONE
        if event_ms == now_ms:
            if source < len(world.islands):
                _complete(world, source, now_ms)
            else:
                start(world, source - len(world.islands), now_ms)
        elif transfer_ms == now_ms:
            moved = clock.transfers
            clock.transfers = popped(world.requests, moved)
            enter(world, moved, now_ms)
        else:
            if clock.free == NOBODY:
                return FULL
            _arrive(world, arrivals, now_ms)
        clock.events += 1


@compiled
def backlogs(world: World, backlog_ms: Array) -> None:
    """Predicted work of each engine's station, in slot milliseconds at the top clock, as engines report it.

    A running request that has outlived its prediction counts as one more token. Settle before.
    """
    backlog_ms[:] = 0.0
    for number in range(len(world.requests)):
        request = world.requests[number]
        if request.model == NOBODY or not world.stations[request.station].engine:
            continue
        station = world.stations[request.station]
        if request.executor == NOBODY:
            ahead_ms = predicted_ms(world, number)
        else:
            executor = world.executors[request.executor]
            begun = executor.steps
            if executor.phase == 1:
                begun += executor.stretch - math.ceil(executor.remaining_ms / executor.step_ms)
            sent = request.units - (request.key - begun)
            ahead_ms = station.ms_per_unit * max(1.0, request.predicted - sent)
        backlog_ms[request.station] += ahead_ms


@compiled
def _arrive(world: World, arrivals: Array, now_ms: float) -> None:
    clock = world.clock[0]
    arrival = arrivals[clock.arrived]
    number = clock.free
    request = world.requests[number]
    clock.free = request.right
    clock.arrived += 1
    request.number = clock.events  # ascends with every arrival
    request.model = arrival.model
    request.stage = 0
    request.executor = NOBODY
    request.arrival_ms = now_ms
    request.size = arrival.size
    request.units = arrival.units
    request.predicted = arrival.predicted
    world.seen[arrival.model].arrived += 1
    group = group_of(world, now_ms)
    if group >= 0:
        world.tallies[arrival.model, group].arrived += 1
    route(world, number)
    enter(world, number, now_ms)


@compiled
def _complete(world: World, island: int, now_ms: float) -> None:
    """The island's next executor has done its piece of work."""
    settle(world, island, now_ms)
    number = world.islands[island].next
    executor = world.executors[number]
    executor.remaining_ms = 0.0
    if not world.stations[executor.station].engine:
        quit_island(world, number)
        while executor.running:
            done = executor.first
            executor.first = popped(world.requests, done)
            executor.running -= 1
            _depart(world, done, now_ms)
        start(world, executor.station, now_ms)
    elif executor.phase == 0:
        decode(world, number)
    else:
        executor.steps += executor.stretch
        while executor.running and world.requests[executor.first].key <= executor.steps:
            done = executor.first
            executor.first = popped(world.requests, done)
            executor.running -= 1
            _depart(world, done, now_ms)
        iterate(world, number)
    refresh(world, island)


@compiled
def _depart(world: World, number: int, now_ms: float) -> None:
    """Leave a stage for the next one, or for good."""
    request = world.requests[number]
    model = world.models[request.model]
    left = world.stations[request.station].gpu
    leave_station(world, number)
    if request.stage + 1 == model.stages:
        count_completion(world, number, now_ms)
        release(world, number)
        return
    request.stage += 1
    request.executor = NOBODY
    route(world, number)
    transfer_ms = world.stages[model.first_stage + request.stage].transfer_ms
    if transfer_ms > 0.0 and (left == NOBODY or left != world.stations[request.station].gpu):
        request.key = now_ms + transfer_ms
        world.clock[0].transfers = pushed(world.requests, world.clock[0].transfers, number)
    else:
        enter(world, number, now_ms)

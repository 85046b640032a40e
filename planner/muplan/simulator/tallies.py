# mypy: disable-error-code="no-any-return"
"""What is counted of each request, compiled."""

from __future__ import annotations

import math

from muplan.simulator.compiled import NOBODY, compiled
from muplan.simulator.world import BIN_RATIO, GROUPS, SHORTEST_MS, World

_LOG_RATIO = math.log(BIN_RATIO)


@compiled
def count_completion(world: World, number: int, now_ms: float) -> None:
    request = world.requests[number]
    jct_ms = now_ms - request.arrival_ms
    met = 1 if jct_ms <= world.models[request.model].slo_ms else 0
    place = 0
    if jct_ms > SHORTEST_MS:
        place = min(int(math.log(jct_ms / SHORTEST_MS) / _LOG_RATIO), world.histogram.shape[1] - 1)
    seen = world.seen[request.model]
    seen.completed += 1
    seen.met += met
    seen.jct_ms += jct_ms
    if world.seen_histogram.shape[1]:
        world.seen_histogram[request.model, place] += 1
    group = group_of(world, request.arrival_ms)
    if group >= 0:
        tally = world.tallies[request.model, group]
        tally.completed += 1
        tally.met += met
        tally.jct_ms += jct_ms
        world.histogram[request.model, place] += 1
    world.clock[0].last_ms = now_ms


@compiled
def group_of(world: World, arrival_ms: float) -> int:
    """Which batch of the batch means a request belongs to; NOBODY when it is not measured."""
    clock = world.clock[0]
    if arrival_ms < clock.measured_from_ms:
        return NOBODY
    span_ms = clock.measured_until_ms - clock.measured_from_ms
    group = int((arrival_ms - clock.measured_from_ms) / span_ms * GROUPS)
    return min(GROUPS - 1, group)


@compiled
def release(world: World, number: int) -> None:
    request = world.requests[number]
    request.model = NOBODY
    request.right = world.clock[0].free
    world.clock[0].free = number

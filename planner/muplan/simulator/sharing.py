# mypy: disable-error-code="no-any-return"
"""How GPUs are shared, compiled: processor sharing on islands, and the energy it takes.

Exact: between two events of an island every pace and every power stays what it is.
"""

from __future__ import annotations

import math

from muplan.simulator.compiled import NOBODY, compiled
from muplan.simulator.heaps import reschedule
from muplan.simulator.world import World


@compiled
def settle(world: World, island: int, now_ms: float) -> None:
    """Bring work and energy of an island up to now."""
    here = world.islands[island]
    span_ms = now_ms - here.settled_ms
    if span_ms <= 0.0:
        return
    here.settled_ms = now_ms
    for place in range(here.first_gpu, here.first_gpu + here.gpus):
        gpu = world.gpus[world.island_gpus[place]]
        gpu.energy_mj += gpu.power_w * span_ms
        if gpu.customers:
            gpu.busy_ms += span_ms
    for place in range(here.first_place, here.first_place + here.busy):
        executor = world.executors[world.customers[place]]
        executor.remaining_ms = max(0.0, executor.remaining_ms - span_ms * executor.pace)


@compiled
def refresh(world: World, island: int) -> None:
    """Paces, power and next completion of an island that has been settled."""
    here = world.islands[island]
    busy = range(here.first_place, here.first_place + here.busy)
    for place in range(here.first_gpu, here.first_gpu + here.gpus):
        gpu = world.gpus[world.island_gpus[place]]
        gpu.customers = 0
        gpu.power_w = 0.0
    for place in busy:
        executor = world.executors[world.customers[place]]
        for member in range(executor.first_member, executor.first_member + executor.members):
            gpu = world.gpus[world.member_gpu[member]]
            gpu.customers += 1
            gpu.power_w += world.power_w[member, executor.phase]
    for place in range(here.first_gpu, here.first_gpu + here.gpus):
        gpu = world.gpus[world.island_gpus[place]]
        gpu.power_w = gpu.power_w / gpu.customers if gpu.customers else gpu.idle_w
    next_ms = math.inf
    here.next = NOBODY
    for place in busy:
        number = world.customers[place]
        executor = world.executors[number]
        stretch = 0.0
        for member in range(executor.first_member, executor.first_member + executor.members):
            share = world.gpus[world.member_gpu[member]].customers
            stretch = max(stretch, share * world.slowdown[member, executor.phase])
        executor.pace = 1.0 / stretch
        end_ms = here.settled_ms + executor.remaining_ms * stretch
        if end_ms < next_ms or (end_ms == next_ms and number < here.next):
            next_ms = end_ms
            here.next = number
    reschedule(world.due_ms, world.order, world.place, island, next_ms)


@compiled
def settle_all(world: World, now_ms: float) -> None:
    """Bring everything up to now."""
    for island in range(len(world.islands)):
        settle(world, island, now_ms)


@compiled
def refresh_all(world: World) -> None:
    """Paces and power everywhere, after clocks have changed."""
    for island in range(len(world.islands)):
        refresh(world, island)


@compiled
def join(world: World, number: int) -> None:
    """Become a customer of the island; refresh it after."""
    executor = world.executors[number]
    island = world.islands[executor.island]
    _swap(world, executor.place, island.first_place + island.busy)
    island.busy += 1


@compiled
def quit_island(world: World, number: int) -> None:
    """Stop being a customer of the island; refresh it after."""
    executor = world.executors[number]
    island = world.islands[executor.island]
    island.busy -= 1
    _swap(world, executor.place, island.first_place + island.busy)


@compiled
def _swap(world: World, one: int, two: int) -> None:
    left, right = world.customers[one], world.customers[two]
    world.customers[one] = right
    world.customers[two] = left
    world.executors[left].place = two
    world.executors[right].place = one

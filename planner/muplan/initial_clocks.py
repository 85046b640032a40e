"""The lowest clocks that keep every SLO, for partitions whose GPUs are already chosen. Pure.

Latency falls and power rises with the clock, so each GPU wants the lowest clock that its residents
bear. A model that spans two GPUs can spend its slack on either: all clocks first go down together, then
each alone as far as it still can. No GPU that works goes below its part's knee, where work slows down
and nothing is saved; one that has nothing to do is parked at its lowest clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muplan.operating import Assignment, ClusterModel, Point

# Steps by which all clocks go down together. The last, individual step uses every clock of the part.
_COMMON_LEVELS = 32


def top_clocks(model: ClusterModel, assignment: Assignment) -> list[int]:
    """Top clocks, with GPUs that have nothing to do parked."""
    used = set(assignment.values())
    return [
        slot.part.top_clock_mhz if gpu in used else slot.part.clocks_mhz[0]
        for gpu, slot in enumerate(model.slots)
    ]


def lowest_clocks(model: ClusterModel, assignment: Assignment) -> list[int]:
    """The lowest clocks at which every attainment target is met; expects them to be met at the top clocks."""
    clocks = top_clocks(model, assignment)
    used = sorted(set(assignment.values()))
    ladders = {gpu: model.slots[gpu].part.working_clocks_mhz for gpu in used}

    def at_level(level: int) -> list[int]:
        trial = list(clocks)
        for gpu, ladder in ladders.items():
            trial[gpu] = ladder[round(level * (len(ladder) - 1) / _COMMON_LEVELS)]
        return trial

    clocks = at_level(
        _first(_COMMON_LEVELS, lambda level: meets_targets(model, model.point(assignment, at_level(level))))
    )
    for gpu, ladder in ladders.items():

        def bearable(step: int, gpu: int = gpu, ladder: Sequence[int] = ladder) -> bool:
            trial = [*clocks[:gpu], ladder[step], *clocks[gpu + 1 :]]
            return meets_targets(model, model.point(assignment, trial))

        clocks[gpu] = ladder[_first(ladder.index(clocks[gpu]), bearable)]
    return clocks


def meets_targets(model: ClusterModel, point: Point) -> bool:
    """Whether every model's predicted attainment reaches its target."""
    pairs = zip(point.attainment, model.demands, strict=True)
    return all(attainment >= demand.attainment_target for attainment, demand in pairs)


def clock_reason(
    model: ClusterModel, assignment: Assignment, clocks_mhz: Sequence[int], gpu: int, guard: float
) -> str:
    """One sentence: why ``gpu`` starts at its clock. ``guard`` is the share of each SLO that may be used."""
    part, clock = model.slots[gpu].part, clocks_mhz[gpu]
    if gpu not in assignment.values():
        return f"Parked at the lowest clock of {part.name}: nothing is placed here."
    ladder = part.working_clocks_mhz
    step = ladder.index(clock)
    if step == 0:
        return (
            f"The knee of {part.name}: every model here keeps its SLO at {clock} MHz, "
            "and lower clocks cost time without saving energy."
        )
    trial = [*clocks_mhz[:gpu], ladder[step - 1], *clocks_mhz[gpu + 1 :]]
    after = model.point(assignment, trial)
    margins = [a - d.attainment_target for a, d in zip(after.attainment, model.demands, strict=True)]
    worst = min(range(len(margins)), key=margins.__getitem__)
    return (
        f"The lowest clock that keeps {model.demands[worst].name}: at {ladder[step - 1]} MHz only "
        f"{after.attainment[worst]:.2%} of its requests would stay within {guard:.0%} of its SLO."
    )


def _first(high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in 0..high for which ``holds``, given that it holds at ``high`` and is monotone."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high

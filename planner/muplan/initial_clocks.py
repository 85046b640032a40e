"""The lowest clocks that keep every SLO, for partitions whose GPUs are already chosen. Pure.

Latency falls and power rises with the clock, so each GPU wants the lowest clock that its residents
bear. A model that spans two GPUs can spend its slack on either: all clocks first go down together, then
each alone as far as it still can. No GPU that works goes below its part's knee, where work slows down
and nothing is saved; one that has nothing to do is parked at its lowest clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from muplan.group import Group

# Steps by which all clocks go down together. The last, individual step uses every clock of the part.
_COMMON_LEVELS = 32


def top_clocks(group: Group) -> dict[int, int]:
    """Top clocks by GPU, with GPUs that have nothing to do parked."""
    slots = group.model.slots
    return {
        gpu: slots[gpu].part.top_clock_mhz if keys else slots[gpu].part.clocks_mhz[0]
        for gpu, keys in group.residents.items()
    }


def lowest_clocks(group: Group) -> dict[int, int]:
    """The lowest clocks, by GPU, that meet every attainment target; the top clocks are expected to."""
    clocks = top_clocks(group)
    ladders = {
        gpu: group.model.slots[gpu].part.working_clocks_mhz for gpu, keys in group.residents.items() if keys
    }

    def at_level(level: int) -> dict[int, int]:
        lowered = {
            gpu: ladder[round(level * (len(ladder) - 1) / _COMMON_LEVELS)] for gpu, ladder in ladders.items()
        }
        return clocks | lowered

    if len(ladders) < 2:
        return _lowered(group, clocks, list(ladders))
    common = at_level(_first(_COMMON_LEVELS, lambda level: group.meets_targets(at_level(level))))
    # By content and not by number, so that exchanging equal GPUs changes nothing.
    order = sorted(ladders, key=lambda gpu: tuple(group.residents[gpu]))
    return min((_lowered(group, common, o) for o in (order, order[::-1])), key=group.power_w)


def _lowered(group: Group, clocks_mhz: Mapping[int, int], order: Sequence[int]) -> dict[int, int]:
    """The clocks with each GPU of ``order`` in turn as low as it can go."""
    clocks = dict(clocks_mhz)
    for gpu in order:
        ladder = group.model.slots[gpu].part.working_clocks_mhz

        def bearable(step: int, gpu: int = gpu, ladder: Sequence[int] = ladder) -> bool:
            return group.meets_targets(clocks | {gpu: ladder[step]})

        clocks[gpu] = ladder[_first(ladder.index(clocks[gpu]), bearable)]
    return clocks


def clock_reason(group: Group, clocks_mhz: Mapping[int, int], gpu: int, guard: float) -> str:
    """One sentence: why ``gpu`` starts at its clock. ``guard`` is the share of each SLO that may be used."""
    model = group.model
    part, clock = model.slots[gpu].part, clocks_mhz[gpu]
    if not group.residents[gpu]:
        return f"Parked at the lowest clock of {part.name}: nothing is placed here."
    ladder = part.working_clocks_mhz
    step = ladder.index(clock)
    if step == 0:
        return (
            f"The knee of {part.name}: every model here keeps its SLO at {clock} MHz, "
            "and lower clocks cost time without saving energy."
        )
    loads = group.loads({**clocks_mhz, gpu: ladder[step - 1]})
    after = {owner: group.response(owner, loads).attainment for owner in group.models}
    worst = min(after, key=lambda owner: after[owner] - model.demands[owner].attainment_target)
    return (
        f"The lowest clock that keeps {model.demands[worst].name}: at {ladder[step - 1]} MHz only "
        f"{after[worst]:.2%} of its requests would stay within {guard:.0%} of its SLO."
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

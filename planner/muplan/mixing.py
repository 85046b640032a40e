"""The price of mixing: what a GPU pays because its residents share one clock. Pure.

Each resident has a clock of its own: the lowest one of the whole GPU that keeps that resident's SLO, its
neighbours slowed down alike and the other GPUs left as they are. The GPU must run at the highest of these
clocks; the others would do with less. The price is the GPU's
power now less its power if each resident's work ran at that resident's own clock, and idle time at the
lowest of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muplan.group import Group
from muplan.placement import SLO_GUARD
from muplan.plan_model import cluster_from_plan
from muplan.workload import StageKey
from muserve.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class MixingPrice:
    """Watts lost on one GPU, and the clock each resident partition would do with, by its name.

    ``binding`` is the model that needs the highest clock. A GPU with less than two residents pays nothing.
    """

    price_w: float
    binding: str
    own_clocks_mhz: dict[str, int]


def mixing_prices(plan: Plan, *, guard: float = SLO_GUARD) -> dict[str, MixingPrice]:
    """The price on every GPU of ``plan`` that has work, by the GPU's name."""
    model, assignment, clocks_mhz = cluster_from_plan(plan, slo_share=guard)
    prices = {}
    for group in model.groups(assignment):
        clocks = {gpu: clocks_mhz[gpu] for gpu in group.residents}
        for gpu, keys in group.residents.items():
            if keys:
                prices[model.slots[gpu].name] = mixing_price(group, clocks, gpu)
    return prices


def mixing_price(group: Group, clocks_mhz: Mapping[int, int], gpu: int) -> MixingPrice:
    """The price on ``gpu``, one of ``group`` with residents, when all its GPUs run at ``clocks_mhz``."""
    keys = group.residents[gpu]
    demands = group.model.demands
    own = {key: _own_clock(group, clocks_mhz, gpu, key) for key in keys}
    now = group.loads(clocks_mhz)
    price_w = 0.0
    if len(keys) > 1:
        apart_w, idle_share = 0.0, 1.0
        for key, clock in own.items():
            share, watts = group.resident_power(gpu, key, group.loads({**clocks_mhz, gpu: clock}))
            apart_w += watts
            idle_share -= share
        apart_w += max(0.0, idle_share) * group.model.idle_w(group.model.slots[gpu].part, min(own.values()))
        price_w = group.gpu_point(gpu, now).power_w - apart_w
    binding = max(keys, key=lambda key: own[key])
    return MixingPrice(
        price_w=price_w,
        binding=demands[binding[0]].name,
        own_clocks_mhz={demands[owner].stages[stage].name: clock for (owner, stage), clock in own.items()},
    )


def _own_clock(group: Group, clocks_mhz: Mapping[int, int], gpu: int, key: StageKey) -> int:
    """The lowest working clock of ``gpu``, up to the one in force, that keeps the model of ``key``."""
    owner = key[0]
    target = group.model.demands[owner].attainment_target
    for clock in group.model.slots[gpu].part.working_clocks_mhz:
        if clock >= clocks_mhz[gpu]:
            break
        loads = group.loads({**clocks_mhz, gpu: clock})
        if group.response(owner, loads).attainment >= target:
            return clock
    return clocks_mhz[gpu]

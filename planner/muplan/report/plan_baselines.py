"""What other placements of the same load would draw, for a plan's report."""

from __future__ import annotations

from collections.abc import Sequence

from muplan.baselines import REFERENCE, judge
from muplan.workload import Demand, Slot

COMPARED = ("one model per GPU", "round robin", REFERENCE)
"""Baselines that take no time worth mentioning in a cluster of moderate size."""

# In larger clusters (models x GPUs) the page goes without; `tools/bench_placement.py` compares them.
_LARGEST_CASE = 2_500


def baseline_powers(demands: Sequence[Demand], slots: Sequence[Slot]) -> dict[str, float | None]:
    """Predicted power in watts at the top clocks, GPUs without work parked; None where an SLO is missed.

    Empty for clusters too large to compare in passing.
    """
    if len(demands) * len(slots) > _LARGEST_CASE:
        return {}
    judged = {name: judge(name, demands, slots) for name in COMPARED}
    return {name: found.top_clock_power_w if found.feasible else None for name, found in judged.items()}

"""Where to cut a model: dynamic programming over its linearised operators.

The cost of a set of cuts, every term a share of the model's own time T or of its variance, is

    unlikeness x sum over stages of (sum over its operators of t_i (k_i - k_stage)^2) / T
    + imbalance x sum over stages of (t_stage / T - 1 / count)^2
    + transfer x sum over cuts of (bytes / link) / T

with t_i and k_i the time and clock sensitivity of operator i and k_stage the time-weighted mean. The first
term is what a stage loses because one clock must serve unlike operators; the second what the pipeline
loses to its slowest stage. All terms add over stages, so dynamic programming finds the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.profile.operators import OperatorCost
from muplan.profile.roofline import KernelTime
from muserve.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class CutWeights:
    """How much each term of the cost counts."""

    unlikeness: float = 1.0
    imbalance: float = 1.0
    transfer: float = 1.0


DEFAULT_WEIGHTS = CutWeights()


def choose_cuts(
    costs: Sequence[OperatorCost],
    times: Sequence[KernelTime],
    count: int,
    link_gbs: float,
    weights: CutWeights = DEFAULT_WEIGHTS,
) -> tuple[int, ...]:
    """The ``count - 1`` best cuts, ascending; a cut is the position of the operator it follows.

    Only places with ``OperatorCost.cuttable`` are used. ``link_gbs`` is the link between GPUs in GB/s.
    Among equally good choices the earliest cuts win. Raises InputError when there are too few places.
    """
    places = [position for position, cost in enumerate(costs) if cost.cuttable]
    if count < 1 or count - 1 > len(places):
        raise InputError(
            f"partitions: expected 1 to {len(places) + 1}, "
            f"for the graph offers {len(places)} places to cut, got {count}"
        )
    ends = np.array([-1, *places, len(costs) - 1])
    stages = _stage_costs(times, ends, count, weights)
    total_ms = sum(time.latency_ms for time in times)
    sending_ms = np.array([0.0, *(costs[place].cut_bytes / link_gbs * 1e-6 for place in places), 0.0])
    entry = weights.transfer * sending_ms / total_ms if total_ms else np.zeros(len(ends))
    best = stages[0] + 0.0  # cost of ending the first stage at each end
    choices = []
    for _ in range(count - 1):
        candidates = (best + entry)[:, None] + stages
        choices.append(np.argmin(candidates, axis=0))
        best = np.min(candidates, axis=0)
    cuts = []
    place = len(ends) - 1
    for choice in reversed(choices):
        place = int(choice[place])
        cuts.append(int(ends[place]))
    return tuple(reversed(cuts))


def _stage_costs(
    times: Sequence[KernelTime], ends: NDArray[np.int64], count: int, weights: CutWeights
) -> NDArray[np.float64]:
    """``[i, j]``: cost of the stage after ``ends[i]`` up to ``ends[j]``; infinite unless i < j."""
    latency = np.array([time.latency_ms for time in times])
    sensitivity = np.array([time.sensitivity for time in times])

    def spans(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.concatenate([[0.0], np.cumsum(values)])[ends + 1]
        difference: NDArray[np.float64] = np.maximum(sums[None, :] - sums[:, None], 0.0)
        return difference

    time, first, second = (spans(latency * sensitivity**power) for power in (0, 1, 2))
    total = float(latency.sum()) or 1.0
    spread = np.maximum(second - first**2 / np.where(time > 0, time, 1.0), 0.0) / total
    uneven = (time / total - 1 / count) ** 2
    cost: NDArray[np.float64] = weights.unlikeness * spread + weights.imbalance * uneven
    cost[np.tril_indices(len(ends))] = np.inf
    return cost

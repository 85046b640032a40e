"""Where to cut a model, and into how many partitions: dynamic programming over its linearised operators.

The cost of cutting a model into n stages, every term a share of the model's own time T or of its variance, is

    unlikeness x sum over stages of (sum over its operators of t_i (k_i - k_stage)^2) / T
    + imbalance x sum over stages of (t_stage / T - 1 / n)^2
    + transfer x sum over cuts of (bytes / link) / T
    + cut x (n - 1)

with t_i and k_i the time and clock sensitivity of operator i and k_stage the time-weighted mean. The first
term is what a stage loses because one clock must serve unlike operators; the second what the pipeline
loses to its slowest stage; the last what every stage costs whatever it holds: a process with its context,
a hop through the scheduler. A stage that does not fit into the memory of a GPU has infinite cost.

Because the shares of the stages add up to 1, the second term is ``sum of (t_stage / T)^2 - 1 / n``: for a
given n all terms add over stages and dynamic programming finds the optimum. One table per n gives the best
of every n, and no n is looked at whose cuts alone cost more than the best so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.profile.operators import OperatorCost
from muplan.profile.roofline import KernelTime
from muplan.stage_memory import MemoryLimit
from muserve.errors import InputError
from muserve.plan import CutPlan

# Of a graph with more places to cut, so many are considered: time and memory go with their square.
MOST_PLACES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CutWeights:
    """How much each term of the cost counts.

    The defaults: ``unlikeness`` and ``transfer`` are the scale. A ``cut`` of 0.02 pays when it parts equal
    halves whose sensitivities differ by more than 0.28 (a gain of 0.28^2 / 4); the best cut of BERT-base
    gains 0.004 and that of ResNet-50 0.009, so uniform models stay whole. ``imbalance`` is light because
    stages may share a GPU, where uneven ones lose nothing: of stages of 20 and 80 % it costs 0.045.
    """

    unlikeness: float = 1.0
    imbalance: float = 0.25
    transfer: float = 1.0
    cut: float = 0.02


DEFAULT_WEIGHTS = CutWeights()


def choose_cuts(
    costs: Sequence[OperatorCost],
    times: Sequence[KernelTime],
    count: int | None,
    link_gbs: float,
    weights: CutWeights = DEFAULT_WEIGHTS,
    limit: MemoryLimit | None = None,
) -> tuple[int, ...]:
    """The best cuts, ascending; a cut is the position of the operator it follows.

    ``count`` is the number of stages, None to choose it too. Only places with ``OperatorCost.cuttable`` are
    used, of more than ``MOST_PLACES`` the cheapest to cut in each stretch of the model. ``link_gbs`` is the
    link between GPUs in GB/s. Among equally good choices the fewest and earliest cuts win. Raises
    InputError when there are too few places, and when ``limit`` is exceeded however the model is cut.
    """
    places = candidates(costs, times)
    if count is not None and not 1 <= count <= len(places) + 1:
        raise InputError(
            f"partitions: expected auto or 1 to {len(places) + 1}, "
            f"for the graph offers {len(places)} places to cut, got {count}"
        )
    ends = np.array([-1, *places, len(costs) - 1])
    stages = _stage_costs(times, ends, weights)
    if limit is not None:
        stages[limit.memory.spans(ends) > limit.limit_bytes] = np.inf
    table = _Table(stages, _entry_costs(costs, times, ends, link_gbs, weights))
    chosen = table.cheapest_count(weights) if count is None else count
    if np.isinf(table.best(chosen)):
        assert limit is not None, "without a limit every stage has a finite cost"
        raise InputError(_too_large(table, chosen, ends, limit))
    return tuple(int(ends[place]) for place in table.cuts(chosen))


def cut_plans(
    costs: Sequence[OperatorCost],
    times: Sequence[KernelTime],
    cuts: Sequence[int],
    link_gbs: float,
    weights: CutWeights = DEFAULT_WEIGHTS,
) -> tuple[CutPlan, ...]:
    """What each of ``cuts`` gains: the terms of the cost against those with its two stages joined."""
    total_ms = sum(time.latency_ms for time in times) or 1.0
    count = len(cuts) + 1
    plans = []
    for before, cut, after in zip([-1, *cuts], cuts, [*cuts[1:], len(costs) - 1], strict=False):
        left, right = times[before + 1 : cut + 1], times[cut + 1 : after + 1]
        removed = _unlikeness_ms([*left, *right]) - _unlikeness_ms(left) - _unlikeness_ms(right)
        shares = [sum(time.latency_ms for time in stage) / total_ms for stage in (left, right)]
        evened = 2 * shares[0] * shares[1] - 1 / (count * (count - 1))
        sending_ms = costs[cut].cut_bytes / link_gbs * 1e-6
        plans.append(
            CutPlan(
                after_operator=costs[cut].name,
                transfer_bytes=costs[cut].cut_bytes,
                transfer_ms=round(sending_ms, 6),
                unlikeness_removed=round(weights.unlikeness * removed / total_ms, 6),
                imbalance_removed=round(weights.imbalance * evened, 6),
                transfer_cost=round(weights.transfer * sending_ms / total_ms, 6),
                cut_cost=weights.cut,
            )
        )
    return tuple(plans)


def candidates(
    costs: Sequence[OperatorCost], times: Sequence[KernelTime], most: int = MOST_PLACES
) -> list[int]:
    """Places to consider, ascending: all, or the cheapest to send from each of ``most`` stretches.

    A stretch holds at most a ``most``/2-th of the model's time and of its weights, which bounds both what
    a better place within it could gain and what it could save of a stage's memory.
    """
    places = [position for position, cost in enumerate(costs[:-1]) if cost.cuttable]
    if len(places) <= most:
        return places
    stretches = [
        np.floor(_cumulative(values) * (most // 2 - 1))
        for values in ([time.latency_ms for time in times], [float(cost.weight_bytes) for cost in costs])
    ]
    cheapest: dict[tuple[float, float], int] = {}
    for place in places:
        stretch = (float(stretches[0][place]), float(stretches[1][place]))
        if stretch not in cheapest or costs[place].cut_bytes < costs[cheapest[stretch]].cut_bytes:
            cheapest[stretch] = place
    return sorted(cheapest.values())


class _Table:
    """Least costs of ending the n-th stage at each end, for n = 1, 2, ...; filled as far as asked."""

    def __init__(self, stages: NDArray[np.float64], entry: NDArray[np.float64]) -> None:
        self._stages, self._entry = stages, entry
        self._best = [stages[0]]
        self._previous: list[NDArray[np.int64]] = []

    @property
    def most(self) -> int:
        """The number of stages when every place is cut."""
        return len(self._entry) - 1

    def best(self, count: int) -> float:
        """Least cost of ``count`` stages that cover the model, without the terms that depend on it alone."""
        while len(self._best) < count:
            sums = (self._best[-1] + self._entry)[:, None] + self._stages
            previous = np.argmin(sums, axis=0)
            self._previous.append(previous)
            self._best.append(sums[previous, np.arange(len(previous))])
        return float(self._best[count - 1][-1])

    def cheapest_count(self, weights: CutWeights) -> int:
        """The number of stages with the least cost; the fewest that fit when all are infinite."""
        cheapest, least = 1, np.inf
        for count in range(1, self.most + 1):
            if weights.cut * (count - 1) >= least:
                break
            cost = self.best(count) - weights.imbalance / count + weights.cut * (count - 1)
            if cost < least:
                cheapest, least = count, cost
        return cheapest

    def cuts(self, count: int) -> list[int]:
        """Indices of the ends that the best ``count`` stages are cut at, ascending."""
        place, cuts = self.most, []
        for previous in reversed(self._previous[: count - 1]):
            place = int(previous[place])
            cuts.append(place)
        return cuts[::-1]


def _too_large(table: _Table, count: int, ends: NDArray[np.int64], limit: MemoryLimit) -> str:
    """One sentence: why ``count`` stages do not fit, and how many would."""
    has = f"{limit.part} has {limit.limit_bytes / 1e9:.1f} GB"
    piece = int(np.diagonal(limit.memory.spans(ends), offset=1).max())
    if piece > limit.limit_bytes:
        return (
            f"memory: {has}, but the largest piece between two places to cut needs {piece / 1e9:.1f} GB: "
            "expected a larger GPU or smaller dims"
        )
    fewest = next(more for more in range(count + 1, table.most + 1) if np.isfinite(table.best(more)))
    return f"partitions: expected auto or at least {fewest}, for {has}, got {count}"


def _stage_costs(
    times: Sequence[KernelTime], ends: NDArray[np.int64], weights: CutWeights
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
    cost: NDArray[np.float64] = weights.unlikeness * spread + weights.imbalance * (time / total) ** 2
    cost[np.tril_indices(len(ends))] = np.inf
    return cost


def _entry_costs(
    costs: Sequence[OperatorCost],
    times: Sequence[KernelTime],
    ends: NDArray[np.int64],
    link_gbs: float,
    weights: CutWeights,
) -> NDArray[np.float64]:
    """Cost of handing over at each of ``ends``; 0 at the first and the last."""
    total_ms = sum(time.latency_ms for time in times) or 1.0
    sending_ms = [costs[place].cut_bytes / link_gbs * 1e-6 for place in ends[1:-1]]
    return weights.transfer * np.array([0.0, *sending_ms, 0.0]) / total_ms


def _unlikeness_ms(stage: Sequence[KernelTime]) -> float:
    """Time-weighted squared deviation of the sensitivities of one stage from their mean."""
    total_ms = sum(time.latency_ms for time in stage)
    if not total_ms:
        return 0.0
    mean = sum(time.latency_ms * time.sensitivity for time in stage) / total_ms
    return sum(time.latency_ms * (time.sensitivity - mean) ** 2 for time in stage)


def _cumulative(values: Sequence[float]) -> NDArray[np.float64]:
    """Running share of the total; zeros when there is none."""
    sums = np.cumsum(values)
    shares: NDArray[np.float64] = sums / (sums[-1] or 1.0)
    return shares

"""The dynamic programme finds the cheapest cuts there are."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.catalog import default_dims, load_graph
from muplan.partition import MOST_PLACES, CutWeights, candidates, choose_cuts, cut_plans
from muplan.profile.operators import OperatorCost, operator_costs
from muplan.profile.roofline import KernelTime
from muplan.sensitivity import operator_times, stage_law
from muplan.splitting import split, weight_bytes
from muplan.stage_memory import (
    CONTEXT_BYTES,
    MemoryLimit,
    StageMemory,
    WeightUse,
    live_bytes,
    memory_bytes,
    stage_memory,
)
from muserve.errors import InputError
from muserve.gpu.parts import load_part

LINK_GBS = 10.0


def operator(cut_bytes: int, cuttable: bool) -> OperatorCost:
    return OperatorCost(
        name="op",
        op_type="Conv",
        flops=0.0,
        bytes_read=0,
        bytes_written=0,
        weight_bytes=0,
        matrix=True,
        launches=True,
        crossing=("t",),
        cut_bytes=cut_bytes,
        cuttable=cuttable,
    )


def kernel(flat_ms: float, compute_ms: float) -> KernelTime:
    return KernelTime(launch_ms=flat_ms, memory_ms=0.0, compute_ms=compute_ms, clocked_memory=0.0)


WEIGHT = st.sampled_from([0.0, 0.25, 1.0, 4.0])


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A drawn model: operators, their times, and the weights and memory to cut it by."""

    costs: list[OperatorCost]
    times: list[KernelTime]
    weights: CutWeights
    limit: MemoryLimit

    @property
    def choices(self) -> list[tuple[int, ...]]:
        """Every way to cut it."""
        places = [i for i, cost in enumerate(self.costs) if cost.cuttable]
        counts = range(len(places) + 1)
        return [cuts for count in counts for cuts in combinations(places, count)]

    def bounds(self, cuts: tuple[int, ...]) -> list[tuple[int, int]]:
        return list(pairwise([0, *(cut + 1 for cut in cuts), len(self.costs)]))

    def fits(self, cuts: tuple[int, ...]) -> bool:
        return all(self.memory(low, high) <= self.limit.limit_bytes for low, high in self.bounds(cuts))

    def memory(self, low: int, high: int) -> int:
        """Memory of a stage, written down directly: every initialiser once however often it is read."""
        read = {use.position: use for use in self.limit.memory.uses if low <= use.position < high}
        weights = sum(use.size_bytes for use in read.values() if use.last_read < low)
        return CONTEXT_BYTES + weights + max(live_bytes(cost) for cost in self.costs[low:high])

    def cost(self, cuts: tuple[int, ...]) -> float:
        """The documented cost, written down directly."""
        total = sum(time.latency_ms for time in self.times)
        sending_ms = sum(self.costs[cut].cut_bytes / (LINK_GBS * 1e9) * 1e3 for cut in cuts)
        cost = self.weights.transfer * sending_ms / total + self.weights.cut * len(cuts)
        for low, high in self.bounds(cuts):
            stage = self.times[low:high]
            stage_ms = sum(time.latency_ms for time in stage)
            mean = sum(time.latency_ms * time.sensitivity for time in stage) / stage_ms
            spread = sum(time.latency_ms * (time.sensitivity - mean) ** 2 for time in stage)
            cost += self.weights.unlikeness * spread / total
            cost += self.weights.imbalance * (stage_ms / total - 1 / (len(cuts) + 1)) ** 2
        return cost


@st.composite
def chains(draw: st.DrawFn, *, limited: bool = False) -> Chain:
    size = draw(st.integers(2, 9))
    costs = [operator(draw(st.integers(0, 10**7)), draw(st.booleans()) and i < size - 1) for i in range(size)]
    # Round figures, so that the reference sums them without error that could turn a tie.
    times = [kernel(draw(st.integers(0, 8)) / 8, draw(st.integers(1, 8)) / 8) for _ in range(size)]
    weights = CutWeights(
        unlikeness=draw(WEIGHT), imbalance=draw(WEIGHT), transfer=draw(WEIGHT), cut=draw(WEIGHT) / 16
    )
    shared = draw(st.booleans())  # every second operator reads the same initialiser
    uses = [
        WeightUse(
            position=i,
            last_read=i - 2 if shared and i % 2 == 0 and i else -1,
            size_bytes=40 if shared and i % 2 == 0 else draw(st.integers(0, 100)),
        )
        for i in range(size)
    ]
    memory = StageMemory(live_bytes=tuple(live_bytes(cost) for cost in costs), uses=tuple(uses))
    room = draw(st.integers(0, 10**7 + 1000)) if limited else 10**9
    limit = MemoryLimit(memory=memory, limit_bytes=CONTEXT_BYTES + room, part="a GPU")
    return Chain(costs=costs, times=times, weights=weights, limit=limit)


def cut(chain: Chain, count: int | None, weights: CutWeights | None = None) -> tuple[int, ...]:
    return choose_cuts(chain.costs, chain.times, count, LINK_GBS, weights or chain.weights, chain.limit)


@given(chains(), st.data())
def test_cuts_into_a_given_number_are_optimal(chain: Chain, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 1 + sum(cost.cuttable for cost in chain.costs)))
    cuts = cut(chain, count)
    assert len(cuts) == count - 1
    best = min(chain.cost(choice) for choice in chain.choices if len(choice) == count - 1)
    assert chain.cost(cuts) == pytest.approx(best, abs=1e-9)


@given(chains())
def test_the_number_of_cuts_is_optimal_too(chain: Chain) -> None:
    cuts = cut(chain, None)
    assert cuts in chain.choices, "cuts lie at places offered, in order"
    assert chain.cost(cuts) == pytest.approx(min(map(chain.cost, chain.choices)), abs=1e-9)


@given(chains(limited=True))
def test_no_stage_exceeds_the_memory_and_the_rest_is_optimal(chain: Chain) -> None:
    fitting = [choice for choice in chain.choices if chain.fits(choice)]
    if not fitting:
        with pytest.raises(InputError, match=r"memory: a GPU has .* but the largest piece"):
            cut(chain, None)
        return
    cuts = cut(chain, None)
    assert chain.fits(cuts)
    assert chain.cost(cuts) == pytest.approx(min(map(chain.cost, fitting)), abs=1e-9)


@given(chains(limited=True), st.data())
def test_a_number_of_stages_that_cannot_fit_is_refused_with_one_that_does(
    chain: Chain, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 1 + sum(cost.cuttable for cost in chain.costs)))
    counts = {len(choice) + 1 for choice in chain.choices if chain.fits(choice)}
    if not counts or count in counts:
        return
    with pytest.raises(
        InputError, match=f"expected auto or at least {min(counts)}, for a GPU has .* got {count}$"
    ):
        cut(chain, count)


@given(chains(limited=True), st.lists(WEIGHT, min_size=2, max_size=4, unique=True))
def test_dearer_cuts_are_never_more(chain: Chain, prices: list[float]) -> None:
    if not any(map(chain.fits, chain.choices)):
        return
    counts = [len(cut(chain, None, replace(chain.weights, cut=price / 32))) for price in sorted(prices)]
    assert counts == sorted(counts, reverse=True)


@given(chains())
def test_what_the_cuts_gained_adds_up(chain: Chain) -> None:
    """One cut: its gain is the difference to the whole model's cost."""
    for choice in chain.choices:
        if len(choice) != 1:
            continue
        (plan,) = cut_plans(chain.costs, chain.times, choice, LINK_GBS, chain.weights)
        gain = plan.unlikeness_removed + plan.imbalance_removed - plan.transfer_cost - plan.cut_cost
        assert gain == pytest.approx(chain.cost(()) - chain.cost(choice), abs=1e-5)
        assert plan.unlikeness_removed >= 0


def test_unlike_halves_are_told_apart_even_when_that_is_uneven() -> None:
    costs = [operator(1000, True) for _ in range(8)]
    times = [kernel(1.0, 0.0)] * 3 + [kernel(0.0, 1.0)] * 5
    assert choose_cuts(costs, times, 2, LINK_GBS) == (2,)


def test_alike_operators_are_balanced() -> None:
    costs = [operator(1000, True) for _ in range(9)]
    assert choose_cuts(costs, [kernel(0.5, 0.5)] * 9, 3, LINK_GBS) == (2, 5)


def test_a_cheaper_link_crossing_wins_among_equals() -> None:
    costs = [operator(size, True) for size in (10**7, 10**7, 10**4, 10**7, 10**7)]
    weights = CutWeights(imbalance=0.01)
    assert choose_cuts(costs, [kernel(0.5, 0.5)] * 5, 2, LINK_GBS, weights) == (2,)


@pytest.mark.parametrize("count", [0, 4, 100])
def test_too_many_partitions_is_an_input_error(count: int) -> None:
    costs = [operator(1, True), operator(1, True), operator(1, False)]
    with pytest.raises(InputError, match="partitions: expected auto or 1 to 3"):
        choose_cuts(costs, [kernel(1, 1)] * 3, count, LINK_GBS)


def test_auto_parts_truly_unlike_halves_and_leaves_a_uniform_mixture_whole() -> None:
    costs = [operator(1000, True) for _ in range(24)]
    flat, bound = kernel(0.9, 0.1), kernel(0.1, 0.9)
    assert choose_cuts(costs, [flat] * 12 + [bound] * 12, None, LINK_GBS) == (11,)
    assert choose_cuts(costs, [flat, bound] * 12, None, LINK_GBS) == ()


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("name", ["bert-base", "resnet-50"])
def test_uniform_models_stay_whole(name: str, batch: int) -> None:
    costs = operator_costs(load_graph(name), batch, default_dims(name))
    times = operator_times(costs, load_part("V100-16GB"), "fp32")
    assert choose_cuts(costs, times, None, link_gbs=12.0) == ()


def test_a_model_too_large_for_a_gpu_is_cut_as_often_as_it_must() -> None:
    graph = load_graph("bert-base")
    costs = operator_costs(graph, 1, default_dims("bert-base"))
    times = operator_times(costs, load_part("V100-16GB"), "fp32")
    limit = MemoryLimit(memory=stage_memory(graph, costs), limit_bytes=CONTEXT_BYTES + 200_000_000, part="p")
    assert len(choose_cuts(costs, times, None, 12.0, limit=limit)) == 2
    with pytest.raises(
        InputError, match=r"partitions: expected auto or at least 3, for p has 0\.7 GB, got 2"
    ):
        choose_cuts(costs, times, 2, 12.0, limit=limit)


def test_memory_of_every_span_is_that_of_the_partition_split_off() -> None:
    graph = load_graph("bert-base")
    costs = operator_costs(graph, 1, default_dims("bert-base"))
    cuts = [place for place, cost in enumerate(costs) if cost.cuttable][::20]
    bounds = [-1, *cuts, len(costs) - 1]
    spans = stage_memory(graph, costs).spans(np.array(bounds))
    for index, (piece, (low, high)) in enumerate(zip(split(graph, cuts), pairwise(bounds), strict=True)):
        assert spans[index, index + 1] == memory_bytes(weight_bytes(piece), costs[low + 1 : high + 1])


def test_thousands_of_operators_are_thinned_out_and_cut_quickly() -> None:
    size, change = 10_000, 3_333
    costs = [operator(1000 + i % 7, True) for i in range(size)]
    times = [kernel(0.9, 0.1)] * change + [kernel(0.1, 0.9)] * (size - change)
    assert len(candidates(costs, times)) <= MOST_PLACES
    start_s = time.perf_counter()
    (place,) = choose_cuts(costs, times, None, LINK_GBS)
    assert abs(place + 1 - change) <= size / (MOST_PLACES / 2)
    assert time.perf_counter() - start_s < 10, "an algorithm of the size squared would take minutes"


@pytest.mark.parametrize(("name", "count"), [("bert-base", 2), ("bert-base", 4), ("resnet-50", 2)])
def test_catalogue_models_are_cut_into_even_stages(name: str, count: int) -> None:
    part = load_part("V100-16GB")
    costs = operator_costs(load_graph(name), 1, default_dims(name))
    cuts = choose_cuts(costs, operator_times(costs, part, "fp32"), count, link_gbs=12.0)
    bounds = [-1, *cuts, len(costs) - 1]
    stages = [costs[low + 1 : high + 1] for low, high in pairwise(bounds)]
    shares = [stage_law(stage, part, "fp32").latency_ms for stage in stages]
    assert min(shares) > 0.75 * sum(shares) / count
    assert all(len(costs[cut].crossing) <= 2 for cut in cuts)

"""The dynamic programme finds the cheapest cuts there are."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.catalog import default_dims, load_graph
from muplan.partition import CutWeights, choose_cuts
from muplan.profile.operators import OperatorCost, operator_costs
from muplan.profile.roofline import KernelTime
from muplan.sensitivity import operator_times, stage_law
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


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[OperatorCost], list[KernelTime], int, CutWeights]:
    size = draw(st.integers(2, 9))
    costs = [operator(draw(st.integers(0, 10**7)), draw(st.booleans()) and i < size - 1) for i in range(size)]
    # Round figures, so that the reference below sums them without error that could turn a tie.
    times = [kernel(draw(st.integers(0, 8)) / 8, draw(st.integers(1, 8)) / 8) for _ in range(size)]
    count = draw(st.integers(1, 1 + sum(cost.cuttable for cost in costs)))
    weight = st.sampled_from([0.0, 0.25, 1.0, 4.0])
    weights = CutWeights(unlikeness=draw(weight), imbalance=draw(weight), transfer=draw(weight))
    return costs, times, count, weights


def cost_of(
    costs: list[OperatorCost], times: list[KernelTime], cuts: tuple[int, ...], weights: CutWeights
) -> float:
    """The documented cost, written down directly."""
    total = sum(time.latency_ms for time in times)
    bounds = [0, *(cut + 1 for cut in cuts), len(times)]
    cost = weights.transfer * sum(costs[cut].cut_bytes / (LINK_GBS * 1e9) * 1e3 for cut in cuts) / total
    for start, end in pairwise(bounds):
        stage = times[start:end]
        stage_ms = sum(time.latency_ms for time in stage)
        mean = sum(time.latency_ms * time.sensitivity for time in stage) / stage_ms
        spread = sum(time.latency_ms * (time.sensitivity - mean) ** 2 for time in stage)
        cost += weights.unlikeness * spread / total
        cost += weights.imbalance * (stage_ms / total - 1 / (len(cuts) + 1)) ** 2
    return cost


@given(chains())
def test_cuts_are_optimal(
    chain: tuple[list[OperatorCost], list[KernelTime], int, CutWeights],
) -> None:
    costs, times, count, weights = chain
    cuts = choose_cuts(costs, times, count, LINK_GBS, weights)
    places = [i for i, cost in enumerate(costs) if cost.cuttable]
    best = min(cost_of(costs, times, choice, weights) for choice in combinations(places, count - 1))
    assert cost_of(costs, times, cuts, weights) == pytest.approx(best, abs=1e-9)


@given(chains())
def test_partitions_are_contiguous_none_is_empty_and_all_is_covered(
    chain: tuple[list[OperatorCost], list[KernelTime], int, CutWeights],
) -> None:
    costs, times, count, weights = chain
    cuts = choose_cuts(costs, times, count, LINK_GBS, weights)
    assert len(cuts) == count - 1
    assert all(costs[cut].cuttable for cut in cuts)
    bounds = [-1, *cuts, len(costs) - 1]
    assert all(low < high for low, high in pairwise(bounds))


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
    with pytest.raises(InputError, match="partitions: expected 1 to 3"):
        choose_cuts(costs, [kernel(1, 1)] * 3, count, LINK_GBS)


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

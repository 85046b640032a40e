"""Placement: against the exhaustive optimum, and the laws any placement must obey."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.deployment import Deployment
from muplan.infeasible import infeasible
from muplan.operating import ClusterModel
from muplan.placement import Placement, group_costs, place
from muplan.placement.layout import Layout, Spot
from muplan.placement.pools import classes_of
from muplan.placement.search import placed
from muplan.queueing import (
    decay_rate,
    length_quantiles,
    line_within,
    present,
    processor_sharing,
    split_cv,
)
from muplan.workload import Demand
from muserve.physics import idle_power_w
from sample_demands import BIG, GB, V100, cluster, generative, single_pass


def clocks(placement: Placement) -> tuple[int, ...]:
    return tuple(gpu.clock_mhz for gpu in placement.point.gpus)


stages = st.lists(st.tuples(st.floats(2.0, 20.0), st.floats(0.0, 1.0)), min_size=1, max_size=2)
models = st.lists(
    st.tuples(stages, st.floats(1.0, 15.0), st.floats(3.0, 25.0), st.integers(1, 6)), min_size=1, max_size=4
).map(
    lambda drawn: [
        single_pass(f"m{i}", *parts, rate=rate, slo=scale * sum(ms for ms, _ in parts), memory=memory * GB)
        for i, (parts, rate, scale, memory) in enumerate(drawn)
    ]
)


def test_lax_models_share_a_gpu_at_the_knee_and_the_other_is_parked() -> None:
    demands = [single_pass("a", (5.0, 0.8), rate=5, slo=500), single_pass("b", (5.0, 0.1), rate=5, slo=500)]
    placement = place(demands, cluster(2))
    assert placement.score.feasible
    assert sorted(clocks(placement)) == [V100.clocks_mhz[0], V100.knee_mhz]
    assert "knee" in placement.clock_reasons[0]
    assert "Parked" in placement.clock_reasons[1]
    assert placement.point.power_w < placement.default_point.power_w


def test_what_suffers_alike_shares_a_gpu() -> None:
    """Two models that need a high clock, two that do not, and too much load for one GPU."""
    tight = [single_pass(f"tight{i}", (10.0, 0.9), rate=10, slo=40) for i in range(2)]
    loose = [single_pass(f"loose{i}", (10.0, 0.1), rate=40, slo=2_000) for i in range(2)]
    placement = place([tight[0], loose[0], tight[1], loose[1]], cluster(2))
    assert placement.score.feasible
    homes = {name.split("_")[0]: gpu for name, gpu in placement.gpu_of.items()}
    assert homes["tight0"] == homes["tight1"]
    assert homes["loose0"] == homes["loose1"]
    assert homes["tight0"] != homes["loose0"]
    loose_clock, tight_clock = sorted(clocks(placement))
    assert loose_clock == V100.knee_mhz < tight_clock


def test_reason_names_the_model_that_binds_the_clock() -> None:
    placement = place([single_pass("tight", (10.0, 0.9), rate=5, slo=26)], cluster(1))
    assert placement.score.feasible
    assert V100.knee_mhz < clocks(placement)[0] < V100.top_clock_mhz
    assert "keeps tight" in placement.clock_reasons[0]
    lower = V100.working_clocks_mhz[V100.working_clocks_mhz.index(clocks(placement)[0]) - 1]
    assert f"at {lower} MHz" in placement.clock_reasons[0]


def test_an_engine_that_fills_its_gpu_is_left_alone_by_tight_models() -> None:
    demands = [generative("llm", rate=2.5), single_pass("tight", (10.0, 0.5), rate=5, slo=30)]
    placement = place(demands, cluster(2))
    assert placement.score.feasible
    assert placement.gpu_of["llm_engine"] != placement.gpu_of["tight_stage0"]


def test_stages_of_a_model_stay_on_one_node() -> None:
    demands = [single_pass("wide", (5.0, 0.2), (5.0, 0.9), rate=5, slo=100, memory=12 * GB)]
    placement = place(demands, cluster(1, 2))
    assert placement.score.feasible
    assert set(placement.gpu_of.values()) == {"node1/gpu0", "node1/gpu1"}


def test_a_model_too_busy_for_one_gpu_gets_replicas_on_one_node() -> None:
    busy = single_pass("busy", (10.0, 0.5), rate=150, slo=400, replicas=(1, 2, 3))
    placement = place([busy], cluster(1, 1, 2))
    assert placement.score.feasible
    assert placement.deployments == (Deployment(replicas=2),)
    assert placement.replicas == {"busy_stage0": (("node2/gpu0",), ("node2/gpu1",))}
    assert placement.point.attainment[0] >= 0.99


def test_two_slow_replicas_are_chosen_where_they_are_cheaper_than_one_fast() -> None:
    def power(counts: tuple[int, ...]) -> tuple[float, int]:
        placement = place([single_pass("m", (10.0, 1.0), rate=60, slo=80, replicas=counts)], cluster(2))
        assert placement.score.feasible
        return placement.point.power_w, placement.deployments[0].replicas

    (one_w, _), (best_w, replicas) = power((1,)), power((1, 2))
    assert replicas == 2
    assert best_w < one_w


def test_a_model_larger_than_a_gpu_is_cut_tensor_parallel() -> None:
    llm = generative("llm", rate=0.5, memory=50 * GB, degrees=(1, 2, 4))
    placement = place([llm], cluster(3, 4))
    assert placement.score.feasible
    assert placement.deployments == (Deployment(degree=4),)
    assert placement.replicas == {"llm_engine": (tuple(f"node1/gpu{i}" for i in range(4)),)}
    assert len({gpu.busy_share for gpu in placement.point.gpus[3:]}) == 1


def test_latency_is_bought_with_power_when_that_is_the_objective() -> None:
    demands = [single_pass(f"m{i}", (10.0, 0.7), rate=20, slo=300) for i in range(2)]
    energy, latency = place(demands, cluster(2)), place(demands, cluster(2), objective="latency")
    assert latency.score.feasible
    assert clocks(latency) == (V100.top_clock_mhz, V100.top_clock_mhz)
    assert latency.gpu_of["m0_stage0"] != latency.gpu_of["m1_stage0"]
    assert all(
        met >= kept for met, kept in zip(latency.point.attainment, energy.point.attainment, strict=True)
    )
    assert latency.point.power_w > energy.point.power_w


several = st.lists(
    st.one_of(
        st.builds(
            lambda stages, rate, slo, cv: single_pass(
                "s", *stages, rate=rate, slo=slo, cv=cv, replicas=(1, 2)
            ),
            stages,
            st.floats(1.0, 40.0),
            st.floats(50.0, 500.0),
            st.floats(0.5, 4.0),
        ),
        st.builds(
            lambda rate: generative("g", rate=rate, degrees=(1, 2), replicas=(1, 2)), st.floats(0.5, 3.0)
        ),
    ),
    min_size=1,
    max_size=4,
).map(lambda drawn: [renamed(demand, f"m{i}") for i, demand in enumerate(drawn)])


def renamed(demand: Demand, name: str) -> Demand:
    stages = [replace(stage, name=f"{name}_{i}") for i, stage in enumerate(demand.stages)]
    return replace(demand, name=name, stages=tuple(stages))


@settings(max_examples=100, deadline=None)
@given(several, st.randoms(use_true_random=False))
def test_a_layout_kept_up_to_date_costs_what_a_new_one_costs(
    demands: list[Demand], draw: random.Random
) -> None:
    costs = group_costs(demands, cluster(2, [BIG, BIG]))
    pool = classes_of(costs.model.slots)
    layout = Layout(costs, pool)

    def any_spot(model: int) -> Spot:
        number = draw.randrange(len(costs.units.ways[model]))
        way = costs.units.ways[model][number]
        if way.deployment.degree > 1:
            gpus = draw.choice(pool)
            return Spot(way=number, homes=tuple(tuple(gpus) for _ in way.units))
        homes = [[draw.randrange(4) for _ in range(way.stages)] for _ in way.units]
        if len(homes) == 2:
            homes[1] = [(gpu + 1) % 4 for gpu in homes[0]]
        return Spot(way=number, homes=tuple(map(tuple, homes)))

    for model in range(len(demands)):
        layout.put(model, any_spot(model))
    for _ in range(10):
        model = draw.randrange(len(demands))
        layout.take(model)
        layout.put(model, any_spot(model))
    fresh = Layout(costs, pool)
    for model, spot in enumerate(placed(layout)):
        fresh.put(model, spot)
    assert layout.total == fresh.total
    alone = Layout(group_costs(demands, cluster(2, [BIG, BIG])), pool)
    for model in reversed(range(len(demands))):
        alone.put(model, placed(layout)[model])
    assert layout.total == alone.total


@settings(max_examples=40, deadline=None)
@given(models, st.sampled_from([(1,), (2,), (1, 1), (2, 1)]))
def test_a_feasible_placement_keeps_memory_and_targets(demands: list[Demand], nodes: tuple[int, ...]) -> None:
    slots = cluster(*nodes)
    placement = place(demands, slots)
    if not placement.score.feasible:
        return
    for gpu, slot in zip(placement.point.gpus, slots, strict=True):
        assert gpu.memory_used_bytes <= slot.part.memory_bytes
        assert 0.0 <= gpu.busy_share <= 1.0
        assert gpu.clock_mhz in slot.part.clocks_mhz
        assert idle_power_w(V100, gpu.clock_mhz) <= gpu.power_w + 1e-9 <= V100.limit_w
    for met, demand in zip(placement.point.attainment, placement.demands, strict=True):
        assert met >= demand.attainment_target
    assert placement.point.power_w <= placement.default_point.power_w + 1e-9


@settings(max_examples=12, deadline=None)
@given(models, st.sampled_from([((2,), (3,)), ((1, 1), (1, 2)), (([V100, BIG],), ([V100, BIG, BIG],))]))
def test_another_gpu_costs_at_most_its_parked_power(demands: list[Demand], clusters: tuple[Any, Any]) -> None:
    smaller, larger = cluster(*clusters[0]), cluster(*clusters[1])
    fewer, more = place(demands, smaller), place(demands, larger)
    assert more.score.feasible or not fewer.score.feasible
    if fewer.score.feasible:
        added_w = sum(slot.part.idle_w for slot in larger) - sum(slot.part.idle_w for slot in smaller)
        assert more.point.power_w <= fewer.point.power_w + added_w + 1e-5


@settings(max_examples=12, deadline=None)
@given(models, st.permutations(range(4)), st.permutations(range(3)))
def test_the_order_of_models_and_gpus_does_not_matter(
    demands: list[Demand], order: list[int], gpu_order: list[int]
) -> None:
    slots = cluster(2, [BIG])
    placement = place(demands, slots)
    shuffled = place([demands[i] for i in order if i < len(demands)], [slots[i] for i in gpu_order])
    assert shuffled.replicas == placement.replicas
    assert shuffled.point.power_w == pytest.approx(placement.point.power_w)
    assert clocks(shuffled) == tuple(clocks(placement)[i] for i in gpu_order)


def test_many_models_are_placed_the_same_way_every_time() -> None:
    demands = [single_pass(f"m{i}", (5.0, 0.03 * i), rate=20, slo=120) for i in range(26)]
    slots = cluster(*[8] * 5)
    placement = place(demands, slots)
    assert placement.score.feasible
    assert placement == place(demands, slots)
    used = [gpu for gpu in placement.point.gpus if gpu.busy_share]
    assert len(used) < len(slots)


class TestInfeasible:
    def test_the_share_told_is_the_one_that_was_compared(self) -> None:
        """Within the SLO enough requests would stay, within the guarded share of it not."""
        demand = single_pass("m", (10.0, 0.5), rate=50, slo=50)
        placement = place([demand], cluster(1))
        assert not placement.score.feasible
        assert placement.guarded_attainment[0] < demand.attainment_target <= placement.point.attainment[0]
        told = f"{placement.guarded_attainment[0]:.1%} of its requests would meet 90% of the SLO"
        assert told in str(infeasible(placement, cluster(1)))

    def test_overload_names_model_constraint_and_what_would_help(self) -> None:
        demands = [generative("llm", rate=4.5), single_pass("cnn", (5.0, 0.5), rate=1, slo=100)]
        placement = place(demands, cluster(2))
        assert not placement.score.feasible
        error = infeasible(placement, cluster(2))
        assert error.exit_code == 3
        sentence = str(error)
        assert "model llm: its slots or GPU time at 4.5 requests/s" in sentence
        rate = float(sentence.split("rate_rps: ")[1].split()[0])
        assert rate < 4.5
        assert place([replace(demands[0], rate_rps=rate), demands[1]], cluster(2)).score.feasible

    def test_advised_slo_is_feasible_and_little_more_than_needed(self) -> None:
        demand = single_pass("tight", (10.0, 0.5), rate=30, slo=15)
        sentence = str(infeasible(place([demand], cluster(1)), cluster(1)))
        slo = float(sentence.split("slo_ms: ")[1].split()[0])
        assert place([replace(demand, slo_ms=slo)], cluster(1)).score.feasible
        assert not place([replace(demand, slo_ms=0.95 * slo)], cluster(1)).score.feasible

    def test_another_gpu(self) -> None:
        demands = [single_pass(f"m{i}", (10.0, 0.5), rate=70, slo=200) for i in range(2)]
        sentence = str(infeasible(place(demands, cluster(1)), cluster(1)))
        assert "1 more V100-16GB" in sentence
        assert place(demands, cluster(2)).score.feasible

    def test_memory(self) -> None:
        demands = [single_pass(f"m{i}", (5.0, 0.5), rate=1, slo=200, memory=10 * GB) for i in range(3)]
        sentence = str(infeasible(place(demands, cluster(2)), cluster(2)))
        assert "memory: the partitions need 30.0 GB and the 2 GPUs have" in sentence
        assert "it would fit with 1 more V100-16GB" in sentence


class TestQueueing:
    @given(st.floats(0.0, 10.0), st.integers(1, 16))
    def test_bursts_thin_out_towards_poisson_when_they_are_shared(self, cv: float, replicas: int) -> None:
        share = split_cv(cv, replicas)
        assert min(cv, 1.0) - 1e-9 <= share <= max(cv, 1.0) + 1e-9
        assert split_cv(cv, 1) == pytest.approx(cv)

    def test_gaps_of_a_random_share_of_bursty_arrivals(self) -> None:
        """Exact for renewal arrivals: gamma gaps with a cv of 3, of which a third is kept at random."""
        draw = random.Random(3)
        gaps, gap = [], 0.0
        for _ in range(300_000):
            gap += draw.gammavariate(1 / 9, 9.0)
            if draw.random() < 1 / 3:
                gaps.append(gap)
                gap = 0.0
        mean = math.fsum(gaps) / len(gaps)
        variance = math.fsum((g - mean) ** 2 for g in gaps) / len(gaps)
        assert math.sqrt(variance) / mean == pytest.approx(split_cv(3.0, 3), rel=0.03)

    def test_overload_is_infinite(self) -> None:
        assert math.isinf(processor_sharing(1.0, 0.0))

    @given(st.floats(1.0, 1000.0), st.floats(0.0, 3.0))
    def test_lengths_keep_their_mean(self, mean: float, cv: float) -> None:
        lengths = length_quantiles(mean, cv)
        assert math.fsum(lengths) / len(lengths) == pytest.approx(mean)
        assert list(lengths) == sorted(lengths)


class TestAgainstSimulation:
    """The approximations against what they approximate: jobs that share one server equally."""

    @pytest.mark.parametrize(("load", "permanent"), [(0.3, 0), (0.6, 0), (0.3, 1), (0.6, 1)])
    def test_processor_sharing_with_a_permanent_customer(self, load: float, permanent: int) -> None:
        stretch = mean_response(load, permanent, jobs=40_000)
        assert stretch == pytest.approx(processor_sharing(load, permanent), rel=0.06)


def mean_response(load: float, permanent: int, jobs: int) -> float:
    """Mean time in the system of unit jobs that arrive at random, beside ``permanent`` endless ones."""
    draw = random.Random(7)
    now, next_arrival, total, done = 0.0, draw.expovariate(load), 0.0, 0
    running: list[tuple[float, float]] = []  # (work left, arrival), both ascending in arrival order
    while done < jobs:
        share = len(running) + permanent
        end = now + running[0][0] * share if running else math.inf
        step = min(end, next_arrival) - now
        running = [(left - step / share, arrived) for left, arrived in running]
        now += step
        if end <= next_arrival:
            total += now - running.pop(0)[1]
            done += 1
        else:
            running.append((1.0, now))
            next_arrival = now + draw.expovariate(load)
    return total / jobs


@given(load=st.floats(0.01, 0.98), cv=st.floats(0.0, 5.0))
def test_the_decay_of_a_line_solves_its_equation(load: float, cv: float) -> None:
    """Gaps of mean 1 / rate and service of 1: A(eta) exp(eta) = 1; a bursty line decays slowly."""
    eta = decay_rate(load, 1.0, cv)
    variance = max(cv, 0.05) ** 2
    assert eta > 0
    assert eta == pytest.approx(math.log1p(eta * variance / load) / variance, rel=1e-6)
    assert decay_rate(load, 1.0, cv + 0.5) < eta


def test_lines_at_their_limits() -> None:
    assert decay_rate(1.0, 1.0, 1.0) == 0.0
    assert line_within(10.0, decay_rate(0.5, math.inf, 1.0)) == 0.0
    assert line_within(0.0, 1.0) == 0.0
    assert line_within(1e6, 1.0) == 1.0


@given(st.lists(st.floats(0, 1), max_size=7), st.integers(0, 8))
def test_how_many_others_are_there_is_the_sum_over_who_they_are(chances: list[float], most: int) -> None:
    expected = [0.0] * (len(chances) + 1)
    for there in itertools.product((False, True), repeat=len(chances)):
        chance = math.prod(c if is_there else 1.0 - c for c, is_there in zip(chances, there, strict=True))
        expected[sum(there)] += chance
    assert present(chances, most) == pytest.approx(expected[: most + 1], abs=1e-9)


def test_a_crowd_is_worse_than_its_mean() -> None:
    """The same load beside a model promises the less, the more often it stands in its way all at once."""
    own = single_pass("own", (10.0, 0.5), rate=5.0, slo=35.0)
    few = [single_pass(f"few{n}", (10.0, 0.5), rate=40.0, slo=500.0) for n in range(1)]
    many = [single_pass(f"many{n}", (10.0, 0.5), rate=5.0, slo=500.0) for n in range(8)]

    def met(others: list[Demand]) -> float:
        model = ClusterModel([own, *others], cluster(1))
        point = model.point({(n, 0): 0 for n in range(len(others) + 1)}, [V100.top_clock_mhz])
        return point.attainment[0]

    assert met(many) < met(few)
    assert met([]) > met(few)

"""Placement: against the exhaustive optimum, and the laws any placement must obey."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.infeasible import infeasible
from muplan.operating import ClusterModel
from muplan.placement import EXHAUSTIVE_LIMIT, Placement, Search, place
from muplan.queueing import (
    busy_probability,
    decay_rate,
    erlang_c,
    length_quantiles,
    line_within,
    processor_sharing,
    slot_wait_ms,
    within,
)
from muplan.workload import Demand, Slot, Stage
from muserve.gpu.parts import load_part
from muserve.physics import idle_power_w
from muserve.plan import Basis, ModelKind, Phase, Sensitivity, TimeLaw

V100 = load_part("V100-16GB")
GB = 10**9


def law(phase: Phase, latency_ms: float, k: float) -> TimeLaw:
    sensitivity = Sensitivity(value=k, low=k, high=k, basis=Basis.MODELLED)
    return TimeLaw(phase=phase, latency_ms=latency_ms, sensitivity=sensitivity, basis=Basis.MODELLED)


def single_pass(name: str, *stages: tuple[float, float], rate: float, slo: float, memory: int = GB) -> Demand:
    """A model whose stages have the given (latency in ms, sensitivity)."""
    return Demand(
        name=name,
        kind=ModelKind.SINGLE_PASS,
        stages=tuple(
            Stage(
                name=f"{name}_stage{i}",
                memory_bytes=memory,
                transfer_ms=0.05,
                laws={V100.name: (law(Phase.INFERENCE, latency_ms, k),)},
            )
            for i, (latency_ms, k) in enumerate(stages)
        ),
        rate_rps=rate,
        burstiness_cv=1.0,
        slo_ms=slo,
        attainment_target=0.99,
    )


def generative(name: str, *, rate: float, slo: float = 20_000.0, decode_k: float = 0.05) -> Demand:
    laws = (law(Phase.PREFILL, 12.0, 0.7), law(Phase.DECODE, 6.5, decode_k))
    return Demand(
        name=name,
        kind=ModelKind.GENERATIVE,
        stages=(Stage(name=f"{name}_engine", memory_bytes=6 * GB, transfer_ms=0.0, laws={V100.name: laws}),),
        rate_rps=rate,
        burstiness_cv=1.0,
        slo_ms=slo,
        attainment_target=0.95,
        output_tokens=280.0,
        output_cv=0.9,
        slots=8,
        decode_growth_ms={V100.name: 0.1},
    )


def cluster(*nodes: int) -> tuple[Slot, ...]:
    """``cluster(2, 1)``: a node with two GPUs and one with one."""
    return tuple(
        Slot(name=f"node{n}/gpu{i}", node=f"node{n}", index=i, part=V100, virtual=True)
        for n, count in enumerate(nodes)
        for i in range(count)
    )


def drawn_models(draw: random.Random) -> list[Demand]:
    """Two to four models of one or two stages: light and busy, lax and tight, small and large."""
    models = []
    for number in range(draw.randint(2, 4)):
        stages = [(draw.uniform(2.0, 20.0), draw.random()) for _ in range(draw.randint(1, 2))]
        slo = draw.uniform(3.0, 25.0) * sum(latency_ms for latency_ms, _ in stages)
        memory = draw.randint(1, 6) * GB
        models.append(
            single_pass(f"m{number}", *stages, rate=draw.uniform(1.0, 15.0), slo=slo, memory=memory)
        )
    return models


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


@settings(max_examples=40, deadline=None)
@given(models)
def test_nothing_beats_exhaustive_search(demands: list[Demand]) -> None:
    search = Search(ClusterModel(demands, cluster(2)))
    assert search.assignments() <= EXHAUSTIVE_LIMIT
    best, found = search.exhaustive()[1], search.local()[1]
    # Of two mirror images on equal GPUs only one is tried, and clocks go down in the order of the GPUs.
    assert found >= best or math.isclose(found.power_w, best.power_w, rel_tol=0.01)


def test_local_search_is_close_to_the_optimum() -> None:
    """On drawn cases, not on the worst ones: a local search promises no more."""
    feasible = 0
    for seed in range(200):
        search = Search(ClusterModel(drawn_models(random.Random(seed)), cluster(2)))
        best, found = search.exhaustive()[1], search.local()[1]
        assert found.feasible == best.feasible, f"seed {seed}"
        if best.feasible:
            feasible += 1
            assert found.power_w <= 1.05 * best.power_w, f"seed {seed}"
    assert feasible >= 100


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


@settings(max_examples=25, deadline=None)
@given(models)
def test_another_gpu_costs_at_most_its_parked_power(demands: list[Demand]) -> None:
    fewer, more = place(demands, cluster(2)), place(demands, cluster(3))
    assert more.score.feasible or not fewer.score.feasible
    if fewer.score.feasible:
        assert more.point.power_w <= fewer.point.power_w + V100.idle_w + 1e-6


@settings(max_examples=25, deadline=None)
@given(models, st.permutations(range(4)))
def test_the_order_of_models_does_not_matter(demands: list[Demand], order: list[int]) -> None:
    shuffled = [demands[i] for i in order if i < len(demands)]
    assert place(shuffled, cluster(2)) == place(demands, cluster(2))


def test_larger_clusters_are_planned_by_local_search() -> None:
    demands = [single_pass(f"m{i}", (5.0, 0.1 * i), (4.0, 0.8), rate=20, slo=120) for i in range(8)]
    slots = cluster(4)
    assert Search(ClusterModel(demands, slots)).assignments() > EXHAUSTIVE_LIMIT
    placement = place(demands, slots)
    assert placement.score.feasible
    assert placement == place(demands, slots)


class TestInfeasible:
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
    def test_erlang_c_of_one_server_is_its_load(self) -> None:
        assert erlang_c(1, 0.7) == pytest.approx(0.7)
        assert busy_probability(1, 0.7) == pytest.approx(0.7)

    def test_erlang_c_table_value(self) -> None:
        """Two servers at load 0.75: P(wait) = 9/14 (Kleinrock vol. 1, eq. 3.40)."""
        assert erlang_c(2, 1.5) == pytest.approx(9 / 14)

    def test_wait_of_one_server_is_the_m_d_1_and_m_m_1_formula(self) -> None:
        assert slot_wait_ms(1, 0.8, 1.0, 1.0, 0.0) == pytest.approx(0.8 / (2 * 0.2))
        assert slot_wait_ms(1, 0.8, 1.0, 1.0, 1.0) == pytest.approx(0.8 / 0.2)

    def test_overload_is_infinite(self) -> None:
        assert math.isinf(slot_wait_ms(2, 3.0, 1.0, 1.0, 1.0))
        assert math.isinf(processor_sharing(1.0, 0.0))
        assert erlang_c(2, 2.0) == busy_probability(2, 2.0) == 1.0
        assert within(10.0, 1.0, math.inf, 1.0) == 0.0

    @given(st.floats(1.0, 1000.0), st.floats(0.0, 3.0))
    def test_lengths_keep_their_mean(self, mean: float, cv: float) -> None:
        lengths = length_quantiles(mean, cv)
        assert math.fsum(lengths) / len(lengths) == pytest.approx(mean)
        assert list(lengths) == sorted(lengths)

    @given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.floats(0.0, 50.0), st.floats(0.0, 1.0))
    def test_attainment_is_a_probability_that_falls_with_the_wait(
        self, limit: float, service: float, wait: float, busy: float
    ) -> None:
        met = within(limit, service, wait, busy)
        assert 0.0 <= met <= 1.0
        assert within(limit, service, 2 * wait + 1, busy) <= met + 1e-12


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

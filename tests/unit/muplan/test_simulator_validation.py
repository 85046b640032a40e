"""The planner's queueing formulas against the simulator, on drawn clusters and on plans for drawn specs."""

from __future__ import annotations

import statistics

import pytest

from muplan.baselines import choose
from muplan.simulator.from_placement import scenario_from_placement
from muplan.simulator.run import simulate
from muplan.simulator.validation import ClusterComparison, compare_cluster, compare_plan
from muserve.plan import ModelKind
from sample_demands import cluster, single_pass

pytest.importorskip("numba")


@pytest.fixture(scope="module", params=["V100-16GB", "A100-40GB", "L20"])
def part(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clusters(part: str) -> list[ClusterComparison]:
    return [compare_cluster(seed, part) for seed in range(24)]


@pytest.fixture(scope="module")
def plans(part: str) -> list[ClusterComparison]:
    return [plan for seed in range(12) if (plan := compare_plan(seed, part))]


@pytest.mark.parametrize("kind", list(ModelKind))
def test_formulas_are_right_on_average_and_bounded_in_the_worst_case(
    clusters: list[ClusterComparison], kind: ModelKind
) -> None:
    errors = [model.error for cluster in clusters for model in cluster.models if model.kind is kind]
    assert len(errors) > 20
    assert abs(statistics.fmean(errors)) < 0.08
    assert max(errors) < 0.1


def test_power_is_right_on_average(clusters: list[ClusterComparison]) -> None:
    errors = [cluster.power_error for cluster in clusters]
    assert abs(statistics.fmean(errors)) < 0.02
    assert max(abs(error) for error in errors) < 0.06


@pytest.mark.parametrize(
    ("kind", "worst", "mean"), [(ModelKind.SINGLE_PASS, 0.1, 0.03), (ModelKind.GENERATIVE, 0.05, 0.01)]
)
def test_formulas_promise_little_too_much_where_it_matters(
    clusters: list[ClusterComparison], kind: ModelKind, worst: float, mean: float
) -> None:
    """A plan needs attainments that are high; there the formulas are close and safe."""
    models = [m for cluster in clusters for m in cluster.models if m.kind is kind]
    high = [model.error for model in models if model.predicted > 0.85]
    assert max(high) < worst
    assert statistics.fmean(abs(error) for error in high) < mean


def test_plans_keep_every_target(plans: list[ClusterComparison]) -> None:
    """What ``SLO_GUARD`` is for: the simulation refutes none of the planner's plans."""
    assert len(plans) > 4
    assert [model for plan in plans for model in plan.models if not model.confirmed] == []
    assert max(abs(plan.power_error) for plan in plans) < 0.06


def test_many_models_on_one_gpu_keep_their_targets() -> None:
    """Who else works beside a request differs from one to the next: a mean of it would promise too much."""
    demands = [single_pass(f"model{n}", (10.0 + n, 0.5), rate=6.0, slo=5.0 * (10.0 + n)) for n in range(8)]
    chosen = choose("one model per GPU", demands, cluster(1))
    placement = chosen.placement(at_top_clocks=True)
    clocks_mhz = [chosen.slots[0].part.top_clock_mhz]
    scenario = scenario_from_placement(
        placement.demands, chosen.slots, placement.replicas, clocks_mhz, fewest_requests=20_000
    )
    for model, promised in zip(simulate(scenario).models, placement.point.attainment, strict=True):
        assert model.attainment.value > promised - 0.01

"""The planner's queueing formulas against the simulator, on drawn clusters and on plans for drawn specs."""

from __future__ import annotations

import statistics

import pytest

from muplan.simulator.validation import ClusterComparison, compare_cluster, compare_plan
from muserve.plan import ModelKind

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

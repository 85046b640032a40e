"""The exact search against itself in two forms, and the heuristic against it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from muplan.pipeline import plan_spec
from muplan.placement import exact, group_costs
from muplan.placement.costs import GroupCosts
from muplan.placement.exact import exact_search, exact_search_by_enumeration
from muplan.placement.pools import search_cluster, usual_effort
from muplan.spec import read_spec
from muplan.workload import Demand, Slot
from muserve.errors import InputError
from sample_demands import BIG, GB, V100, cluster, generative, single_pass


def drawn_case(seed: int) -> tuple[list[Demand], tuple[Slot, ...]]:
    """Three to five models on two to four GPUs: mixed parts, tight memory, bursts, replicas, both kinds."""
    draw = random.Random(seed)
    models = []
    for number in range(draw.randint(3, 5)):
        cv, replicas = draw.choice([1.0, 1.0, 4.0]), draw.choice([(1,), (1, 2)])
        if draw.random() < 0.25:
            llm = generative(
                f"m{number}",
                rate=draw.uniform(0.2, 2.0),
                slo=draw.uniform(8_000, 40_000),
                decode_k=draw.uniform(0.0, 0.3),
                memory=draw.randint(3, 10) * GB,
                cv=cv,
                replicas=replicas,
            )
            models.append(llm)
            continue
        latency_ms = draw.uniform(2.0, 40.0)
        cnn = single_pass(
            f"m{number}",
            (latency_ms, draw.random()),
            rate=draw.uniform(20.0, 350.0) / latency_ms,
            slo=draw.uniform(6.0, 30.0) * latency_ms * (1.0 if cv == 1.0 else 3.0),
            memory=draw.randint(1, 9) * GB,
            cv=cv,
            replicas=replicas,
        )
        models.append(cnn)
    shape = draw.choice([(2,), (3,), ([V100, V100, BIG],), (2, [BIG]), ([V100, BIG], [V100, BIG])])
    return models, cluster(*shape)


def power_w(costs: GroupCosts, cost: tuple[int, int, int]) -> float:
    return cost[2] * 1e-6 + sum(slot.part.idle_w for slot in costs.model.slots)


def test_the_heuristic_is_within_two_percent_of_the_least_power_on_fifty_cases() -> None:
    feasible = 0
    seed = 0
    while feasible < 50:
        costs = group_costs(*drawn_case(seed))
        least = exact_search(costs)
        found = search_cluster(costs, usual_effort(len(costs.units.models)), seed=0)
        assert (least is not None) == (found.cost[:2] == (0, 0)), f"seed {seed}"
        if least is not None:
            feasible += 1
            assert power_w(costs, least.cost) <= power_w(costs, found.cost) + 1e-5, f"seed {seed}"
            assert power_w(costs, found.cost) <= 1.02 * power_w(costs, least.cost), f"seed {seed}"
        seed += 1
    assert seed < 100, "most cases can be placed"


@pytest.mark.parametrize("seed", range(12))
def test_programme_and_enumeration_agree(seed: int) -> None:
    costs = group_costs(*drawn_case(seed))
    programme, enumeration = exact_search(costs), exact_search_by_enumeration(costs)
    assert (programme is None) == (enumeration is None)
    if programme is not None and enumeration is not None:
        assert programme.cost == enumeration.cost


@pytest.mark.parametrize("seed", range(6))
def test_models_over_several_gpus_are_close_to_the_optimum_too(seed: int) -> None:
    draw = random.Random(seed)
    models = [
        single_pass(
            f"m{i}",
            *[(draw.uniform(5.0, 20.0), draw.random()) for _ in range(2)],
            rate=draw.uniform(2.0, 12.0),
            slo=draw.uniform(100.0, 400.0),
            memory=draw.randint(1, 8) * GB,
        )
        for i in range(2)
    ]
    models.append(generative("llm", rate=draw.uniform(0.5, 3.0), memory=12 * GB, degrees=(1, 2)))
    costs = group_costs(models, cluster(3))
    least = exact_search(costs)
    found = search_cluster(costs, usual_effort(3), seed=0)
    assert least is not None
    assert power_w(costs, least.cost) <= power_w(costs, found.cost) + 1e-5
    assert power_w(costs, found.cost) <= 1.02 * power_w(costs, least.cost)


def test_generate_takes_the_exact_search() -> None:
    quickstart = read_spec(Path(__file__).parents[3] / "examples" / "quickstart.yaml")
    least, found = plan_spec(quickstart, exact=True).plan, plan_spec(quickstart).plan
    assert least.predicted_power_w <= found.predicted_power_w


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    costs = group_costs([single_pass("m", (5.0, 0.5), rate=1, slo=100)], cluster(1))
    with pytest.raises(InputError, match=r"install muserve\[plan\]"):
        exact_search(costs)


def test_a_large_case_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MOST_COLUMNS", 100)
    models = [single_pass(f"m{i}", (1.0, 0.5), rate=1, slo=500, memory=GB // 4) for i in range(40)]
    with pytest.raises(InputError, match="at most 100 ways to fill a GPU, got 40 models"):
        exact_search(group_costs(models, cluster(2)))

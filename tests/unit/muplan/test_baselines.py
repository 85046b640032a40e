"""Baselines: each does what it is known for, and all are judged alike."""

from __future__ import annotations

import pytest

from muplan.baselines import BASELINES, FILLED, OURS, REFERENCE, choose, judge
from muplan.baselines.alpaserve import alpaserve_like
from muplan.baselines.simple import one_model_per_gpu, round_robin, selective_replication
from muplan.placement import group_costs, place
from muplan.workload import Demand
from sample_demands import BIG, GB, cluster, generative, single_pass


def mixed() -> list[Demand]:
    tight = [single_pass(f"tight{i}", (10.0, 0.9), rate=10, slo=150, replicas=(1, 2)) for i in range(2)]
    loose = [single_pass(f"loose{i}", (10.0, 0.1), rate=30, slo=2_000, replicas=(1, 2)) for i in range(2)]
    return [*tight, *loose, generative("llm", rate=1.0)]


@pytest.mark.parametrize("name", BASELINES)
def test_all_are_judged_by_the_same_model_and_ours_needs_least(name: str) -> None:
    slots = cluster(3, 3)
    judged, ours = judge(name, mixed(), slots), judge(OURS, mixed(), slots)
    assert ours.feasible
    assert ours.lowest_clock_power_w == pytest.approx(place(mixed(), slots).point.power_w)
    if judged.lowest_clock_power_w is None:
        assert not judged.feasible
        return
    assert judged.lowest_clock_power_w <= judged.top_clock_power_w
    assert ours.lowest_clock_power_w is not None
    assert ours.lowest_clock_power_w <= judged.lowest_clock_power_w + 1e-6


def test_round_robin_takes_gpus_in_turn() -> None:
    costs = group_costs([single_pass(f"m{i}", (5.0, 0.5), rate=1, slo=100) for i in range(5)], cluster(3))
    assert [spot.homes for spot in round_robin(costs)] == [((gpu,),) for gpu in (0, 1, 2, 0, 1)]


def test_one_model_per_gpu_while_there_are_gpus() -> None:
    costs = group_costs([single_pass(f"m{i}", (5.0, 0.5), rate=i + 1, slo=100) for i in range(4)], cluster(4))
    homes = [spot.homes for spot in one_model_per_gpu(costs)]
    assert homes == [((3,),), ((2,),), ((1,),), ((0,),)]


@pytest.mark.parametrize("rule", [selective_replication, alpaserve_like])
def test_who_misses_the_slo_is_replicated(rule: object) -> None:
    assert callable(rule)
    busy = single_pass("busy", (10.0, 0.5), rate=150, slo=400, replicas=(1, 2, 3))
    costs = group_costs([busy, single_pass("idle", (5.0, 0.5), rate=1, slo=200)], cluster(4))
    busy_spot, idle_spot = rule(costs)
    assert len(busy_spot.homes) >= 2
    assert len(idle_spot.homes) == 1


def test_fastest_first_takes_the_fast_part_and_a_group_for_what_needs_one() -> None:
    small = single_pass("small", (10.0, 0.5), rate=5, slo=500)
    large = generative("large", rate=0.2, memory=100 * GB, degrees=(4,))
    costs = group_costs([large, small], cluster(1, [BIG, BIG, BIG, BIG]))
    large_spot, small_spot = alpaserve_like(costs)
    assert large_spot.homes == ((1, 2, 3, 4),)
    assert small_spot.homes in [((gpu,),) for gpu in range(1, 5)]


def test_memory_is_filled_while_nobody_suffers() -> None:
    models = [
        single_pass("small", (5.0, 0.5), rate=10, slo=500, replicas=(1, 2)),
        single_pass("fixed", (5.0, 0.5), rate=10, slo=500),
        single_pass("alone", (10.0, 0.9), rate=30, slo=75, replicas=(1, 2)),
    ]
    slots = cluster(4)
    chosen = choose(FILLED, models, slots)
    homes = {m.name: s.homes for m, s in zip(chosen.demands, chosen.layout.spots, strict=True) if s}
    assert len(homes["small"]) > 2, "as many replicas as there is room for, not as many as the planner tries"
    assert len(homes["fixed"]) == 1
    assert chosen.judged().feasible
    assert chosen.judged().gpus_in_use == 4
    assert judge(REFERENCE, models, slots).gpus_in_use < 4


def test_what_is_chosen_can_be_simulated() -> None:
    pytest.importorskip("numba")
    from muplan.simulator.from_placement import scenario_from_placement
    from muplan.simulator.run import simulate

    chosen = choose(OURS, mixed(), cluster(3, 3))
    placement = chosen.placement(at_top_clocks=False)
    clocks_mhz = [gpu.clock_mhz for gpu in placement.point.gpus]
    scenario = scenario_from_placement(
        placement.demands, chosen.slots, placement.replicas, clocks_mhz, fewest_requests=2_000
    )
    result = simulate(scenario)
    assert result.power_w == pytest.approx(chosen.judged().lowest_clock_power_w, rel=0.03)
    for model, demand in zip(result.models, placement.demands, strict=True):
        assert model.attainment.high >= demand.attainment_target


def test_the_reference_comes_first_and_ours_last() -> None:
    assert next(iter(BASELINES)) == REFERENCE
    assert list(BASELINES)[-1] == OURS

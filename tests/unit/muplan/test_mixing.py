"""What a plan says about its cluster once it is read back, and the price of mixing unlike partitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from muplan.initial_clocks import lowest_clocks
from muplan.mixing import MixingPrice, mixing_price, mixing_prices
from muplan.operating import ClusterModel
from muplan.pipeline import plan_spec
from muplan.plan_model import cluster_from_plan, demands_from_plan, slots_from_plan
from muplan.spec import read_spec
from muplan.workload import Demand
from muserve.plan import Plan
from sample_demands import V100, cluster, generative, single_pass

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"


@pytest.fixture(scope="module")
def quickstart() -> Plan:
    return plan_spec(read_spec(QUICKSTART)).plan


def price_together(*demands: Demand) -> tuple[MixingPrice, int]:
    """The price on one GPU that runs all of them, and its clock."""
    model = ClusterModel(demands, cluster(1))
    group = model.group({(owner, 0): 0 for owner in range(len(demands))})
    clocks = lowest_clocks(group)
    return mixing_price(group, clocks, 0), clocks[0]


def test_a_plan_read_back_predicts_what_it_promised(quickstart: Plan) -> None:
    model, assignment, clocks = cluster_from_plan(quickstart)
    point = model.point(assignment, clocks)
    assert point.power_w == pytest.approx(quickstart.predicted_power_w, abs=0.01)
    for met, planned in zip(point.attainment, quickstart.models, strict=True):
        assert met == pytest.approx(planned.predicted_attainment, abs=1e-5)
    for gpu, planned_gpu in zip(point.gpus, quickstart.gpus, strict=True):
        assert gpu.busy_share == pytest.approx(planned_gpu.predicted_utilisation, abs=1e-5)
        assert gpu.memory_used_bytes == planned_gpu.memory_used_bytes


def test_demands_and_slots_of_a_plan_are_those_of_its_spec(quickstart: Plan) -> None:
    demands, slots = demands_from_plan(quickstart), slots_from_plan(quickstart)
    assert [demand.name for demand in demands] == [model.name for model in quickstart.models]
    assert [len(demand.stages) for demand in demands] == [2, 1, 1]
    assert [slot.name for slot in slots] == [gpu.name for gpu in quickstart.gpus]


def test_a_gpu_runs_at_the_highest_of_its_residents_own_clocks() -> None:
    tight = single_pass("tight", (10.0, 0.9), rate=5, slo=28)
    price, clock = price_together(tight, single_pass("loose", (10.0, 0.1), rate=5, slo=5_000))
    assert price.binding == "tight"
    assert price.own_clocks_mhz["tight_stage0"] == clock > V100.knee_mhz
    assert price.own_clocks_mhz["loose_stage0"] == V100.knee_mhz
    assert price.price_w > 0.0


def test_partitions_that_need_the_same_clock_mix_for_nothing() -> None:
    alike = [single_pass(name, (10.0, 0.9), rate=5, slo=60) for name in ("a", "b")]
    price, clock = price_together(*alike)
    assert set(price.own_clocks_mhz.values()) == {clock}
    assert price.price_w == pytest.approx(0.0, abs=1e-6)


def test_a_resident_alone_pays_nothing() -> None:
    price, clock = price_together(generative("llm", rate=3.0, slo=6_000.0))
    assert (price.price_w, price.own_clocks_mhz) == (0.0, {"llm_engine": clock})


def test_every_gpu_with_work_has_a_price(quickstart: Plan) -> None:
    busy = {gpu.name for gpu in quickstart.gpus if quickstart.models_on(gpu.name)}
    prices = mixing_prices(quickstart)
    assert prices.keys() == busy
    for name, price in prices.items():
        assert price.price_w >= -1e-6
        assert max(price.own_clocks_mhz.values()) <= quickstart.gpu(name).initial_clock_mhz

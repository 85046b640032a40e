"""``muplan explain``: a plan's figures, predicted again from the plan alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from muplan.cli import main
from muplan.explain import explain_plan
from muplan.explanation import Explanation, select
from muplan.pipeline import plan_spec
from muplan.spec import SpecFile, parse_spec
from muserve.errors import InputError
from muserve.gpu.parts import load_part
from muserve.physics import idle_power_w
from muserve.plan import ModelKind, Phase, Plan, ReplicaPlan, plan_bytes
from sample_plans import SAMPLE_LAW, sample_gpu, sample_model, sample_partition, sample_plan

SPEC = {
    "cluster": {"nodes": [{"name": "n", "gpus": [{"part": "V100-16GB", "count": 3, "virtual": True}]}]},
    "models": [
        {
            "name": "bert",
            "source": "catalog:bert-base",
            "kind": "single-pass",
            "slo_ms": 8,
            "partitions": 2,
            "dims": {"sequence": 64},
            "load": {"rate_rps": 60},
        },
        {
            "name": "opt",
            "source": "catalog:opt-1.3b",
            "kind": "generative",
            "slo_ms": 20000,
            "attainment": 0.9,
            "load": {"rate_rps": 2},
        },
    ],
}


@pytest.fixture(scope="module")
def plan() -> Plan:
    path = Path("spec.yaml")
    return plan_spec(SpecFile(path=path, spec=parse_spec(SPEC, path), sha256="0" * 64)).plan


@pytest.fixture(scope="module")
def explanation(plan: Plan) -> Explanation:
    return explain_plan(plan)


def run(plan: Plan, directory: Path, *options: str) -> Result:
    (directory / "plan.json").write_bytes(plan_bytes(plan))
    return CliRunner().invoke(main, ["explain", str(directory), *options])


def test_power_is_what_the_plan_predicted(plan: Plan, explanation: Explanation) -> None:
    assert explanation.power_w == pytest.approx(plan.predicted_power_w, abs=0.01)
    assert explanation.default_clock_power_w == pytest.approx(plan.default_clock_power_w, abs=0.01)
    for gpu, planned in zip(explanation.gpus, plan.gpus, strict=True):
        assert gpu.power_w == pytest.approx(planned.predicted_power_w, abs=0.01)
        assert gpu.memory_used_bytes == planned.memory_used_bytes


def test_residents_add_up_to_their_gpu(explanation: Explanation) -> None:
    for gpu in explanation.gpus:
        assert sum(resident.busy_share for resident in gpu.residents) == pytest.approx(gpu.busy_share)
        idle_w = (1 - gpu.busy_share) * idle_power_w(load_part(gpu.part), gpu.clock_mhz)
        assert sum(resident.power_w for resident in gpu.residents) + idle_w == pytest.approx(gpu.power_w)


def test_the_binding_model_is_the_one_the_planner_named(explanation: Explanation) -> None:
    bound = [gpu for gpu in explanation.gpus if gpu.binding_model is not None]
    assert bound, "a tight SLO keeps some clock above the knee"
    for gpu in bound:
        assert f"keeps {gpu.binding_model}:" in gpu.clock_reason
        own = [r.own_clock_mhz for r in gpu.residents if r.model == gpu.binding_model]
        assert max(own) == gpu.clock_mhz


def test_headroom_is_where_the_attainment_falls_below_its_target(
    plan: Plan, explanation: Explanation
) -> None:
    for position, model in enumerate(explanation.models):
        assert model.needed_slo_ms is not None
        assert model.headroom == pytest.approx(1 - model.needed_slo_ms / model.slo_ms)
        for factor, kept in ((1.001, True), (0.999, False)):
            changed = list(plan.models)
            changed[position] = replace(changed[position], slo_ms=model.needed_slo_ms * factor)
            again = explain_plan(replace(plan, models=tuple(changed))).models[position]
            assert (again.attainment >= again.attainment_target) is kept
            assert again.headroom is not None
            assert (again.headroom > 0) is kept


def test_an_overloaded_model_has_no_headroom(plan: Plan) -> None:
    busy = replace(plan, models=tuple(replace(model, rate_rps=1e5) for model in plan.models))
    explained = explain_plan(busy)
    assert [model.needed_slo_ms for model in explained.models] == [None, None]
    assert [model.headroom for model in explained.models] == [None, None]


def test_a_parked_gpu_has_nothing_to_explain(explanation: Explanation) -> None:
    (parked,) = [gpu for gpu in explanation.gpus if gpu.parked]
    assert (parked.binding_model, parked.tightest_model, parked.mixing_price_w) == (None, None, 0.0)
    assert parked.power_w < parked.default_clock_power_w


def test_tables_fit_120_columns_and_name_everything(plan: Plan, tmp_path: Path) -> None:
    result = run(plan, tmp_path)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 120
    for model in plan.models:
        assert model.name in result.stdout
        for partition in model.partitions:
            assert partition.name in result.stdout
        for cut in model.cuts:
            assert cut.after_operator in result.stdout
    assert f"all GPUs {plan.predicted_power_w:.1f} W" in result.stdout
    assert "nothing was observed in service" in result.stdout


def test_a_model_is_shown_with_its_gpus_and_a_gpu_with_its_models(plan: Plan, tmp_path: Path) -> None:
    document = json.loads(run(plan, tmp_path, "--model", "opt", "--json").stdout)
    (home,) = {replica.gpu for replica in plan.models[1].partitions[0].replicas}
    assert [model["name"] for model in document["models"]] == ["opt"]
    assert [gpu["name"] for gpu in document["gpus"]] == [home]
    document = json.loads(run(plan, tmp_path, "--gpu", home, "--json").stdout)
    assert [model["name"] for model in document["models"]] == [m.name for m in plan.models_on(home)]
    for option in ("--model", "--gpu"):
        assert run(plan, tmp_path, option, {"--model": "bert", "--gpu": home}[option]).exit_code == 0


def test_replicas_and_tensor_parallel_groups_show_on_each_of_their_gpus() -> None:
    gpus = [sample_gpu(number) for number in range(4)]
    twice = sample_model("twice", partitions=(sample_partition("twice", ["node0/gpu0", "node0/gpu1"]),))
    laws = (replace(SAMPLE_LAW, phase=Phase.PREFILL), replace(SAMPLE_LAW, phase=Phase.DECODE))
    group = ReplicaPlan(gpus=("node0/gpu2", "node0/gpu3"))
    wide = sample_model(
        "wide",
        kind=ModelKind.GENERATIVE,
        slo_ms=5000.0,
        rate_rps=1.0,
        mean_output_tokens=100.0,
        slots=4,
        partitions=(replace(sample_partition("wide_engine"), laws=laws, replicas=(group,)),),
    )
    explained = explain_plan(sample_plan(gpus, [twice, wide]))
    assert [[r.partition for r in gpu.residents] for gpu in explained.gpus] == [
        ["twice"],
        ["twice"],
        ["wide_engine"],
        ["wide_engine"],
    ]
    assert [model.gpus for model in explained.models] == [("node0/gpu0", "node0/gpu1"), group.gpus]
    half = sample_model("half", rate_rps=5.0, partitions=(sample_partition("half", ["node0/gpu0"]),))
    alone = explain_plan(sample_plan(gpus[:1], [half])).gpus[0]
    assert explained.gpus[0].busy_share == explained.gpus[1].busy_share == pytest.approx(alone.busy_share)


def test_unknown_names_and_plans_without_a_placement_are_one_sentence(plan: Plan, tmp_path: Path) -> None:
    result = run(plan, tmp_path, "--gpu", "n/gpu7")
    assert result.exit_code == 2
    assert result.stderr == "Error: the plan has no GPU 'n/gpu7': expected one of n/gpu0, n/gpu1, n/gpu2\n"
    with pytest.raises(InputError, match="no model 'gpt': expected one of bert, opt"):
        select(explain_plan(plan), ["gpt"], [])


@pytest.mark.parametrize("gpus", [[], ["elsewhere/gpu0"]])
def test_a_plan_for_the_daemon_alone_may_lack_what_explaining_needs(gpus: list[str]) -> None:
    model = sample_model("hand", partitions=(sample_partition("hand", gpus),))
    with pytest.raises(InputError, match="model hand: expected as many replicas of every partition"):
        explain_plan(sample_plan([sample_gpu(0)], [model]))

"""``muplan simulate``: the scenario of a plan, the daemon's laws in it, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from muplan.cli import main
from muplan.load.arrivals import ArrivalLaw
from muplan.pipeline import plan_spec
from muplan.simulator.from_plan import scenario_from_plan
from muplan.simulator.law_control import LawControl
from muplan.simulator.run import simulate
from muplan.simulator.scenario import Discipline, Scenario
from muplan.spec import read_spec
from mupower.control import LAW_NAMES, law_named
from muserve.plan import ModelKind, Plan, plan_bytes
from simulated import engine, gpus, single_pass

pytest.importorskip("numba")

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_spec(read_spec(QUICKSTART)).plan


@pytest.fixture
def plan_file(plan: Plan, tmp_path: Path) -> Path:
    file = tmp_path / "plan.json"
    file.write_bytes(plan_bytes(plan))
    return file


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *arguments])


def test_a_scenario_has_all_that_the_plan_says(plan: Plan) -> None:
    scenario = scenario_from_plan(plan, seconds=100.0, discipline=Discipline.SJF)
    assert [(g.name, g.part.name, g.clock_mhz) for g in scenario.gpus] == [
        (g.name, g.part, g.initial_clock_mhz) for g in plan.gpus
    ]
    for model, planned in zip(scenario.models, plan.models, strict=True):
        assert (model.name, model.slo_ms, model.slots) == (planned.name, planned.slo_ms, planned.slots)
        assert model.load == ArrivalLaw(rate_rps=planned.rate_rps, cv=planned.burstiness_cv)
        assert [s.replicas for s in model.stages] == [
            tuple(r.gpus for r in p.replicas) for p in planned.partitions
        ]
        generative = planned.kind is ModelKind.GENERATIVE
        assert model.discipline is (Discipline.SJF if generative else Discipline.FCFS)
        assert model.queue_limit == (1024 if generative else None)


def test_the_plan_keeps_its_word_in_simulation(plan: Plan) -> None:
    result = simulate(scenario_from_plan(plan, seconds=4000.0))
    for model, found in zip(plan.models, result.models, strict=True):
        assert found.attainment.high >= model.attainment_target
    assert result.power_w == pytest.approx(plan.predicted_power_w, rel=0.03)


def test_table_shows_prediction_and_simulation_apart(plan: Plan, plan_file: Path) -> None:
    result = run(str(plan_file), "--seconds", "200")
    assert result.exit_code == 0, result.stderr
    assert "SIMULATED" in result.stdout
    assert "the planner's queueing formulas" in result.stdout
    for name in [*(m.name for m in plan.models), *(g.name for g in plan.gpus)]:
        assert name in result.stdout
    assert f"{plan.predicted_power_w:.1f} W predicted by the plan" in result.stdout


def test_json_is_repeatable_and_says_that_it_is_simulated(plan: Plan, plan_file: Path) -> None:
    arguments = (str(plan_file), "--seconds", "200", "--seed", "3", "--discipline", "fcfs", "--json")
    first, second = run(*arguments), run(*arguments)
    assert first.stdout == second.stdout
    document = json.loads(first.stdout)
    assert document["setup"]["simulated"] is True
    assert [m["name"] for m in document["models"]] == [m.name for m in plan.models]
    assert document["power_w"] == pytest.approx(sum(g["average_power_w"] for g in document["gpus"]))
    assert run(*arguments, "--seed", "4").stdout != first.stdout


def test_a_trace_replaces_a_models_load(plan_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,GeneratedTokens\n0,10\n1,10\n2,10\n")
    result = run(str(plan_file), "--seconds", "100", "--trace", f"opt-1.3b={trace}", "--json")
    found = {m["name"]: m for m in json.loads(result.stdout)["models"]}
    assert found["opt-1.3b"]["arrived"] == 90


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--trace", "opt-1.3b"), "--trace: expected MODEL=FILE, got 'opt-1.3b'"),
        (("--trace", "opt-1.3b=none.csv"), "none.csv: expected a readable trace"),
        (("--trace", f"other={__file__}"), "expected a column arrival_s or TIMESTAMP"),
    ],
)
def test_bad_input_is_one_line(plan_file: Path, arguments: tuple[str, ...], complaint: str) -> None:
    result = run(str(plan_file), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert complaint in line


def test_a_trace_of_an_unknown_model(plan_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s\n0\n1\n")
    result = run(str(plan_file), "--trace", f"other={trace}")
    assert result.exit_code == 2
    assert "the plan has no model other, expected one of bert-base" in result.stderr


def under_law(name: str, *, rate: float = 2.0, clock_mhz: int = 945) -> tuple[float, float, float]:
    """(mean clock of the working GPU, of the empty one, attainment) under a control law."""
    model = engine("llm", load=ArrivalLaw(rate_rps=rate), slots=8, slo_ms=1500.0)
    scenario = Scenario(gpus=gpus(2, clock_mhz), models=(model,), horizon_s=300.0, warm_up_s=50.0, seed=1)
    result = simulate(scenario, LawControl(law_named(name), scenario, {"llm": 0.9}))
    return result.gpus[0].clock_mhz, result.gpus[1].clock_mhz, result.models[0].attainment.value


@pytest.mark.parametrize("name", LAW_NAMES)
def test_every_law_of_the_daemon_runs(name: str) -> None:
    clock_mhz, empty_mhz, attainment = under_law(name)
    assert 945 <= clock_mhz <= 1380
    assert 135 <= empty_mhz <= 1380
    assert 0.5 < attainment <= 1.0


def test_laws_do_in_simulation_what_they_are_for() -> None:
    assert under_law("default")[0] == 1380
    assert under_law("static")[0] == 945
    _, parked_mhz, _ = under_law("miad")
    assert parked_mhz == 135


def test_miad_raises_the_clock_under_load_and_lowers_it_without() -> None:
    quiet_mhz, _, _ = under_law("miad", rate=0.5, clock_mhz=1380)
    busy_mhz, _, _ = under_law("miad", rate=9.0)
    assert quiet_mhz < 1100 < 1300 < busy_mhz


def test_miad_sees_the_mean_of_single_pass_models_and_what_was_refused() -> None:
    """An overloaded model with a short queue stays within its SLO: only its refusals speak."""
    model = single_pass("bert", 20.0, rate=200.0, k=0.9, queue_limit=1, slo_ms=10_000.0)
    scenario = Scenario(gpus=gpus(1, 945), models=(model,), horizon_s=60.0, warm_up_s=20.0)
    result = simulate(scenario, LawControl(law_named("miad"), scenario, {"bert": 0.99}))
    assert result.gpus[0].clock_mhz == 1380
    patient = replace(scenario, models=(replace(model, queue_limit=None, load=ArrivalLaw(rate_rps=5.0)),))
    assert simulate(patient, LawControl(law_named("miad"), patient, {"bert": 0.99})).gpus[0].clock_mhz == 945

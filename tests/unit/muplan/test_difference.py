"""``muplan diff``: every difference of two plans is found, named and counted in the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from muplan.cli import main
from muplan.difference import Change, Difference, Status, compare_plans
from muserve.plan import CutPlan, ModelPlan, Plan, ReplicaPlan, plan_bytes
from sample_plans import SAMPLE_LAW, sample_gpu, sample_model, sample_partition, sample_plan

GPUS = [sample_gpu(0), sample_gpu(1)]
CUT = CutPlan(
    after_operator="relu_7",
    transfer_bytes=1,
    transfer_ms=0.1,
    unlikeness_removed=0.1,
    imbalance_removed=0.0,
    transfer_cost=0.01,
    cut_cost=0.02,
)


def model(name: str, gpu: str = "node0/gpu0", **changes: Any) -> ModelPlan:
    return sample_model(name, partitions=(sample_partition(name, [gpu]),), **changes)


BASE = sample_plan(GPUS, [model("bert"), model("resnet")])


def run(tmp_path: Path, before: Plan, after: Plan, *options: str) -> Result:
    for name, plan in (("before", before), ("after", after)):
        (tmp_path / f"{name}.json").write_bytes(plan_bytes(plan))
    arguments = [str(tmp_path / "before.json"), str(tmp_path / "after.json"), *options]
    return CliRunner().invoke(main, ["diff", *arguments])


def test_a_plan_is_the_same_as_itself_and_as_its_twin_of_another_origin(tmp_path: Path) -> None:
    twin = replace(BASE, muserve_version="9", spec_sha256="f" * 64, seed=7)
    assert compare_plans(BASE, twin).same
    result = run(tmp_path, BASE, twin)
    assert (result.exit_code, result.stdout) == (0, "The plans are the same.\n")


@pytest.mark.parametrize(
    ("field", "value"),
    [("slo_ms", 50.0), ("rate_rps", 11.0), ("attainment_target", 0.5), ("predicted_attainment", 0.96)],
)
def test_changed_model(field: str, value: float) -> None:
    after = replace(BASE, models=(replace(BASE.models[0], **{field: value}), BASE.models[1]))
    difference = compare_plans(BASE, after)
    change = Change(field=field, before=getattr(BASE.models[0], field), after=value)
    assert difference.models == (Difference(name="bert", status=Status.CHANGED, changes=(change,)),)
    assert (difference.plan, difference.partitions, difference.gpus) == ((), (), ())


def test_moved_partition_and_what_its_gpus_do_then(tmp_path: Path) -> None:
    gpus = [replace(GPUS[0], initial_clock_mhz=945, predicted_power_w=80.0), GPUS[1]]
    after = sample_plan(gpus, [model("bert"), model("resnet", "node0/gpu1")], predicted_power_w=180.0)
    difference = compare_plans(BASE, after)
    (moved,) = difference.partitions
    assert moved.change("gpus") == Change(field="gpus", before=["node0/gpu0"], after=["node0/gpu1"])
    assert moved.name == "resnet"
    result = run(tmp_path, BASE, after)
    assert result.exit_code == 1
    assert "Predicted power 200.0 W \N{RIGHTWARDS ARROW} 180.0 W (-10.0%)" in result.stdout
    assert "1200 \N{RIGHTWARDS ARROW} 945" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_added_and_removed_models_change_places_when_the_plans_do() -> None:
    after = sample_plan(GPUS, [model("bert"), model("gpt")])
    for old, new, added, removed in ((BASE, after, "gpt", "resnet"), (after, BASE, "resnet", "gpt")):
        difference = compare_plans(old, new)
        for found in (difference.models, difference.partitions):
            assert found == (
                Difference(name=added, status=Status.ADDED),
                Difference(name=removed, status=Status.REMOVED),
            )


@pytest.mark.parametrize(
    "changes",
    [
        {"laws": (replace(SAMPLE_LAW, latency_ms=6.0),)},
        {"laws": (replace(SAMPLE_LAW, sensitivity=replace(SAMPLE_LAW.sensitivity, low=0.1)),)},
        {"memory_bytes": 2},
        {"last_operator": "other"},
        {"replicas": (ReplicaPlan(gpus=("node0/gpu0",)), ReplicaPlan(gpus=("node0/gpu1",)))},
        {"replicas": (ReplicaPlan(gpus=("node0/gpu0", "node0/gpu1")),)},
    ],
)
def test_nothing_about_a_partition_goes_unnoticed(changes: dict[str, Any]) -> None:
    partition = replace(BASE.models[0].partitions[0], **changes)
    after = replace(BASE, models=(replace(BASE.models[0], partitions=(partition,)), BASE.models[1]))
    (found,) = compare_plans(BASE, after).partitions
    assert found.name == "bert"


@pytest.mark.parametrize(
    "changes",
    [
        {"link_gbs": 24.0},
        {"target": "ngc"},
        {"predicted_power_w": 1.0},
        {"profile_fingerprints": {"bert": "x"}},
    ],
)
def test_nothing_about_the_plan_itself_goes_unnoticed(changes: dict[str, Any], tmp_path: Path) -> None:
    assert not compare_plans(BASE, replace(BASE, **changes)).same
    assert run(tmp_path, BASE, replace(BASE, **changes)).exit_code == 1


def test_other_cuts() -> None:
    after = replace(BASE, models=(replace(BASE.models[0], cuts=(CUT,)), BASE.models[1]))
    (found,) = compare_plans(BASE, after).models
    assert found.changes == (Change(field="cuts", before=[], after=["relu_7"]),)


def test_json_has_every_difference(tmp_path: Path) -> None:
    after = sample_plan([replace(GPUS[0], initial_clock_mhz=945), GPUS[1]], BASE.models)
    result = run(tmp_path, BASE, after, "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["same"]) == (1, False)
    assert document["gpus"] == [
        {
            "name": "node0/gpu0",
            "status": "changed",
            "changes": [{"field": "initial_clock_mhz", "before": 1200, "after": 945}],
        }
    ]


def test_unreadable_plan_is_trouble(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["diff", str(tmp_path), str(tmp_path)])
    assert result.exit_code == 2
    assert "expected a readable plan" in result.stderr

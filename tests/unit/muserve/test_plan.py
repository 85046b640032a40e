"""The plan file: stable bytes, a faithful round trip, and one sentence for a bad file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.errors import InputError
from muserve.plan import Basis, Plan, Sensitivity, parse_plan, plan_bytes, read_plan, vgpu_dir
from sample_plans import SAMPLE_LAW, sample_gpu, sample_model, sample_partition, sample_plan

_SHARE = st.floats(0, 1)
_POSITIVE = st.floats(1e-3, 1e6)


def _plan(latency_ms: float = 8.0, value: float = 0.6, power_w: float = 120.0) -> Plan:
    sensitivity = Sensitivity(value=value, low=0.0, high=1.0, basis=Basis.MODELLED)
    law = replace(SAMPLE_LAW, latency_ms=latency_ms, sensitivity=sensitivity)
    partition = sample_partition("resnet-50", ["node0/gpu1"], laws=(law,))
    return sample_plan(
        [sample_gpu(index, predicted_power_w=power_w) for index in (0, 1)],
        [sample_model("resnet-50", isolated_latency_ms=latency_ms, partitions=(partition,))],
        predicted_power_w=2 * power_w,
        default_clock_power_w=3 * power_w,
        profile_fingerprints={"resnet-50@V100-16GB": "abc"},
    )


@given(latency_ms=_POSITIVE, value=_SHARE, power_w=_POSITIVE)
def test_round_trip_keeps_every_value(latency_ms: float, value: float, power_w: float) -> None:
    plan = _plan(latency_ms, value, power_w)

    assert parse_plan(plan_bytes(plan), "plan.json") == plan


def test_bytes_are_stable_and_sorted() -> None:
    text = plan_bytes(_plan())

    assert text == plan_bytes(_plan())
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text.endswith(b"}\n")


def test_models_on_a_gpu() -> None:
    plan = _plan()

    assert [m.name for m in plan.models_on("node0/gpu1")] == ["resnet-50"]
    assert plan.models_on("node0/gpu0") == ()


def test_reads_from_file_and_from_its_directory(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(plan_bytes(_plan()))

    assert read_plan(tmp_path) == read_plan(tmp_path / "plan.json") == _plan()


def _changed(**changes: object) -> str:
    return json.dumps(json.loads(plan_bytes(_plan())) | changes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "plan.json: not valid JSON"),
        ("[]", "plan.json: version: expected plan version 2, got None"),
        (_changed(version=99), "plan.json: version: expected plan version 2, got 99"),
        (_changed(colour="red"), "plan.json: colour: unknown key"),
        (_changed(seed="x"), "plan.json: seed: input should be a valid integer"),
        (_changed(predicted_power_w=float("nan")), "plan.json: predicted_power_w: "),
    ],
)
def test_bad_plan_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_plan(text, "plan.json")

    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_missing_plan_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/plan\.json: expected a readable plan"):
        read_plan(tmp_path / "nowhere" / "plan.json")


def test_virtual_gpu_state_lives_beside_the_plan_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MUSERVE_VGPU_DIR", raising=False)
    assert vgpu_dir(tmp_path) == tmp_path / "vgpu"

    monkeypatch.setenv("MUSERVE_VGPU_DIR", "/elsewhere")
    assert vgpu_dir(tmp_path) == Path("/elsewhere")

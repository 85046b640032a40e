"""``serving.queue: native``: what is written for it, and what it is refused for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from muplan.pipeline import plan_spec
from muplan.repository.directory import Artefact
from muplan.repository.model_config import parse_config
from muserve.errors import InputError
from replicated import replicated_files, write_spec

LLM: dict[str, Any] = {
    "name": "llm",
    "source": "catalog:opt-1.3b",
    "kind": "generative",
    "slo_ms": 60_000,
    "load": {"rate_rps": 0.1},
    "engine": {"slots": 4, "queue_limit": 9},
}
NATIVE: dict[str, Any] = {"serving": {"queue": "native"}}
NGC: dict[str, Any] = {"virtual": False, "serving": {"queue": "native", "target": "ngc"}}
VLLM = LLM | {"engine": {"slots": 4, "model": "facebook/opt-1.3b"}}


def configs(files: Mapping[PurePosixPath, Artefact], name: str = "config.pbtxt") -> dict[str, Any]:
    return {
        path.parts[2]: parse_config(content)
        for path, content in files.items()
        if path.name == name and isinstance(content, bytes)
    }


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize(("model", "world"), [(LLM, NATIVE), (VLLM, NGC)])
def test_priority_levels_stand_on_the_slots_alone(
    tmp_path: Path, model: dict[str, Any], world: dict[str, Any]
) -> None:
    _, files = replicated_files(write_spec(tmp_path, [model], **world), {})
    for name in ("config.pbtxt", "cpu.pbtxt"):
        made = configs(files, name)
        queued = {key for key, config in made.items() if config.HasField("dynamic_batching")}
        assert queued == {"llm_slots"}
        slots = made["llm_slots"]
        assert [group.count for group in slots.instance_group] == [4]
        assert slots.max_batch_size == 0, "one request each"
        assert slots.dynamic_batching.priority_levels == 2**64 - 1
        assert 1 <= slots.dynamic_batching.default_priority_level <= 2**64 - 1
    assert set(configs(files)) == {
        "llm", "llm_front", "llm_slots", "llm_length_predictor", "llm_engine"
    }  # fmt: skip


def test_each_replica_of_the_engine_gets_its_slots(tmp_path: Path) -> None:
    file = write_spec(tmp_path, [VLLM], **NGC)
    _, files = replicated_files(file, {"llm_engine": [(0,), (1,)]})
    made = configs(files)
    assert [group.count for group in made["llm_slots"].instance_group] == [8]
    assert parameters(made["llm_front"])["slots"] == "8"


def test_the_parts_know_each_other(tmp_path: Path) -> None:
    _, files = replicated_files(write_spec(tmp_path, [LLM], **NATIVE), {})
    made = configs(files)
    front = parameters(made["llm_front"])
    assert [step.model_name for step in made["llm"].ensemble_scheduling.step] == ["llm_front"]
    assert (front["predictor_model"], front["slots_model"]) == ("llm_length_predictor", "llm_slots")
    assert front["engine_model"] == "llm_engine"
    assert front["queue_limit"] == "9"
    assert front["engine_is_ours"] == "true"
    assert parameters(made["llm_engine"])["queue_order"] == "fcfs"
    assert [tensor.name for tensor in made["llm_slots"].input] == ["ticket"]
    decoupled = {key for key, config in made.items() if config.model_transaction_policy.decoupled}
    assert decoupled == {"llm_front", "llm_engine"}


def test_the_stock_vllm_backend_gets_what_it_knows_and_no_more(tmp_path: Path) -> None:
    _, files = replicated_files(write_spec(tmp_path, [VLLM], **NGC), {})
    made = configs(files)
    assert made["llm_engine"].backend == "vllm"
    assert parameters(made["llm_front"])["engine_is_ours"] == "false"
    plain = write_spec(tmp_path, [VLLM], virtual=False, serving={"target": "ngc"})
    without = configs(replicated_files(plain, {})[1])["llm"]
    assert (list(made["llm"].input), list(made["llm"].output)) == (list(without.input), list(without.output))


@pytest.mark.parametrize(("order", "alpha"), [(None, "30"), ("fcfs", "0"), ("ssjf", "inf"), ("aging", "7")])
def test_orders_of_a_fixed_key_are_a_choice_of_alpha(tmp_path: Path, order: str | None, alpha: str) -> None:
    world: dict[str, Any] = {"serving": {"queue": "native", "order": order}}
    if order == "aging":
        world["predictor"] = {"alpha": 7}
    _, files = replicated_files(write_spec(tmp_path, [LLM], **world), {})
    made = configs(files)
    assert {parameters(made[name])["alpha"] for name in ("llm_front", "llm_length_predictor")} == {alpha}


def test_a_plan_without_it_has_no_priority_levels(tmp_path: Path) -> None:
    _, files = replicated_files(write_spec(tmp_path, [LLM]), {})
    assert not any(b"priority_levels" in c for c in files.values() if isinstance(c, bytes))
    assert "llm_slots" not in configs(files)


@pytest.mark.parametrize(
    ("models", "world", "expected"),
    [
        (
            [LLM | {"engine": {"slots": 1}}],
            NATIVE,
            "engine.slots of llm: queue native needs at least 4, as Triton's priority queue stalls half a "
            "second at a time in front of fewer, got 1",
        ),
        (
            [LLM | {"engine": {"slots": 257, "max_model_len": 16}, "tokens": {"prompt": 4, "output": 4}}],
            NATIVE,
            "llm: queue native runs a process for each of engine.slots x replicas, expected at most 256, "
            "got 257",
        ),
        (
            [LLM],
            {"serving": {"queue": "native", "order": "hrrn"}},
            "serving.order: queue native sorts by a key that is fixed on arrival, expected one of aging, "
            "ssjf, fcfs, got hrrn",
        ),
        ([LLM, LLM | {"name": "llm_slots"}], NATIVE, "distinct Triton model names, got llm_slots 2 times"),
        (
            [{"name": "b", "source": "catalog:bert-base", "kind": "single-pass", "slo_ms": 900,
              "load": {"rate_rps": 1}}],
            NATIVE,
            "serving.queue: native orders requests to generative models, expected one",
        ),
        (
            [LLM | {"engine": {"name": "vllm", "slots": 4}}],
            NATIVE,
            "engine.name: vllm of target embedded orders its requests itself, so queue native would order",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(
    tmp_path: Path, models: list[dict[str, Any]], world: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        plan_spec(write_spec(tmp_path, models, **world))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)

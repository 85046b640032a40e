from __future__ import annotations

import json
from pathlib import Path

import pytest

from mubackend.llm_engine.executors import open_executor, vllm_arguments
from mubackend.llm_engine.settings import EngineSettings, read_engine_settings
from mubackend.metrics import RecordedMetrics
from mubackend.settings import Settings
from muserve.errors import InputError


def settings(directory: Path, **changes: str) -> Settings:
    parameters = {
        "engine": "vllm", "muserve_model": "llm", "slots": "3", "queue_limit": "9", "prefill_ms": "1",
        "prefill_sensitivity": "0.5", "decode_ms": "1", "decode_sensitivity": "0.5", "slo_ms": "100",
        "engine_model": "some/model", "gpu": "n/gpu0",
    }  # fmt: skip
    return Settings(model="llm_engine", version="1", directory=directory, parameters=parameters | changes)


def read(made: Settings) -> EngineSettings:
    return read_engine_settings(made)


def test_the_plan_wins_over_the_arguments_of_the_spec(tmp_path: Path) -> None:
    asked = json.dumps({"quantization": "fp8", "max_num_seqs": 99, "enforce_eager": False})
    made = settings(tmp_path, engine_arguments=asked, max_model_len="400", gpu_memory_utilization="0.4")
    expected = {
        "model": "some/model",
        "scheduling_policy": "priority",
        "max_num_seqs": 3,
        "max_model_len": 400,
        "disable_log_stats": False,
        "quantization": "fp8",
        "enforce_eager": False,
    }
    assert vllm_arguments(made, read(made), None) == expected
    assert vllm_arguments(made, read(made), 1) == expected | {"gpu_memory_utilization": 0.4}


def test_on_a_cpu_vllm_compiles_nothing_unless_asked(tmp_path: Path) -> None:
    made = settings(tmp_path)
    assert vllm_arguments(made, read(made), None)["enforce_eager"] is True
    assert "enforce_eager" not in vllm_arguments(made, read(made), 0)


def test_arguments_that_are_no_object_are_refused(tmp_path: Path) -> None:
    made = settings(tmp_path, engine_arguments="[1]")
    with pytest.raises(InputError, match="llm_engine: engine_arguments: expected a JSON object"):
        vllm_arguments(made, read(made), None)


def test_without_vllm_the_model_does_not_load_and_says_why(tmp_path: Path) -> None:
    made = settings(tmp_path)
    with pytest.raises(InputError, match=r"engine vllm needs vLLM .* \(engine\.environment\)"):
        open_executor(made, read(made), RecordedMetrics(), None)


def test_without_a_model_the_parameter_is_named(tmp_path: Path) -> None:
    made = settings(tmp_path, engine="transformers", engine_model="")
    with pytest.raises(InputError, match="parameters: engine_model: required parameter is missing"):
        open_executor(made, read(made), RecordedMetrics(), None)

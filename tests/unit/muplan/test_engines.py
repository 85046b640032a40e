"""Engines of target embedded that load a model: what the spec says becomes what Triton is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muplan.pipeline import generate, plan_spec
from muplan.repository.model_config import parse_config
from muplan.spec import SpecFile, parse_spec
from muserve.errors import InputError


def spec_file(directory: Path, engine: dict[str, Any], **changes: Any) -> SpecFile:
    model = {
        "name": "llm", "source": "catalog:opt-1.3b", "kind": "generative", "slo_ms": 20_000,
        "attainment": 0.9, "load": {"rate_rps": 0.05}, "engine": engine,
    }  # fmt: skip
    gpus = [{"part": "V100-16GB", "count": 1, "virtual": changes.pop("virtual", True)}]
    document = {
        "cluster": {"nodes": [{"name": "n", "gpus": gpus}]},
        "models": [model | changes],
    }
    path = directory / "spec.yaml"
    return SpecFile(path=path, spec=parse_spec(document, path), sha256="0" * 64)


@pytest.fixture
def model(tmp_path: Path) -> str:
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return str(directory)


@pytest.fixture
def environment(tmp_path: Path) -> str:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "activate").touch()
    return "env"


def parameters(file: SpecFile, directory: Path) -> dict[str, str]:
    generate(file, directory / "out")
    config = parse_config((directory / "out/n/model_repository/llm_engine/config.pbtxt").read_bytes())
    return {key: value.string_value for key, value in config.parameters.items()}


def test_transformers_is_told_model_batching_and_environment(
    tmp_path: Path, model: str, environment: str
) -> None:
    engine = {
        "name": "transformers", "model": model, "environment": environment, "slots": 4, "batching": "dynamic",
        "max_queue_delay_ms": 20.0, "max_model_len": 1024,
    }  # fmt: skip
    told = parameters(spec_file(tmp_path, engine), tmp_path)
    expected = {
        "engine": "transformers",
        "engine_model": model,
        "EXECUTION_ENV_PATH": str(tmp_path / "env"),
        "batching": "dynamic",
        "max_queue_delay_ms": "20",
        "max_model_len": "1024",
        "slots": "4",
    }
    assert told | expected == told
    assert float(told["decode_ms"]) > 0.0, "the priority law still needs the plan's times"


def test_vllm_is_told_an_id_and_its_arguments(tmp_path: Path) -> None:
    engine = {"name": "vllm", "model": "facebook/opt-1.3b", "arguments": {"quantization": "fp8"}}
    told = parameters(spec_file(tmp_path, engine, virtual=False), tmp_path)
    assert told["engine"] == "vllm"
    assert told["engine_model"] == "facebook/opt-1.3b"
    assert json.loads(told["engine_arguments"]) == {"quantization": "fp8"}
    assert 0.0 < float(told["gpu_memory_utilization"]) <= 1.0
    assert "EXECUTION_ENV_PATH" not in told


def test_a_replay_engine_is_told_nothing_to_load(tmp_path: Path) -> None:
    told = parameters(spec_file(tmp_path, {"slots": 1, "batching": "none"}), tmp_path)
    assert (told["engine"], told["batching"]) == ("replay", "none")
    assert not {"engine_model", "EXECUTION_ENV_PATH", "max_queue_delay_ms"} & set(told)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            {"batching": "none", "slots": 2},
            "batching none has one request at a time, expected slots 1",
        ),
        (
            {"batching": "continuous", "max_queue_delay_ms": 5},
            "max_queue_delay_ms has a meaning for",
        ),
        ({"environment": "env"}, "engine.environment: replay loads nothing, expected no such key"),
        ({"name": "transformers"}, "engine.model: expected a Hugging Face id or the path of a directory"),
        (
            {"name": "transformers", "model": "none"},
            "engine.model: transformers loads a Hugging Face directory with a config.json, got none",
        ),
        (
            {"name": "vllm", "model": "a/b", "batching": "dynamic"},
            "batching: vllm batches continuously",
        ),
        (
            {"name": "vllm", "model": "a/b", "environment": "none"},
            "expected a directory with bin/activate",
        ),
        (
            {"name": "vllm", "model": "a/b", "answers": "spec.yaml"},
            "answers: vllm makes its own answers",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, engine: dict[str, Any], expected: str) -> None:
    (tmp_path / "spec.yaml").touch()
    with pytest.raises(InputError) as caught:
        plan_spec(spec_file(tmp_path, engine))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_are_vllms(tmp_path: Path, model: str) -> None:
    engine = {"name": "transformers", "model": model, "arguments": {"dtype": "auto"}}
    with pytest.raises(InputError, match="they are vllm's, transformers takes none"):
        plan_spec(spec_file(tmp_path, engine))

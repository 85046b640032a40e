from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mubackend.device import open_virtual_gpu
from mubackend.llm_engine.settings import QueueOrder, read_engine_settings
from mubackend.settings import Settings, read_settings
from muserve.errors import GpuNotFoundError, InputError
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import vgpu_dir

ENGINE = {
    "muserve_model": "llm",
    "gpu": "node0/gpu0",
    "gpu_uuid": "VGPU-node0-0",
    "engine": "replay",
    "slots": "8",
    "queue_limit": "512",
    "prefill_ms": "12.5",
    "prefill_sensitivity": "0.7",
    "decode_ms": "6.5",
    "decode_sensitivity": "0.02",
    "slo_ms": "20000.0",
}


def from_triton(directory: Path, **changes: str) -> Settings:
    config: dict[str, Any] = {
        "parameters": {key: {"string_value": value} for key, value in (ENGINE | changes).items()}
    }
    return read_settings(
        {
            "model_config": json.dumps(config),
            "model_name": "llm_engine",
            "model_version": "1",
            "model_repository": str(directory / "node0" / "model_repository" / "llm_engine"),
        }
    )


def test_the_plan_and_the_node_are_found_from_the_models_directory(tmp_path: Path) -> None:
    settings = from_triton(tmp_path)
    assert settings.plan_dir == tmp_path
    assert settings.node_dir == tmp_path / "node0"
    assert settings.version_dir == tmp_path / "node0" / "model_repository" / "llm_engine" / "1"


def test_the_engine_reads_its_parameters(tmp_path: Path) -> None:
    settings = read_engine_settings(from_triton(tmp_path, alpha="inf"))
    assert (settings.slots, settings.queue_order, settings.ignores_arrival) == (8, QueueOrder.SSJF, True)
    assert settings.step_ms(8) == 6.5
    settings = read_engine_settings(
        from_triton(tmp_path, queue_order="fcfs", decode_ms_per_running_request="0.5")
    )
    assert settings.queue_order is QueueOrder.FCFS
    assert settings.step_ms(3) == 7.5
    assert settings.fallback_key(17) == 17


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("slots", "0", "expected a whole number >= 1, got '0'"),
        ("slots", "two", "expected a whole number >= 1"),
        ("decode_ms", "-1", "expected a number >= 0"),
        ("decode_ms", "nan", "expected a number >= 0"),
        ("prefill_ms", "inf", "expected a number >= 0"),
        ("engine", "magic", "expected one of replay, got 'magic'"),
        ("queue_order", "lifo", "expected one of ssjf, fcfs, got 'lifo'"),
        ("slo_ms", "", "required parameter is missing"),
        ("gpu_uuid", "GPU-1", "engine replay runs on a virtual GPU"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, key: str, value: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        read_engine_settings(from_triton(tmp_path, **{key: value}))
    assert str(caught.value).startswith(f"llm_engine/config.pbtxt: parameters: {key}: {expected}")


def test_a_virtual_gpu_is_opened_never_made(tmp_path: Path) -> None:
    settings = from_triton(tmp_path)
    with pytest.raises(GpuNotFoundError, match="start Triton with `muplan serve`"):
        open_virtual_gpu(settings)
    state_file = vgpu_dir(tmp_path) / "VGPU-node0-0.vgpu"
    state_file.parent.mkdir(exist_ok=True)
    VirtualGpu.create(state_file, "V100-16GB", 0, "VGPU-node0-0")
    assert open_virtual_gpu(settings).identity.uuid == "VGPU-node0-0"

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from mubackend.device import TensorParallelGpus, open_virtual_gpus
from mubackend.llm_engine.settings import read_engine_settings
from mubackend.settings import Settings, read_settings
from muserve.errors import GpuNotFoundError, InputError
from muserve.gpu.virtual import VirtualGpu, VirtualRun
from muserve.plan import vgpu_dir
from muserve.queue_order import Order

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


def from_triton(directory: Path, instance: str = "llm_engine_0_0", **changes: str) -> Settings:
    config: dict[str, Any] = {
        "parameters": {key: {"string_value": value} for key, value in (ENGINE | changes).items()}
    }
    return read_settings(
        {
            "model_config": json.dumps(config),
            "model_name": "llm_engine",
            "model_instance_name": instance,
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
    assert (settings.slots, settings.queue_order) == (8, Order.BOUNDED)
    assert settings.fallback_priority(17) == 0
    assert settings.step_ms(8) == 6.5
    capped = read_engine_settings(from_triton(tmp_path, queue_order="relative_cap", cap_factor="7"))
    assert capped.order_parameters.cap_factor == 7
    settings = read_engine_settings(
        from_triton(tmp_path, queue_order="fcfs", decode_ms_per_running_request="0.5")
    )
    assert settings.queue_order is Order.FCFS
    assert settings.step_ms(3) == 7.5
    assert settings.fallback_priority(17) == 17


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("slots", "0", "expected a whole number >= 1, got '0'"),
        ("slots", "two", "expected a whole number >= 1"),
        ("decode_ms", "-1", "expected a number >= 0"),
        ("decode_ms", "nan", "expected a number >= 0"),
        ("prefill_ms", "inf", "expected a number >= 0"),
        ("engine", "magic", "expected one of replay, transformers, vllm, got 'magic'"),
        (
            "queue_order",
            "lifo",
            f"expected one of {', '.join(Order)}, got 'lifo'",
        ),
        ("bound_quantile", "0.2", "expected a number from 0.5 to 1, got 0.2"),
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
        open_virtual_gpus(settings)
    state_file = vgpu_dir(tmp_path) / "VGPU-node0-0.vgpu"
    state_file.parent.mkdir(exist_ok=True)
    VirtualGpu.create(state_file, "V100-16GB", 0, "VGPU-node0-0")
    run = open_virtual_gpus(settings).run(1.0, 0.5)
    assert run.gpu_s == pytest.approx(0.001)


REPLICAS = {"gpu": "n/gpu0;n/gpu1,n/gpu2", "gpu_uuid": "VGPU-n-0;VGPU-n-1,VGPU-n-2"}


@pytest.mark.parametrize(
    ("instance", "gpu", "uuids"),
    [
        ("llm_engine_0_0", "n/gpu0", ("VGPU-n-0",)),
        ("llm_engine_1_0", "n/gpu1,n/gpu2", ("VGPU-n-1", "VGPU-n-2")),
        ("llm_engine_1_3", "n/gpu1,n/gpu2", ("VGPU-n-1", "VGPU-n-2")),
        ("a name of its own_0", "n/gpu0", ("VGPU-n-0",)),
    ],
)
def test_an_instance_finds_the_gpus_of_its_replica(
    tmp_path: Path, instance: str, gpu: str, uuids: tuple[str, ...]
) -> None:
    settings = from_triton(tmp_path, instance, **REPLICAS)
    assert (settings.gpu, settings.gpu_uuids, settings.is_virtual) == (gpu, uuids, True)


def test_an_instance_group_without_a_planned_gpu_is_named(tmp_path: Path) -> None:
    settings = from_triton(tmp_path, "llm_engine_2_0", **REPLICAS)
    with pytest.raises(InputError, match="gpu: expected an entry for each of at least 3 instance groups"):
        _ = settings.gpu


def test_tensor_parallel_gpus_work_at_the_same_time_and_the_slowest_sets_the_pace() -> None:
    together = threading.Barrier(2, timeout=10)

    class Gpu:
        def __init__(self, slowdown: float) -> None:
            self.slowdown = slowdown

        def run(
            self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None
        ) -> VirtualRun:
            together.wait()
            assert (sensitivity, not_before_s) == (0.5, 7.0)
            spent_s = latency_ms / 1000 * self.slowdown
            return VirtualRun(started_s=7.0 + self.slowdown, finished_s=8.0 + spent_s, gpu_s=spent_s)

    run = TensorParallelGpus([Gpu(1.0), Gpu(3.0)]).run(5.0, 0.5, not_before_s=7.0)
    assert (run.started_s, run.finished_s, run.gpu_s) == (8.0, 8.015, 0.02)


def test_a_replica_of_two_gpus_opens_both(tmp_path: Path) -> None:
    uuids = ("VGPU-n-0", "VGPU-n-1")
    vgpu_dir(tmp_path).mkdir()
    gpus = [
        VirtualGpu.create(vgpu_dir(tmp_path) / f"{uuid}.vgpu", "V100-16GB", number, uuid)
        for number, uuid in enumerate(uuids)
    ]
    settings = from_triton(tmp_path, gpu="n/gpu0,n/gpu1", gpu_uuid=",".join(uuids))
    run = open_virtual_gpus(settings).run(5.0, 1.0)
    assert [gpu.busy_s() for gpu in gpus] == pytest.approx([0.005, 0.005], rel=0.01)
    assert run.gpu_s == pytest.approx(0.01, rel=0.01)

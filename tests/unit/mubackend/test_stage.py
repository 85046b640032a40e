from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mubackend.failure import Code, RequestError
from mubackend.metrics import RecordedMetrics
from mubackend.settings import Settings
from mubackend.stage.runner import StageRunner, VirtualCost, open_stage_session
from muserve.errors import GpuLostError, InputError
from muserve.gpu.virtual import VirtualGpu, VirtualRun
from muserve.weightless import strip_weights
from muserve.weights import fill_weights


def graph() -> onnx.ModelProto:
    """``y = table[ids] @ weight``: 64 rows of 32 numbers, then 32 x 48 weights."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["y"]),
    ]
    rng = np.random.default_rng(1)
    weights = {"table": (64, 32), "weight": (32, 48)}
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, [None])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 48])],
            [
                onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
                for name, shape in weights.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )


def stage_settings(tmp_path: Path, **parameters: str) -> Settings:
    directory = tmp_path / "plan" / "node0" / "model_repository" / "tiny"
    (directory / "1").mkdir(parents=True)
    onnx.save(strip_weights(graph(), 1024), directory / "1" / "partition.onnx")
    values = {"muserve_model": "tiny", "weights_seed": "3", "threads": "1"} | parameters
    return Settings(model="tiny", version="1", directory=directory, parameters=values)


class InstantGpu:
    """A GPU that is done at once, or gone."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        if self.fails:
            raise GpuLostError("VGPU-x-0 has gone")
        now_s = time.monotonic()
        return VirtualRun(started_s=now_s, finished_s=now_s, gpu_s=latency_ms / 1000)


IDS = {"ids": np.array([0, 5, 63])}


def test_it_computes_the_partition_with_the_weights_of_the_seed(tmp_path: Path) -> None:
    metrics = RecordedMetrics()
    runner = StageRunner(open_stage_session(stage_settings(tmp_path)), None, metrics)
    (y,) = runner.run(IDS, ["y"])
    weights = fill_weights(strip_weights(graph(), 1024), 3)
    np.testing.assert_allclose(y, weights["table"][IDS["ids"]] @ weights["weight"], rtol=1e-5)
    assert len(metrics.observations["mu_stage_latency_ms"]) == 1
    assert not metrics.totals


def test_weights_may_come_from_a_file_beside_the_repository(tmp_path: Path) -> None:
    settings = stage_settings(tmp_path, weights_file="tiny.npz")
    table = np.ones((64, 32), np.float32)
    np.savez(settings.node_dir / "tiny.npz", table=table, weight=np.eye(32, 48, dtype=np.float32))
    runner = StageRunner(open_stage_session(settings), None, RecordedMetrics())
    (y,) = runner.run(IDS, ["y"])
    np.testing.assert_array_equal(y, table[:3] @ np.eye(32, 48, dtype=np.float32))


def test_it_answers_when_the_virtual_gpu_is_done_too(tmp_path: Path) -> None:
    gpu = VirtualGpu.create(tmp_path / "a.vgpu", "V100-16GB", 0, "VGPU-a-0")
    metrics = RecordedMetrics()
    cost = VirtualCost(device=gpu, latency_ms=80.0, sensitivity=0.5)
    runner = StageRunner(open_stage_session(stage_settings(tmp_path)), cost, metrics)
    started_s = time.monotonic()
    runner.run(IDS, ["y"])
    assert time.monotonic() - started_s >= 0.08
    assert gpu.busy_s() == pytest.approx(0.08, rel=0.01)
    assert metrics.total("mu_stage_gpu_seconds_total") == pytest.approx(0.08, rel=0.01)
    assert metrics.total("mu_stage_overrun_seconds_total") == 0


def test_a_cpu_slower_than_the_gpu_shows_as_overrun(tmp_path: Path) -> None:
    metrics = RecordedMetrics()
    cost = VirtualCost(device=InstantGpu(), latency_ms=0.001, sensitivity=0.5)
    session = open_stage_session(stage_settings(tmp_path))
    runner = StageRunner(session, cost, metrics)
    runner.run({"ids": np.zeros(200_000, np.int64)}, ["y"])
    assert metrics.total("mu_stage_overrun_seconds_total") > 0


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"ids": np.array([64])}, "indices element out of data bounds"),
        ({"ids": np.zeros((2, 2), np.int64)}, "Invalid rank for input: ids"),
        ({"ids": np.zeros(2, np.float32)}, "Unexpected input data type"),
    ],
)
def test_inputs_that_onnx_runtime_refuses_are_the_clients_mistake(
    tmp_path: Path, inputs: dict[str, Any], message: str
) -> None:
    runner = StageRunner(open_stage_session(stage_settings(tmp_path)), None, RecordedMetrics())
    with pytest.raises(RequestError, match=message) as caught:
        runner.run(inputs, ["y"])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "\n" not in str(caught.value)
    runner.run(IDS, ["y"])


def test_a_failing_virtual_gpu_fails_the_request(tmp_path: Path) -> None:
    cost = VirtualCost(device=InstantGpu(fails=True), latency_ms=1.0, sensitivity=0.5)
    runner = StageRunner(open_stage_session(stage_settings(tmp_path)), cost, RecordedMetrics())
    with pytest.raises(RequestError, match="the virtual GPU failed: VGPU-x-0 has gone") as caught:
        runner.run(IDS, ["y"])
    assert caught.value.code is Code.INTERNAL


@pytest.mark.parametrize("content", [None, b"", b"not an ONNX graph"])
def test_a_missing_or_broken_graph_is_named(tmp_path: Path, content: bytes | None) -> None:
    settings = stage_settings(tmp_path)
    file = settings.version_dir / "partition.onnx"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"partition\.onnx: .*(ONNX|graph)"):
        open_stage_session(settings)


def test_a_bad_seed_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights_seed: expected a whole number, got 'x'"):
        open_stage_session(stage_settings(tmp_path, weights_seed="x"))

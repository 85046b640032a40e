"""One ONNX partition: the real computation on the CPU, and the time it would take on the planned GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mubackend.device import Device
from mubackend.failure import Code, RequestError, invalid
from mubackend.metrics import Metrics
from mubackend.settings import Settings
from muserve.errors import GpuError, InputError
from muserve.gpu.virtual import VirtualRun
from muserve.weightless import load_model, missing_weights
from muserve.weights import fill_weights, open_session, read_weights

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = np.ndarray[Any, np.dtype[Any]]

METRICS = ("mu_stage_latency_ms", "mu_stage_overrun_seconds_total", "mu_stage_gpu_seconds_total")


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCost:
    """Where and how much GPU time one run of the partition takes, at the top clock.

    ``latency_ms`` is that of the planned batch, or of one row when Triton batches; ``row_ms`` is what each
    further row adds then.
    """

    device: Device
    latency_ms: float
    sensitivity: float
    row_ms: float = 0.0

    def run(self, rows: int) -> VirtualRun:
        """Spend the GPU time of a run over ``rows`` rows; blocks meanwhile."""
        return self.device.run(self.latency_ms + self.row_ms * (rows - 1), self.sensitivity)


def open_stage_session(settings: Settings, cuda_device: int | None = None) -> onnxruntime.InferenceSession:
    """The partition of the model's version directory with its weights, ready to run.

    It runs on the CUDA device of index ``cuda_device``, or on the CPU. Raises InputError when the graph is
    missing or broken, its weights cannot be had, or there is no CUDA.
    """
    file = settings.version_dir / settings.text("graph_file", "partition.onnx")
    graph = load_model(file)
    return open_graph(file, graph, stage_weights(graph, settings), settings, cuda_device)


def open_graph(
    file: Path,
    graph: onnx.ModelProto,
    weights: Mapping[str, Array],
    settings: Settings,
    cuda_device: int | None,
) -> onnxruntime.InferenceSession:
    """A session of ``graph``, which was read from ``file``; InputError when ONNX Runtime cannot run it."""
    try:
        return open_session(graph, weights, settings.count("threads", 1), cuda_device)
    except InputError:
        raise
    except Exception as error:  # ONNX Runtime has many types for a graph that it cannot run
        raise InputError(f"{file}: expected a graph that ONNX Runtime runs: {_first_line(error)}") from error


def stage_weights(graph: onnx.ModelProto, settings: Settings) -> Mapping[str, Array]:
    """Data for the missing initialisers of ``graph``, from the file or the seed that the settings name."""
    if not missing_weights(graph):
        return {}
    weights_file = settings.text("weights_file", "")
    if weights_file:
        return read_weights(graph, settings.node_dir / weights_file)
    seed = settings.text("weights_seed")
    if not seed.isdecimal():
        raise InputError(f"{settings.model}: weights_seed: expected a whole number, got {seed!r}")
    return fill_weights(graph, int(seed))


class StageRunner:
    """Runs one request at a time; on a virtual GPU the answer comes when both, CPU and GPU, are done."""

    def __init__(
        self, session: onnxruntime.InferenceSession, virtual: VirtualCost | None, metrics: Metrics
    ) -> None:
        self._session = session
        self._virtual = virtual
        self._metrics = metrics
        self._gpu_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="virtual-gpu")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the partition's inputs."""
        return tuple(tensor.name for tensor in self._session.get_inputs())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the partition's outputs."""
        return tuple(tensor.name for tensor in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int = 1) -> list[Array]:
        """The named output tensors for the named input tensors, which are a batch of ``rows`` rows.

        Raises RequestError: INVALID_ARGUMENT when ONNX Runtime refuses the inputs, INTERNAL when it
        or the virtual GPU fails.
        """
        started_s = time.monotonic()
        virtual = self._virtual
        spending = self._gpu_thread.submit(virtual.run, rows) if virtual else None
        try:
            results = self._compute(inputs, outputs)
            cpu_finished_s = time.monotonic()
        finally:
            gpu_run = _outcome(spending.result) if spending else None
        if gpu_run:
            self._metrics.increment("mu_stage_gpu_seconds_total", gpu_run.gpu_s)
            overrun_s = max(0.0, cpu_finished_s - gpu_run.finished_s)
            self._metrics.increment("mu_stage_overrun_seconds_total", overrun_s)
        self._metrics.observe("mu_stage_latency_ms", (time.monotonic() - started_s) * 1000)
        return results

    def close(self) -> None:
        """Let go of the thread that waits for the virtual GPU."""
        self._gpu_thread.shutdown()

    def _compute(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        from onnxruntime.capi import onnxruntime_pybind11_state as failures

        try:
            results: list[Array] = self._session.run(list(outputs), dict(inputs))
        except failures.InvalidArgument as error:
            raise invalid(f"ONNX Runtime refuses the input: {_first_line(error)}") from error
        except (failures.Fail, failures.RuntimeException) as error:
            raise RequestError(Code.INTERNAL, f"ONNX Runtime failed: {_first_line(error)}") from error
        return results


def _outcome(result: Any) -> VirtualRun:
    try:
        run: VirtualRun = result()
    except GpuError as error:
        raise RequestError(Code.INTERNAL, f"the virtual GPU failed: {error}") from error
    return run


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("[ONNXRuntimeError] : ")

"""What runs a graph while it is timed: ONNX Runtime, or a virtual GPU that only takes the time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from muplan.profile.profile_file import Row, RuntimeVersion
from muplan.profile.shapes import infer_shapes
from muserve import __version__
from muserve.errors import InputError
from muserve.gpu.virtual import VirtualGpu
from muserve.weights import fill_weights, open_session

if TYPE_CHECKING:
    import onnx

_SEED = 0


class Workload(Protocol):
    """A graph, loaded, with its inputs in place."""

    def run(self, times: int) -> float:
        """Run it ``times`` times one after another; seconds from the first start to the last result."""


class Runtime(Protocol):
    """Loads graphs on one device."""

    @property
    def version(self) -> RuntimeVersion:
        """Name and version, for the profile."""

    def load(self, graph: onnx.ModelProto, sizes: Mapping[str, int], modelled: Row) -> Workload:
        """``graph`` ready to run at ``sizes``; ``modelled`` is what the roofline says of it.

        Raises InputError when the runtime cannot run the graph.
        """


class OnnxRuntime:
    """ONNX Runtime on the CUDA device of index ``cuda_device``, or on the CPU when that is None.

    Inputs and outputs are bound to the device, so no copy is timed; a run ends when its stream is
    synchronised. Weights that the graph lacks and all inputs come from a seed: times do not depend on them.
    """

    def __init__(self, cuda_device: int | None, threads: int = 1) -> None:
        self._cuda_device = cuda_device
        self._threads = threads

    @property
    def version(self) -> RuntimeVersion:
        """``onnxruntime-cuda`` or ``onnxruntime-cpu``, and the package's version."""
        import onnxruntime

        world = "cpu" if self._cuda_device is None else "cuda"
        return RuntimeVersion(name=f"onnxruntime-{world}", version=onnxruntime.__version__)

    def load(self, graph: onnx.ModelProto, sizes: Mapping[str, int], modelled: Row) -> Workload:
        """A session with bound inputs and outputs; the modelled figures play no part."""
        try:
            session = open_session(graph, fill_weights(graph, _SEED), self._threads, self._cuda_device)
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime has many types for a graph that it cannot run
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"{graph.graph.name}: expected a graph that ONNX Runtime runs: {reason}"
            ) from error
        return _BoundSession(session, _inputs(graph, sizes), self._cuda_device)


class _BoundSession:
    """A session whose tensors stay on its device."""

    def __init__(self, session: Any, inputs: Mapping[str, Any], cuda_device: int | None) -> None:
        import onnxruntime

        device, index = ("cpu", 0) if cuda_device is None else ("cuda", cuda_device)
        self._session = session
        self._binding = session.io_binding()
        for name, array in inputs.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, index)
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, device, index)
        self._binding.synchronize_inputs()

    def run(self, times: int) -> float:
        """Seconds of ``times`` runs, each synchronised with its stream as a server's are."""
        started_s = time.perf_counter()
        for _ in range(times):
            self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return time.perf_counter() - started_s


def _inputs(graph: onnx.ModelProto, sizes: Mapping[str, int]) -> dict[str, Any]:
    """A tensor for every public input: small random floats, and ones for integers and booleans.

    Ones are valid token numbers, masks and positions alike.
    """
    from onnx import helper

    shapes = infer_shapes(graph, sizes)
    constants = {tensor.name for tensor in graph.graph.initializer}
    random = np.random.default_rng(_SEED)
    inputs = {}
    for value in graph.graph.input:
        if value.name in constants:
            continue
        shape = shapes[value.name]
        dtype = helper.tensor_dtype_to_np_dtype(shape.onnx_dtype)
        drawn = random.standard_normal(shape.dims) if dtype.kind == "f" else np.ones(shape.dims)
        inputs[value.name] = np.ascontiguousarray(drawn.astype(dtype))
    return inputs


class VirtualRuntime:
    """Takes the roofline's time on a virtual GPU and computes nothing: a rehearsal, and named ``virtual``."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self._gpu = gpu

    @property
    def version(self) -> RuntimeVersion:
        """``virtual``, and muServe's version."""
        return RuntimeVersion(name="virtual", version=__version__)

    def load(self, graph: onnx.ModelProto, sizes: Mapping[str, int], modelled: Row) -> Workload:
        """Work of the modelled latency and sensitivity."""
        return _VirtualWork(self._gpu, modelled.latency_ms, modelled.k)


class _VirtualWork:
    def __init__(self, gpu: VirtualGpu, latency_ms: float, sensitivity: float) -> None:
        self._gpu = gpu
        self._latency_ms = latency_ms
        self._sensitivity = sensitivity

    def run(self, times: int) -> float:
        """Seconds of simulated GPU time, taken in real time."""
        run = self._gpu.run(times * self._latency_ms, self._sensitivity)
        elapsed_s = run.finished_s - run.started_s
        assert math.isfinite(elapsed_s)
        return elapsed_s

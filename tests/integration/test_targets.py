"""What the targets write on a real Triton: dynamic batches, turns on a GPU, and the repository for NGC.

The server of the nvidia-pytriton wheel has neither the onnxruntime nor the vLLM backend. Stand-ins of
the same names, written in Python, let it check and load every configuration of target ngc; what runs
behind ``vllm`` only says what it was told.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from muplan.deploy import running
from muplan.deploy.environment import STUB, python_stub, running_interpreter
from muplan.deploy.find import find_triton
from muplan.deploy.running import RunningTriton, running_triton
from muplan.deploy.serve import ServeOptions, serving
from muplan.deploy.stubs import living_stubs
from muplan.repository.directory import write_directory
from muplan.repository.model_config import Instance, Tensor, add_warm_up, backend_model, config_bytes
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import vgpu_dir
from replicated import replicated_files, rows_answer, write_replicated, write_rows_onnx, write_spec
from small_llm import generate, metric

pytestmark = pytest.mark.triton

ROWS: dict[str, Any] = {
    "source": "onnx:rows.onnx",
    "kind": "single-pass",
    "slo_ms": 100,
    "load": {"rate_rps": 1},
}
BATCHED = ROWS | {"dims": {"batch": 1}, "batching": {"max_batch_size": 8, "max_queue_delay_ms": 100}}

ONNXRUNTIME = """
import os
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.session = onnxruntime.InferenceSession(os.path.join(pb_utils.get_model_dir(), "model.onnx"))

    def execute(self, requests):
        names = [value.name for value in self.session.get_outputs()]
        inputs = [value.name for value in self.session.get_inputs()]
        responses = []
        for request in requests:
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in inputs]
            results = self.session.run(names, {tensor.name(): tensor.as_numpy() for tensor in tensors})
            answers = [pb_utils.Tensor(name, result) for name, result in zip(names, results)]
            responses.append(pb_utils.InferenceResponse(answers))
        return responses
"""
VLLM = """
import json, os
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        with open(os.path.join(pb_utils.get_model_dir(), "model.json")) as file:
            self.arguments = json.load(file)
        assert pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            said = {"text": text, "parameters": json.loads(request.parameters()), **self.arguments}
            answer = pb_utils.Tensor("text_output", np.array([json.dumps(said).encode()], dtype=np.object_))
            sender = request.get_response_sender()
            last = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            sender.send(pb_utils.InferenceResponse([answer]), flags=last)
"""
SLEEPER = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        began = time.monotonic()
        time.sleep(0.2)
        span = np.array([began, time.monotonic()])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("span", span)]) for _ in requests]
"""


@pytest.fixture(autouse=True)
def real_triton() -> None:
    pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")


def floats(name: str, values: np.ndarray[Any, Any]) -> Any:
    tensor = triton.InferInput(name, values.shape, "FP32" if values.dtype == np.float32 else "FP64")
    tensor.set_data_from_numpy(values)
    return tensor


@pytest.mark.parametrize("partitions", [1, 2])
def test_requests_are_batched_and_each_gets_its_own_rows(tmp_path: Path, partitions: int) -> None:
    write_rows_onnx(tmp_path / "rows.onnx")
    file = write_spec(tmp_path, [BATCHED | {"name": "rows", "partitions": partitions}])
    plan = write_replicated(file, {}, tmp_path / "plan")
    first = plan.models[0].partitions[0].name
    draw = np.random.default_rng(5)
    asked = [draw.standard_normal((1 + n % 3, 8)).astype(np.float32) for n in range(16)]
    with serving(tmp_path / "plan", ServeOptions(drain_s=2), log=tmp_path / "log") as server:
        with triton.InferenceServerClient(server.grpc_url) as client, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda x: client.infer("rows", [floats("x", x)]).as_numpy("y"), asked))
        runs, requests = (
            metric(server, f"nv_inference_{name}", first) for name in ("exec_count", "request_success")
        )
        busy_s = sum(
            VirtualGpu(vgpu_dir(tmp_path / "plan") / f"{gpu.uuid}.vgpu").busy_s() for gpu in plan.gpus
        )
    for x, answer in zip(asked, answers, strict=True):
        assert answer.shape == x.shape
        assert np.abs(answer - rows_answer(tmp_path / "rows.onnx", x)).max() < 1e-4
    assert requests == len(asked)
    assert runs <= len(asked) / 2
    alone_s = sum(partition.laws[0].latency_ms for partition in plan.models[0].partitions) / 1000
    assert runs * alone_s * 0.99 < busy_s < len(asked) * alone_s, "a batch costs less than its requests alone"


def write_sleepers(repository: Path, resource: str | None) -> None:
    for name in ("one", "two"):
        config = backend_model(
            "python",
            name,
            inputs=(Tensor(name="x", dtype="FP32", dims=(1,)),),
            outputs=(Tensor(name="span", dtype="FP64", dims=(2,)),),
            parameters={},
            instances=(Instance(resource=resource),),
            gpu_name="node0/gpu0",
        )
        add_warm_up(config, 1, {"x": (1,)})
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "config.pbtxt").write_bytes(config_bytes(config))
        (repository / name / "1" / "model.py").write_text(SLEEPER)


@pytest.mark.parametrize(("resource", "turns"), [("gpu0", True), (None, False)])
def test_models_that_hold_the_same_resource_take_turns(
    tmp_path: Path, resource: str | None, turns: bool
) -> None:
    write_sleepers(tmp_path / "repository", resource)
    with (
        running_triton(tmp_path / "repository", config_name=None, drain_s=1, log=tmp_path / "log") as server,
        triton.InferenceServerClient(server.grpc_url) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        x = [floats("x", np.zeros(1, np.float32))]
        names = ["one", "two"] * 2
        spans = sorted(s.tolist() for s in pool.map(lambda n: client.infer(n, x).as_numpy("span"), names))
    overlap = any(start < end for (_, end), (start, _) in pairwise(spans))
    assert overlap is not turns


@pytest.fixture(scope="module")
def ngc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """Every shape that target ngc writes, on a server that is laid out as in NVIDIA's container."""
    pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
    directory = tmp_path_factory.mktemp("ngc")
    repository = write_ngc(directory)
    found = find_triton()
    backends = directory / "backends"
    shutil.copytree(found.backends / "python", backends / "python", ignore=shutil.ignore_patterns(STUB))
    (backends / "python" / STUB).symlink_to(python_stub(found, running_interpreter()))
    for name, source in {"onnxruntime": ONNXRUNTIME, "vllm": VLLM}.items():
        (backends / name).mkdir()
        (backends / name / "model.py").write_text(source)
    container = replace(found, backends=backends, stubs=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "find_triton", lambda _wanted: container)
        with running_triton(repository, drain_s=1, log=directory / "log") as server:
            yield server


def write_ngc(directory: Path) -> Path:
    """Partitions that batch and take turns, one that does not batch, replicas of an engine, a wide engine."""
    write_rows_onnx(directory / "rows.onnx")
    llm = {
        "source": "catalog:opt-1.3b",
        "kind": "generative",
        "slo_ms": 60_000,
        "load": {"rate_rps": 0.1},
        "engine": {"model": "facebook/opt-1.3b", "slots": 2},
    }
    models = [
        BATCHED | {"name": "batched", "partitions": 2},
        ROWS | {"name": "plain", "dims": {"batch": 2}},
        llm | {"name": "llm"},
        llm | {"name": "wide"},
    ]
    file = write_spec(directory, models, virtual=False, serving={"target": "ngc"})
    replicas = {"batched_stage1": [(0,), (1,)], "llm_engine": [(0,), (1,)], "wide_engine": [(0, 1)]}
    plan, _ = replicated_files(file, replicas)
    tight = tuple(replace(model, slo_ms=model.isolated_latency_ms * 1.1) for model in plan.models)
    _, files = replicated_files(file, replicas, models=tight)
    write_directory(directory / "plan", files)
    repository = directory / "plan" / "node0" / "model_repository"
    assert "rate_limiter" in (repository / "batched_stage1" / "config.pbtxt").read_text()
    return repository


@pytest.mark.parametrize("name", ["batched", "plain"])
def test_triton_takes_partitions_of_target_ngc(ngc: RunningTriton, name: str, tmp_path: Path) -> None:
    write_rows_onnx(tmp_path / "rows.onnx")
    x = np.random.default_rng(6).standard_normal((2, 8)).astype(np.float32)
    with triton.InferenceServerClient(ngc.grpc_url) as client:
        answer = client.infer(name, [floats("x", x)]).as_numpy("y")
    assert np.abs(answer - rows_answer(tmp_path / "rows.onnx", x)).max() < 1e-4


@pytest.mark.parametrize(("name", "gpus"), [("llm", 1), ("wide", 2)])
def test_vllm_is_told_what_the_plan_says_and_what_the_client_asks(
    ngc: RunningTriton, name: str, gpus: int
) -> None:
    status, body = generate(ngc, name, {"text_input": "a question", "max_tokens": 3})
    said = json.loads(body["text_output"])
    assert (status, said["text"], said["parameters"]["max_tokens"]) == (200, "a question", 3)
    assert (said["model"], said["tensor_parallel_size"]) == ("facebook/opt-1.3b", gpus)


def test_a_killed_vllm_process_comes_back(ngc: RunningTriton) -> None:
    pids = [pid for pid, stub in living_stubs(ngc.pid).items() if stub.model == "wide_engine"]
    os.kill(pids[0], signal.SIGKILL)
    deadline_s = time.monotonic() + 30
    while generate(ngc, "wide", {"text_input": "x"})[0] != 200:
        assert time.monotonic() < deadline_s, "not revived"
        time.sleep(0.2)
    assert "wide_engine" in {stub.model for pid, stub in living_stubs(ngc.pid).items() if pid not in pids}

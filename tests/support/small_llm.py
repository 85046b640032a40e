"""Two small and fast generative endpoints on a real Triton, and a client of theirs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import aio
from tritonclient.utils import np_to_triton_dtype

import mubackend
from muplan.deploy.running import RunningTriton, running_triton
from muplan.repository.model_config import Instance, Step, Tensor, backend_model, config_bytes, ensemble
from muserve.gpu.virtual import VirtualGpu

GPU_UUID = "VGPU-node0-0"
QUEUE_LIMIT = 250
CONST_MS, MS_PER_TOKEN = 5.0, 5.0
ALPHAS = {"aged": 0.5, "shortest": math.inf}
ONE_TOKEN = json.dumps({"stop": " "})  # unlike max_tokens, the predictor does not heed it

_CLIENT = (
    Tensor(name="text_input", dtype="STRING", dims=(1,)),
    Tensor(name="stream", dtype="BOOL", dims=(1,), optional=True),
    Tensor(name="sampling_parameters", dtype="STRING", dims=(1,), optional=True),
    Tensor(name="exclude_input_in_output", dtype="BOOL", dims=(1,), optional=True),
)
_PREDICTED = {"predicted_tokens": "FP32", "priority": "UINT64", "arrival_ms": "UINT64"}
_ANSWER = (Tensor(name="text_output", dtype="STRING", dims=(-1,)),)


def write_model(repository: Path, config: Any, shim: str | None) -> None:
    version = repository / config.name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_bytes(config_bytes(config))
    if shim:
        shutil.copy(Path(mubackend.__file__).parent / shim / "model.py", version)


def write_llm(repository: Path, name: str, alpha: float, **changes: str) -> None:
    """An ensemble ``name`` of predictor and engine; one slot, 5 ms a token.

    ``changes`` are other parameters of the engine; an empty one is left out.
    """
    common = {
        "muserve_model": name,
        "gpu": "node0/gpu0",
        "gpu_uuid": GPU_UUID,
        "slo_ms": "60000",
        "alpha": str(alpha),
    }
    predictor = common | {"const_ms": str(CONST_MS), "ms_per_token": str(MS_PER_TOKEN)}
    engine = common | {
        "engine": "replay",
        "slots": "1",
        "queue_limit": str(QUEUE_LIMIT),
        "prefill_ms": str(CONST_MS),
        "prefill_sensitivity": "0.9",
        "decode_ms": str(MS_PER_TOKEN),
        "decode_sensitivity": "0.2",
        "predictor_model": f"{name}_length_predictor",
        "queue_order": "aging",
    }
    engine = {key: value for key, value in (engine | changes).items() if value}
    predicted = tuple(Tensor(name=key, dtype=dtype, dims=(1,)) for key, dtype in _PREDICTED.items())
    optional = tuple(Tensor(name=t.name, dtype=t.dtype, dims=(1,), optional=True) for t in predicted)
    place: dict[str, Any] = {"instances": (Instance(),), "gpu_name": "node0/gpu0"}
    asked = (_CLIENT[0], _CLIENT[2])
    write_model(
        repository,
        backend_model(
            "python",
            f"{name}_length_predictor",
            inputs=asked,
            outputs=predicted,
            parameters=predictor,
            **place,
        ),
        "length_predictor",
    )
    write_model(
        repository,
        backend_model(
            "python",
            f"{name}_engine",
            inputs=_CLIENT + optional,
            outputs=_ANSWER,
            parameters=engine,
            decoupled=True,
            **place,
        ),
        "llm_engine",
    )
    steps = (
        Step(model=f"{name}_length_predictor", inputs=same(asked), outputs=same(predicted)),
        Step(model=f"{name}_engine", inputs=same(_CLIENT + optional), outputs=same(_ANSWER)),
    )
    whole = ensemble(name, inputs=_CLIENT, outputs=_ANSWER, steps=steps, parameters={}, gpu_name="node0/gpu0")
    write_model(repository, whole, None)


def same(tensors: tuple[Tensor, ...]) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


@contextlib.contextmanager
def running_small_llms(plan_dir: Path) -> Iterator[RunningTriton]:
    """A Triton with the models of ``ALPHAS`` on one virtual GPU; its files are under ``plan_dir``."""
    repository = plan_dir / "node0" / "model_repository"
    for name, alpha in ALPHAS.items():
        write_llm(repository, name, alpha)
    state_file = plan_dir / "vgpu" / f"{GPU_UUID}.vgpu"
    state_file.parent.mkdir()
    VirtualGpu.create(state_file, "V100-16GB", 0, GPU_UUID)
    with running_triton(repository, plan_dir=plan_dir, config_name=None, log=plan_dir / "log") as running:
        yield running


def inputs(tensors: Mapping[str, Any]) -> list[Any]:
    made = []
    for name, value in tensors.items():
        dtype = {"priority": np.uint64, "arrival_ms": np.uint64, "predicted_tokens": np.float32}.get(name)
        values = np.array([value.encode() if isinstance(value, str) else value], dtype)
        values = values.astype(np.object_) if values.dtype.kind == "S" else values
        tensor = triton_grpc.InferInput(name, [1], np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        made.append(tensor)
    return made


def exactly(tokens: int) -> str:
    return json.dumps({"max_tokens": tokens, "ignore_eos": True})


def is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


class Stream:
    """One bidirectional gRPC stream; Triton writes its responses in the order it gets them."""

    def __init__(self, client: aio.InferenceServerClient) -> None:
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._responses = client.stream_infer(self._feed())

    async def _feed(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._requests.get()) is not None:
            yield request

    def ask(
        self, model: str, request_id: str, *, request_timeout_us: int | None = None, **tensors: Any
    ) -> None:
        request = {"model_name": model, "inputs": inputs(tensors), "request_id": request_id}
        if request_timeout_us is not None:
            request["timeout"] = request_timeout_us
        self._requests.put_nowait(request)

    async def ends(self, count: int) -> list[tuple[str, str]]:
        """(request id, error or text of the last response) of the next ``count`` requests that end."""
        ended: list[tuple[str, str]] = []
        while len(ended) < count:
            result, error = await asyncio.wait_for(anext(self._responses), 60)
            if error is not None:
                ended.append(("", error.message()))
                continue
            if is_final(result):
                ended.append((result.get_response().id, result.as_numpy("text_output")[0].decode()))
        return ended

    def cancel(self) -> None:
        self._responses.cancel()

    async def close(self) -> None:
        self._requests.put_nowait(None)
        with contextlib.suppress(StopAsyncIteration):
            await anext(self._responses)


@contextlib.asynccontextmanager
async def stream(server: RunningTriton) -> AsyncIterator[Stream]:
    async with aio.InferenceServerClient(server.grpc_url) as client:
        opened = Stream(client)
        yield opened
        await opened.close()


def metric(server: RunningTriton, name: str, model: str) -> float:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        text = response.read().decode()
    lines = [line for line in text.splitlines() if line.startswith(name + "{") and f'model="{model}"' in line]
    return sum(float(line.split()[-1]) for line in lines)


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.05)


def generate(
    server: RunningTriton, model: str, body: Mapping[str, Any], timeout_s: float = 30.0
) -> tuple[int, dict[str, Any]]:
    """Status and body of Triton's ``generate`` route."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def occupy(server: RunningTriton, client: Stream, name: str, tokens: int) -> None:
    """Fill the only slot of ``name`` for 5 ms a token."""
    client.ask(
        f"{name}_engine",
        "blocker",
        text_input="x",
        sampling_parameters=exactly(tokens),
        priority=0,
        predicted_tokens=float(tokens),
        arrival_ms=time.time_ns() // 1_000_000,
    )
    await until(lambda: metric(server, "mu_predicted_backlog_seconds", name) > 0)


async def queued(server: RunningTriton, name: str, count: int) -> None:
    await until(lambda: metric(server, "mu_queue_length", name) == count)

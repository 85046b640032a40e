"""Order, bounds and robustness of a generative endpoint on a real Triton, with a small and fast engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import queue
import random
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.grpc import aio, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype

import mubackend
from mubackend.length_predictor.predictor import LengthPredictor
from mubackend.priority import predicted_service_ms
from muplan.deploy.running import RunningTriton, running_triton
from muplan.deploy.stubs import living_stubs
from muplan.repository.model_config import Step, Tensor, config_bytes, ensemble, python_model
from muserve.gpu.virtual import VirtualGpu

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]

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


def write_llm(repository: Path, name: str, alpha: float) -> None:
    """An ensemble ``name`` of predictor and engine; one slot, 5 ms a token."""
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
        "queue_order": "ssjf",
    }
    predicted = tuple(Tensor(name=key, dtype=dtype, dims=(1,)) for key, dtype in _PREDICTED.items())
    optional = tuple(Tensor(name=t.name, dtype=t.dtype, dims=(1,), optional=True) for t in predicted)
    place: dict[str, Any] = {"gpu": None, "gpu_name": "node0/gpu0"}
    asked = (_CLIENT[0], _CLIENT[2])
    write_model(
        repository,
        python_model(
            f"{name}_length_predictor", inputs=asked, outputs=predicted, parameters=predictor, **place
        ),
        "length_predictor",
    )
    write_model(
        repository,
        python_model(
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    plan_dir = tmp_path_factory.mktemp("plan")
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

    def ask(self, model: str, request_id: str, **tensors: Any) -> None:
        self._requests.put_nowait({"model_name": model, "inputs": inputs(tensors), "request_id": request_id})

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


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.05)


def generate(server: RunningTriton, model: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and body of Triton's ``generate`` route."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate", json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
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


def refusal(server: RunningTriton, model: str, prompt: str) -> tuple[grpc.StatusCode, str]:
    """gRPC code and message of a request that fails. (Triton's HTTP routes say 400 to every error.)"""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(prompt.encode())
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([request]), metadata=[("triton_grpc_error", "true")], timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize(("prompt", "problem"), [("", "got an empty text"), ("x" * 2**20, "got 1048576")])
@pytest.mark.parametrize("entrance", ["aged", "aged_engine"])
def test_a_bad_prompt_is_an_invalid_argument(
    server: RunningTriton, entrance: str, prompt: str, problem: str
) -> None:
    code, message = refusal(server, entrance, prompt)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.endswith(problem)
    assert "\n" not in message


def test_200_queued_requests_leave_in_exact_priority_order(server: RunningTriton) -> None:
    order = list(range(200))
    random.Random(7).shuffle(order)
    top = 2**64 - 1

    async def run() -> list[str]:
        async with stream(server) as client:
            await occupy(server, client, "aged", 300)
            for number in order:
                client.ask("aged_engine", str(number), text_input="x", sampling_parameters=exactly(1),
                           priority=top - 200 + number, predicted_tokens=1.0, arrival_ms=1)  # fmt: skip
            await queued(server, "aged", 200)
            return [request_id for request_id, _ in await client.ends(201)]

    assert asyncio.run(run()) == ["blocker", *(str(number) for number in range(200))]


def some_prompts() -> dict[str, int]:
    """Prompts and their predicted service in whole milliseconds."""
    predictor = LengthPredictor.load()
    prompts = [
        f"{verb} {amount} {what}"
        for verb in ("Write", "List", "Translate", "Is it true that")
        for amount in ("one", "5", "200")
        for what in ("words", "poems about power", "lines of SQL")
    ]
    return {
        p: math.floor(predicted_service_ms(CONST_MS, MS_PER_TOKEN, predictor.predict(p))) for p in prompts
    }


@pytest.mark.parametrize("entrance", ["shortest", "shortest_engine"])
def test_the_shortest_predicted_request_is_served_first(server: RunningTriton, entrance: str) -> None:
    """Through the ensemble, and on the engine, which then asks the predictor itself."""
    service = some_prompts()
    assert len(set(service.values())) > 10

    async def run() -> list[str]:
        async with stream(server) as client:
            await occupy(server, client, "shortest", 300)
            for prompt in service:
                client.ask(entrance, prompt, text_input=prompt, sampling_parameters=ONE_TOKEN)
            await queued(server, "shortest", len(service))
            return [request_id for request_id, _ in await client.ends(1 + len(service))]

    prompts = list(service)
    expected = sorted(prompts, key=lambda prompt: (service[prompt], prompts.index(prompt)))
    assert asyncio.run(run()) == ["blocker", *expected]


def test_the_aging_bound_holds(server: RunningTriton) -> None:
    """A request yields to a later one only if that arrives within alpha x (difference of service)."""
    service = some_prompts()
    prompts = sorted(service, key=lambda prompt: -service[prompt])
    sent_ms: dict[str, float] = {}

    async def run() -> list[str]:
        async with stream(server) as client:
            await occupy(server, client, "aged", 600)
            for prompt in prompts:
                sent_ms[prompt] = time.time() * 1000
                client.ask("aged", prompt, text_input=prompt, sampling_parameters=ONE_TOKEN)
                await asyncio.sleep(0.04)
            await queued(server, "aged", len(prompts))
            return [request_id for request_id, _ in await client.ends(1 + len(prompts))]

    place = {prompt: at for at, prompt in enumerate(asyncio.run(run()))}
    pairs = [(a, b) for at, a in enumerate(prompts) for b in prompts[at + 1 :]]
    # How much later than the bound b came; what a loaded machine delays on its way is not the engine's.
    excess_ms = {
        (a, b): sent_ms[b] - sent_ms[a] - ALPHAS["aged"] * (service[a] - service[b]) for a, b in pairs
    }
    overtaken = {pair for pair in pairs if place[pair[1]] < place[pair[0]]}
    assert overtaken
    assert all(excess_ms[pair] < 150 for pair in overtaken)
    waited_for = [pair for pair in pairs if excess_ms[pair] > 150 and service[pair[1]] < service[pair[0]]]
    assert waited_for
    assert not overtaken.intersection(waited_for)


def test_a_full_queue_answers_unavailable_at_once(server: RunningTriton) -> None:
    async def run() -> None:
        async with stream(server) as client:
            await occupy(server, client, "aged", 600)
            for number in range(QUEUE_LIMIT):
                client.ask("aged_engine", str(number), text_input="x", sampling_parameters=exactly(1),
                           priority=1, predicted_tokens=1.0, arrival_ms=1)  # fmt: skip
            await queued(server, "aged", QUEUE_LIMIT)
            for entrance in ("aged", "aged_engine"):
                started_s = time.monotonic()
                code, message = await asyncio.to_thread(refusal, server, entrance, "x")
                assert time.monotonic() - started_s < 1.0
                assert code is grpc.StatusCode.UNAVAILABLE
                assert message.endswith("the queue of aged is full: 250 requests are waiting")
            client.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())
    assert metric(server, "mu_rejected_total", "aged") == 2
    asyncio.run(queued(server, "aged", 0))


def test_a_cancelled_stream_frees_its_slot_and_its_place_in_the_queue(server: RunningTriton) -> None:
    before = metric(server, "mu_cancelled_total", "shortest")

    async def cancelled() -> None:
        async with stream(server) as client:
            await occupy(server, client, "shortest", 20_000)
            client.ask("shortest_engine", "waiting", text_input="x")
            await queued(server, "shortest", 1)
            client.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(cancelled())
    asyncio.run(queued(server, "shortest", 0))
    started_s = time.monotonic()
    assert generate(server, "shortest", {"text_input": "x", "max_tokens": 1})[0] == 200
    assert time.monotonic() - started_s < 5.0
    assert metric(server, "mu_cancelled_total", "shortest") == before + 2


def engine_stub(server: RunningTriton, model: str) -> psutil.Process:
    (pid,) = [pid for pid, stub in living_stubs(server.pid).items() if stub.model == model]
    return psutil.Process(pid)


def answers_again(server: RunningTriton, model: str) -> bool:
    status, body = generate(server, model, {"text_input": "x", "max_tokens": 1})
    assert status == 200 or "is not healthy" in body["error"] or "not ready" in body["error"], body
    return status == 200


@pytest.mark.parametrize("model", ["shortest_engine", "shortest_length_predictor"])
def test_a_killed_process_fails_requests_until_it_is_back(server: RunningTriton, model: str) -> None:
    engine_stub(server, model).send_signal(signal.SIGKILL)
    asyncio.run(until(lambda: answers_again(server, "shortest"), timeout_s=60.0))


def test_a_stream_whose_engine_is_killed_ends_by_the_clients_deadline_and_only_once(
    server: RunningTriton,
) -> None:
    """Triton 2.51 never tells a decoupled request that its process died, so clients need a deadline."""
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=8.0)
        tensors = inputs({"text_input": "x", "stream": True, "sampling_parameters": exactly(1000)})
        client.async_stream_infer("shortest_engine", tensors, request_id="cut")
        for _ in range(3):
            assert answers.get(timeout=5.0)[1] is None
        engine_stub(server, "shortest_engine").send_signal(signal.SIGKILL)
        asyncio.run(until(lambda: answers_again(server, "shortest_engine"), timeout_s=60.0))
        tokens = 3
        while True:
            result, error = answers.get(timeout=20.0)
            if error is not None:
                break
            assert not is_final(result)
            tokens += 1
        assert tokens < 1000
        assert "Deadline Exceeded" in str(error)


def test_without_a_predictor_the_engine_serves_first_come_first_served(server: RunningTriton) -> None:
    before = metric(server, "mu_fallback_total", "shortest")

    async def run() -> list[str]:
        async with stream(server) as client:
            await occupy(server, client, "shortest", 800)
            engine_stub(server, "shortest_length_predictor").send_signal(signal.SIGKILL)
            for number in range(3):
                client.ask("shortest_engine", str(number), text_input="x", sampling_parameters=ONE_TOKEN)
            return [request_id for request_id, _ in await client.ends(4)]

    assert asyncio.run(run()) == ["blocker", "0", "1", "2"]
    assert metric(server, "mu_fallback_total", "shortest") > before
    asyncio.run(until(lambda: answers_again(server, "shortest"), timeout_s=60.0))


def test_a_reload_lets_what_runs_and_waits_finish(server: RunningTriton) -> None:
    async def run() -> list[tuple[str, str]]:
        async with stream(server) as client:
            await occupy(server, client, "shortest", 200)
            for number in range(5):
                client.ask("shortest_engine", str(number), text_input="x", sampling_parameters=exactly(20),
                           priority=number, predicted_tokens=1.0, arrival_ms=1)  # fmt: skip
            await queued(server, "shortest", 5)
            await asyncio.to_thread(reload, server, "shortest_engine")
            return await client.ends(6)

    ended = asyncio.run(run())
    assert [request_id for request_id, _ in ended] == ["blocker", *"01234"]
    assert answers_again(server, "shortest")


def reload(server: RunningTriton, model: str) -> None:
    """As after a change of a file: Triton starts the new process beside the old one."""
    for file in repository_of(server).glob(f"{model}/1/model.py"):
        file.touch()
    request = urllib.request.Request(f"{server.http_url}/v2/repository/models/{model}/load", b"{}")
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.status == 200


def repository_of(server: RunningTriton) -> Path:
    arguments = psutil.Process(server.pid).cmdline()
    (option,) = [argument for argument in arguments if argument.startswith("--model-repository=")]
    return Path(option.split("=", 1)[1])

"""Order and bounds of a generative endpoint on a real Triton, with a small and fast engine."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mubackend.length_predictor.predictor import LengthPredictor
from mubackend.priority import predicted_service_ms
from muplan.deploy.running import RunningTriton
from small_llm import (
    ALPHAS,
    CONST_MS,
    MS_PER_TOKEN,
    ONE_TOKEN,
    QUEUE_LIMIT,
    exactly,
    generate,
    metric,
    occupy,
    queued,
    stream,
)

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]


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
    llm_server: RunningTriton, entrance: str, prompt: str, problem: str
) -> None:
    code, message = refusal(llm_server, entrance, prompt)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.endswith(problem)
    assert "\n" not in message


def test_200_queued_requests_leave_in_exact_priority_order(llm_server: RunningTriton) -> None:
    order = list(range(200))
    random.Random(7).shuffle(order)
    top = 2**64 - 1

    async def run() -> list[str]:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "aged", 300)
            for number in order:
                client.ask("aged_engine", str(number), text_input="x", sampling_parameters=exactly(1),
                           priority=top - 200 + number, predicted_tokens=1.0, arrival_ms=1)  # fmt: skip
            await queued(llm_server, "aged", 200)
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
def test_the_shortest_predicted_request_is_served_first(llm_server: RunningTriton, entrance: str) -> None:
    """Through the ensemble, and on the engine, which then asks the predictor itself."""
    service = some_prompts()
    assert len(set(service.values())) > 10

    async def run() -> list[str]:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "shortest", 300)
            for prompt in service:
                client.ask(entrance, prompt, text_input=prompt, sampling_parameters=ONE_TOKEN)
            await queued(llm_server, "shortest", len(service))
            return [request_id for request_id, _ in await client.ends(1 + len(service))]

    prompts = list(service)
    expected = sorted(prompts, key=lambda prompt: (service[prompt], prompts.index(prompt)))
    assert asyncio.run(run()) == ["blocker", *expected]


def test_the_aging_bound_holds(llm_server: RunningTriton) -> None:
    """A request yields to a later one only if that arrives within alpha x (difference of service)."""
    service = some_prompts()
    prompts = sorted(service, key=lambda prompt: -service[prompt])
    sent_ms: dict[str, float] = {}

    async def run() -> list[str]:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "aged", 600)
            for prompt in prompts:
                sent_ms[prompt] = time.time() * 1000
                client.ask("aged", prompt, text_input=prompt, sampling_parameters=ONE_TOKEN)
                await asyncio.sleep(0.04)
            await queued(llm_server, "aged", len(prompts))
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


def test_a_full_queue_answers_unavailable_at_once(llm_server: RunningTriton) -> None:
    async def run() -> None:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "aged", 600)
            for number in range(QUEUE_LIMIT):
                client.ask("aged_engine", str(number), text_input="x", sampling_parameters=exactly(1),
                           priority=1, predicted_tokens=1.0, arrival_ms=1)  # fmt: skip
            await queued(llm_server, "aged", QUEUE_LIMIT)
            for entrance in ("aged", "aged_engine"):
                started_s = time.monotonic()
                code, message = await asyncio.to_thread(refusal, llm_server, entrance, "x")
                assert time.monotonic() - started_s < 1.0
                assert code is grpc.StatusCode.UNAVAILABLE
                assert "the queue of aged is full: 250 requests are waiting, expected wait " in message
            client.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())
    assert metric(llm_server, "mu_rejected_total", "aged") == 2
    asyncio.run(queued(llm_server, "aged", 0))


def test_a_cancelled_stream_frees_its_slot_and_its_place_in_the_queue(llm_server: RunningTriton) -> None:
    before = metric(llm_server, "mu_cancelled_total", "shortest")

    async def cancelled() -> None:
        async with stream(llm_server) as client:
            await occupy(llm_server, client, "shortest", 20_000)
            client.ask("shortest_engine", "waiting", text_input="x")
            await queued(llm_server, "shortest", 1)
            client.cancel()

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(cancelled())
    asyncio.run(queued(llm_server, "shortest", 0))
    started_s = time.monotonic()
    assert generate(llm_server, "shortest", {"text_input": "x", "max_tokens": 1})[0] == 200
    assert time.monotonic() - started_s < 5.0
    assert metric(llm_server, "mu_cancelled_total", "shortest") == before + 2

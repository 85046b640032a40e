from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from muplan.load.conversations import Conversation, held_out_conversations, write_answers
from muplan.load.outcome import Outcome
from muplan.load.replay import LoadProgress, replay, warm_up
from muplan.load.schedule import PlannedRequest, plan_requests
from muplan.load.shapes import input_shapes
from muserve.errors import InputError, ServingError
from muserve.plan import ModelKind
from sample_plans import sample_model

CONVERSATIONS = tuple(Conversation(prompt=f"question {i}", answer=f"answer {i}") for i in range(40))


LLM = sample_model("llm", kind=ModelKind.GENERATIVE, rate_rps=4.0, burstiness_cv=3.0)
CNN = sample_model("cnn", rate_rps=4.0, burstiness_cv=3.0)


def _request(model: str, planned_s: float, prompt: str | None = None) -> PlannedRequest:
    return PlannedRequest(model=model, planned_s=planned_s, prompt=prompt, tensor_seed=3)


def test_the_load_depends_on_the_seed_only() -> None:
    first = plan_requests([LLM, CNN], CONVERSATIONS, 60, seed=1)
    assert first == plan_requests([LLM, CNN], CONVERSATIONS, 60, seed=1)
    assert first != plan_requests([LLM, CNN], CONVERSATIONS, 60, seed=2)


def test_a_further_model_leaves_the_other_requests_as_they_were() -> None:
    alone = plan_requests([LLM], CONVERSATIONS, 60, seed=1)
    both = plan_requests([CNN, LLM], CONVERSATIONS, 60, seed=1)
    assert tuple(r for r in both if r.model == "llm") == alone
    assert [r.planned_s for r in both] == sorted(r.planned_s for r in both)


def test_prompts_repeat_only_after_all_were_used() -> None:
    requests = plan_requests([LLM], CONVERSATIONS, 60, seed=1)
    uses = Counter(r.prompt for r in requests)
    assert len(requests) > len(CONVERSATIONS)
    assert max(uses.values()) - min(uses.values()) <= 1
    assert set(uses) == {c.prompt for c in CONVERSATIONS}


def test_a_generative_model_without_conversations_is_an_input_error() -> None:
    with pytest.raises(InputError, match="llm: expected conversations"):
        plan_requests([LLM], (), 10, seed=0)


@given(planned=st.floats(0, 100), late=st.floats(0, 5), served=st.floats(0.001, 50), slo=st.floats(1, 60_000))
def test_jct_counts_from_the_planned_arrival(planned: float, late: float, served: float, slo: float) -> None:
    outcome = Outcome(
        request=_request("llm", planned, "q"),
        sent_s=planned + late,
        first_response_s=planned + late,
        completed_s=planned + late + served,
        responses=1,
        error="",
    )
    assert outcome.jct_s == pytest.approx(late + served)
    assert outcome.lateness_s == pytest.approx(late, abs=1e-9)
    assert outcome.jct_s is not None
    assert outcome.met(slo) == (outcome.jct_s * 1000 <= slo)


def test_a_failed_request_never_met_its_slo() -> None:
    failed = Outcome(
        request=_request("llm", 1, "q"),
        sent_s=1,
        first_response_s=1.1,
        completed_s=None,
        responses=4,
        error="UNAVAILABLE",
    )
    assert failed.jct_s is None
    assert not failed.met(1e9)


def test_held_out_conversations_come_from_the_test_side_once_each(tmp_path: Path) -> None:
    data = tmp_path / "chats.json"
    chats = [
        {
            "id": f"chat{i}_0",
            "conversations": [
                {"from": "human", "value": f"what is {i % 300}?"},
                {"from": "gpt", "value": f"it is the number {i}"},
                {"from": "human", "value": "and then?"},
                {"from": "gpt", "value": "nothing more"},
            ],
        }
        for i in range(400)
    ]
    data.write_text(json.dumps(chats))
    held_out = held_out_conversations(data)
    prompts = [c.prompt for c in held_out]
    assert 30 < len(prompts) < 90
    assert len(set(prompts)) == len(prompts)
    assert "and then?" not in prompts
    for conversation in held_out:
        number = conversation.prompt.removeprefix("what is ").removesuffix("?")
        assert conversation.answer == f"it is the number {number}"


def test_answers_are_found_by_the_hash_of_their_prompt(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    write_answers(file, (Conversation(prompt="Grüße \u2028?", answer="two\nlines"),))
    (line,) = file.read_text().splitlines()
    digest = hashlib.sha256("Grüße \u2028?".encode()).hexdigest()
    assert json.loads(line) == {"prompt_sha256": digest, "answer": "two\nlines"}


def test_free_dimensions_get_the_typical_size(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["ids"], ["y"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", "sequence"])],
    )
    file = tmp_path / "cnn/1/partition.onnx"
    file.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph), file)
    assert input_shapes(tmp_path, CNN, {"sequence": 128}) == {"ids": (1, 128)}


class Kserve(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A small server of Triton's protocol: a prompt asks for what should happen to it."""

    def __init__(self) -> None:
        self.inferred: list[tuple[str, list[int]]] = []

    async def ServerMetadata(self, request: object, context: object) -> object:
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    async def ModelMetadata(self, request: object, context: object) -> object:
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        return service_pb2.ModelMetadataResponse(
            inputs=[
                tensor(name="ids", datatype="INT64", shape=[-1, -1]),
                tensor(name="image", datatype="FP32", shape=[-1, 3]),
            ]
        )

    async def ModelInfer(self, request: service_pb2.ModelInferRequest, context: object) -> object:
        self.inferred += [(tensor.name, list(tensor.shape)) for tensor in request.inputs]
        return service_pb2.ModelInferResponse(model_name=request.model_name)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[service_pb2.ModelInferRequest], context: object
    ) -> AsyncIterator[object]:
        async for request in requests:
            text = request.raw_input_contents[0][4:].decode()
            if text == "refuse":
                yield service_pb2.ModelStreamInferResponse(error_message="the queue is full")
            elif text == "hang":
                await asyncio.sleep(60)
            elif text != "nothing":
                for piece in text.split():
                    await asyncio.sleep(0.02)
                    yield _text_response(piece)


def _text_response(piece: str) -> object:
    data = piece.encode()
    response = service_pb2.ModelInferResponse(raw_output_contents=[len(data).to_bytes(4, "little") + data])
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    return service_pb2.ModelStreamInferResponse(infer_response=response)


@pytest.fixture
def kserve() -> Iterator[tuple[str, Kserve]]:
    """A server in a thread with an event loop of its own; (host:port, what it saw)."""
    servicer = Kserve()
    ready: threading.Event = threading.Event()
    loop = asyncio.new_event_loop()
    address = ""

    async def start() -> grpc.aio.Server:
        nonlocal address
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        return server

    def serve() -> None:
        server = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(server.stop(0))

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    yield address, servicer
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def test_replay_records_what_clients_saw(kserve: tuple[str, Kserve]) -> None:
    url, servicer = kserve
    requests = (
        _request("llm", 0.1, "three words long"),
        _request("cnn", 0.15),
        _request("llm", 0.2, "refuse"),
        _request("llm", 0.25, "nothing"),
        _request("llm", 0.3, "hang"),
    )
    samples: list[LoadProgress] = []
    started = time.monotonic()
    outcomes = replay(
        url, requests, {"cnn": {"ids": (1, 7)}}, window_s=1.0, give_up_s=1.5, on_sample=samples.append
    )
    assert time.monotonic() - started >= 1.5
    assert [o.request for o in outcomes] == list(requests)
    answered, inferred, refused, silent, hung = outcomes
    assert answered.responses == 3
    assert answered.first_response_s is not None
    assert answered.completed_s is not None
    assert answered.completed_s - answered.first_response_s >= 0.03
    assert inferred.error == ""
    assert ("ids", [1, 7]) in servicer.inferred
    assert ("image", [1, 3]) in servicer.inferred
    assert "queue is full" in refused.error
    assert "without a response" in silent.error
    assert "no complete answer" in hung.error
    assert all(o.lateness_s >= 0 for o in outcomes)
    assert samples[0].time_s < 0.2
    assert samples[-1].time_s >= 1.5
    assert (samples[-1].sent, samples[-1].completed, samples[-1].failed) == (5, 2, 3)


def test_the_load_is_open_loop(kserve: tuple[str, Kserve]) -> None:
    url, _ = kserve
    requests = tuple(_request("llm", 0.01 * i, "hang" if i < 20 else "word") for i in range(40))
    outcomes = replay(url, requests, {}, window_s=0.5, give_up_s=1.0, on_sample=lambda _: None)
    assert [o.error == "" for o in outcomes] == [False] * 20 + [True] * 20
    assert np.median([o.lateness_s for o in outcomes]) < 0.1


def test_an_error_of_the_observer_ends_the_replay(kserve: tuple[str, Kserve]) -> None:
    def fail(_: LoadProgress) -> None:
        raise ServingError("the daemon died")

    url, _ = kserve
    started = time.monotonic()
    with pytest.raises(ServingError, match="the daemon died"):
        replay(url, (_request("llm", 30, "a"),), {}, window_s=40, give_up_s=50, on_sample=fail)
    assert time.monotonic() - started < 10


def test_warm_up_names_the_model_that_fails(kserve: tuple[str, Kserve]) -> None:
    url, _ = kserve
    assert warm_up(url, (_request("llm", 0, "one"), _request("llm", 0, "refuse")), {}) == "2.51.0"
    with pytest.raises(ServingError, match=r"llm: the warm-up request failed.*queue is full"):
        warm_up(url, (_request("llm", 0, "refuse"),), {})


def test_a_server_that_is_gone_fails_the_requests_not_the_client() -> None:
    requests = (_request("llm", 0.0, "a"),)
    (outcome,) = replay("127.0.0.1:9", requests, {}, window_s=0.1, give_up_s=5, on_sample=lambda _: None)
    assert outcome.completed_s is None
    assert outcome.error

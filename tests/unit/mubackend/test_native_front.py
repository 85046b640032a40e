"""The front and the slots of a native queue, with a gRPC server of the test's own for Triton."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from fake_triton import FakeTriton, fake_triton, tensor
from mubackend.failure import Code, RequestError
from mubackend.front.account import Account
from mubackend.front.forward import answer_texts, infer_request, native_priority
from mubackend.front.relay import Front, FrontSettings
from mubackend.front.settings import read_front_settings
from mubackend.length_predictor.service import Prediction
from mubackend.metrics import RecordedMetrics
from mubackend.settings import Settings
from mubackend.slots.holding import Ticket, hold, parse_ticket

KEYS = st.integers(min_value=0, max_value=2**64 - 1)


@given(a=KEYS, b=KEYS)
def test_native_priorities_are_valid_and_keep_the_order(a: int, b: int) -> None:
    assert 1 <= native_priority(a) <= 2**64 - 1
    if a < b < 2**64 - 1:
        assert native_priority(a) < native_priority(b)


@given(st.lists(st.text()))
def test_texts_survive_tritons_wire_format(texts: list[str]) -> None:
    encoded = np.array([text.encode() for text in texts], np.object_)
    raw = serialize_byte_tensor(encoded).item() if texts else b""
    response = service_pb2.ModelInferResponse(raw_output_contents=[raw])
    response.outputs.add(name="text_output", datatype="BYTES", shape=[len(texts)])
    found = answer_texts(response)
    assert found is not None
    assert [text.decode() for text in found.tolist()] == texts
    assert answer_texts(service_pb2.ModelInferResponse()) is None


def test_a_request_is_sent_on_as_it_came_with_a_native_priority() -> None:
    tensors = {
        "text_input": np.array(["Grüße 🎉".encode()], np.object_),
        "stream": np.array([True]),
        "predicted_tokens": np.array([7.5], np.float32),
        "arrival_ms": np.array([2**63], np.uint64),
    }
    request = infer_request("slots", "id-1", tensors, output="served", priority=2**64 - 1)
    assert (request.model_name, request.id) == ("slots", "id-1")
    assert request.parameters["priority"].uint64_param == 2**64 - 1
    found = {t.name: (t.datatype, list(t.shape), t.contents) for t in request.inputs}
    assert {name: kind for name, (kind, _, _) in found.items()} == {
        "text_input": "BYTES", "stream": "BOOL", "predicted_tokens": "FP32", "arrival_ms": "UINT64"
    }  # fmt: skip
    assert all(shape == [1] for _, shape, _ in found.values())
    assert found["text_input"][2].bytes_contents == ["Grüße 🎉".encode()]
    assert found["arrival_ms"][2].uint64_contents == [2**63]


@dataclass
class Client:
    """A ``Way`` that remembers."""

    words: list[str] = field(default_factory=list)
    end: list[str] = field(default_factory=list)
    gone: bool = False

    def send(self, texts: Any) -> None:
        self.words += [text.decode() for text in texts]

    def finish(self) -> None:
        self.end.append("whole")

    def fail(self, code: Code, message: str) -> None:
        self.end.append(f"{code.name}: {message}")

    def cancelled(self) -> bool:
        assert not self.end, "Triton dies of this question after the last response"
        return self.gone


@dataclass
class Served:
    """A front before a Triton."""

    front: Front
    triton: FakeTriton
    metrics: RecordedMetrics

    def ask(self, prompt: str, tokens: float = 4.0, key: int = 10) -> Client:
        client = Client()
        prediction = Prediction(predicted_tokens=tokens, priority=key, arrival_ms=100)
        self.front.submit(
            "", {"text_input": np.array([prompt.encode()], np.object_)}, lambda: prediction, client
        )
        return client


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def has_room(served: Served) -> bool:
    try:
        served.ask("room again")
    except RequestError:
        return False
    return True


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    ours = getattr(request, "param", False)
    with fake_triton() as (triton, url):
        settings = FrontSettings(
            model="llm", url=url, slots_model="llm_slots", engine_model="llm_engine", slots=4, queue_limit=2,
            const_ms=1000.0, ms_per_token=500.0, alpha=1.0, advises=ours,
        )  # fmt: skip
        triton.refusals["bad"] = (grpc.StatusCode.INVALID_ARGUMENT, "max_tokens: expected more")
        metrics = RecordedMetrics()
        front = Front(settings, Account(metrics, 500.0, lambda: 300, engine_counts=ours), lambda: 300)
        front.start()
        yield Served(front, triton, metrics)
        triton.go.set()
        front.stop()


def test_an_answer_comes_back_token_by_token_and_ends_once(served: Served) -> None:
    served.triton.go.set()
    client = served.ask("Grüße an 世界 🎉", key=41)
    until(lambda: client.end)
    assert (client.words, client.end) == (["Grüße ", "an ", "世界 ", "🎉 "], ["whole"])
    (request,) = served.triton.seen
    assert request.model_name == "llm_engine"
    assert "priority" not in request.parameters
    assert [tensor.name for tensor in request.inputs] == ["text_input"]
    (ticket,) = served.triton.tickets
    assert ticket.model_name == "llm_slots"
    assert ticket.parameters["priority"].uint64_param == 42
    until(lambda: served.triton.ended_turns == 1)
    assert served.metrics.observations["mu_request_latency_ms"] == [200]
    assert served.metrics.total("mu_slo_met_total") == 1


@pytest.mark.parametrize("served", [True], indirect=True)
def test_an_engine_of_ours_gets_the_prediction_and_keeps_the_metrics(served: Served) -> None:
    served.triton.go.set()
    client = served.ask("a b", tokens=7.0)
    until(lambda: client.end)
    given = {tensor.name: tensor.contents for tensor in served.triton.seen[0].inputs}
    assert given["predicted_tokens"].fp32_contents == [7.0]
    assert given["priority"].uint64_contents == [10]
    assert given["arrival_ms"].uint64_contents == [100]
    assert served.metrics.observations == {}
    assert served.metrics.gauges == {}


def test_an_error_keeps_its_code_and_its_sentence(served: Served) -> None:
    client = served.ask("bad")
    until(lambda: client.end)
    assert client.end == ["INVALID_ARGUMENT: max_tokens: expected more"]
    assert served.metrics.total("mu_slo_missed_total") == 1


def test_a_predictor_that_fails_means_first_come_first_served(served: Served) -> None:
    served.triton.go.set()

    def broken() -> Prediction:
        raise RuntimeError("no such model")

    client = Client()
    served.front.submit("", {"text_input": np.array([b"a"], np.object_)}, broken, client)
    until(lambda: client.end)
    assert client.end == ["whole"]
    assert served.triton.tickets[0].parameters["priority"].uint64_param == 301
    assert served.metrics.total("mu_fallback_total", "predictor_failed") == 1


def test_whoever_comes_to_a_full_queue_is_told_the_wait(served: Served) -> None:
    clients = [served.ask("x y", tokens=4.0) for _ in range(6)]
    until(lambda: len(served.triton.seen) == 6)
    with pytest.raises(RequestError) as caught:
        served.ask("one more")
    assert caught.value.code is Code.UNAVAILABLE
    assert str(caught.value) == "the queue of llm is full: 2 requests are waiting, expected wait 4.5 s"
    until(lambda: served.metrics.gauges.get("mu_queue_length") == 2)
    assert served.metrics.gauges["mu_predicted_backlog_seconds"] == pytest.approx(4.5)
    served.triton.go.set()
    until(lambda: all(client.end for client in clients))
    assert served.metrics.total("mu_rejected_total") == 1
    until(lambda: served.triton.ended_turns == 6)
    until(lambda: has_room(served))


def test_a_client_that_goes_is_taken_out_of_the_queue(served: Served) -> None:
    served.triton.turn.clear()
    staying, going = served.ask("stays"), served.ask("goes")
    until(lambda: len(served.triton.tickets) == 2)
    going.gone = True
    until(lambda: going.end)
    assert going.end == ["CANCELLED: the client cancelled the request"]
    until(lambda: served.triton.given_up == 1)
    served.triton.turn.set()
    served.triton.go.set()
    until(lambda: staying.end)
    assert staying.end == ["whole"]
    assert served.metrics.total("mu_cancelled_total") == 1
    assert len(served.triton.seen) == 1, "the engine never saw it"


def test_a_client_that_goes_in_its_turn_stops_the_engine_and_frees_the_slot(served: Served) -> None:
    going = served.ask("goes")
    until(lambda: served.triton.seen)
    assert served.triton.ended_turns == 0
    going.gone = True
    until(lambda: going.end and served.triton.cancelled and served.triton.ended_turns)
    assert going.end == ["CANCELLED: the client cancelled the request"]
    assert served.triton.cancelled == ["goes"]
    assert served.metrics.total("mu_cancelled_total") == 1


def test_a_ticket_is_taken_up_once_and_only_by_who_has_it(served: Served) -> None:
    served.ask("a")
    until(lambda: served.triton.seen)
    used = parse_ticket(tensor(served.triton.tickets[0], "ticket")[0].decode())
    for token in (used.token, "0" * 32, "short"):
        hold(Ticket(used.front, token)) if token != "short" else touch(used)
    served.triton.go.set()
    until(lambda: served.triton.ended_turns == 1)
    with pytest.raises(RequestError, match="ticket: expected one that a front has given out"):
        parse_ticket("made up")


def touch(ticket: Ticket) -> None:
    """Connect and hang up."""
    with socket.socket(socket.AF_UNIX) as front:
        front.connect(ticket.address)


def test_stopping_ends_what_waits(served: Served) -> None:
    client = served.ask("waits")
    until(lambda: served.triton.seen)
    served.front.stop()
    assert client.end == ["UNAVAILABLE: the server is shutting down"]
    with pytest.raises(RequestError):
        served.ask("late")
    served.front.stop = lambda: None  # type: ignore[method-assign]


def test_where_the_server_listens_is_in_its_environment_unless_the_configuration_says_it() -> None:
    given = {
        "muserve_model": "llm", "slots_model": "s", "engine_model": "e", "slots": "4", "queue_limit": "1",
        "const_ms": "1",
        "ms_per_token": "1", "alpha": "inf", "engine_is_ours": "false",
    }  # fmt: skip

    def url(environment: dict[str, str], **more: str) -> str:
        settings = Settings(model="m", version="1", directory=None, parameters=given | more)  # type: ignore[arg-type]
        return read_front_settings(settings, environment).url

    assert url({}) == "127.0.0.1:8001"
    assert url({"MUSERVE_GRPC_URL": "[::1]:9"}) == "[::1]:9"
    assert url({"MUSERVE_GRPC_URL": "[::1]:9"}, grpc_url="unix:/run/t:9") == "unix:/run/t:9"

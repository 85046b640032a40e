"""The quickstart's generative endpoint as clients that we did not write see it."""

from __future__ import annotations

import http.client
import json
import queue
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from muserve.token_pieces import pieces

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]

MODEL = "opt-1.3b"
ENTRANCES = pytest.mark.parametrize("entrance", [MODEL, f"{MODEL}_engine"])


def post(server: Any, route: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
    """Status and body, as curl would get them."""
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=60)
    try:
        connection.request("POST", route, json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def generate(server: Any, model: str, **body: Any) -> dict[str, Any]:
    status, answer = post(server, f"/v2/models/{model}/generate", body)
    assert status == 200, answer
    document: dict[str, Any] = json.loads(answer)
    return document


def events(server: Any, model: str, **body: Any) -> list[str]:
    """The texts of the server-sent events of ``generate_stream``."""
    status, answer = post(server, f"/v2/models/{model}/generate_stream", body)
    assert status == 200, answer
    lines = [line.removeprefix("data: ") for line in answer.decode().splitlines() if line]
    return [json.loads(line)["text_output"] for line in lines]


def metrics(server: Any) -> dict[str, float]:
    """Value of each series of the generative model, by its name."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
        text = response.read().decode()
    series = re.findall(rf'^(mu_\w+)\{{[^}}]*model="{MODEL}"[^}}]*\}} (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in series}


def tensor(module: Any, name: str, value: bytes | bool) -> Any:
    kind, dtype = ("BOOL", np.bool_) if isinstance(value, bool) else ("BYTES", np.object_)
    made = module.InferInput(name, [1], kind)
    made.set_data_from_numpy(np.array([value], dtype))
    return made


@ENTRANCES
def test_curl_generate_returns_prompt_and_answer_unless_told_otherwise(
    quickstart_server: Any, entrance: str
) -> None:
    whole = generate(quickstart_server, entrance, text_input="Hello", max_tokens=8)["text_output"]
    answer = generate(
        quickstart_server, entrance, text_input="Hello", max_tokens=8, exclude_input_in_output=True
    )
    assert whole == "Hello" + answer["text_output"]
    assert len(pieces(answer["text_output"])) == 8


@ENTRANCES
def test_curl_generate_stream_returns_token_by_token(quickstart_server: Any, entrance: str) -> None:
    body = {"text_input": "Tell me about clocks", "max_tokens": 12, "ignore_eos": True}
    streamed = events(quickstart_server, entrance, stream=True, **body)
    whole = generate(quickstart_server, entrance, exclude_input_in_output=True, **body)["text_output"]
    assert len(streamed) == 12
    assert "".join(streamed) == whole


def grpc_texts(url: str, model: str, inputs: list[Any]) -> Iterator[str]:
    """Texts of one request over tritonclient's own stream, until the final response."""
    received: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: received.put((result, error)))
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        final = False
        while not final:
            result, error = received.get(timeout=60)
            assert error is None
            texts = result.as_numpy("text_output")
            if texts is not None:
                yield texts[0].decode()
            final = result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()
        assert received.empty(), "a response after the final one"


@ENTRANCES
def test_tritonclient_grpc_streams_with_sampling_parameters(quickstart_server: Any, entrance: str) -> None:
    inputs = [
        tensor(triton_grpc, "text_input", "Grüße, 世界 🎉".encode()),
        tensor(triton_grpc, "stream", True),
        tensor(
            triton_grpc, "sampling_parameters", b'{"max_tokens": "9", "min_tokens": 9, "temperature": 0.1}'
        ),
    ]
    assert len(list(grpc_texts(quickstart_server.grpc_url, entrance, inputs))) == 9


def test_tritonclient_http_sees_the_schema_of_the_vllm_backend(quickstart_server: Any) -> None:
    with triton_http.InferenceServerClient(urlsplit(quickstart_server.http_url).netloc) as client:
        document = client.get_model_metadata(MODEL)
    assert {t["name"]: (t["datatype"], t["shape"]) for t in document["inputs"]} == {
        "text_input": ("BYTES", [1]),
        "stream": ("BOOL", [1]),
        "sampling_parameters": ("BYTES", [1]),
        "exclude_input_in_output": ("BOOL", [1]),
    }
    assert document["outputs"] == [{"name": "text_output", "datatype": "BYTES", "shape": [-1]}]


@ENTRANCES
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_input": ""}, "text_input: expected a prompt, got an empty text"),
        ({"text_input": "x" * 2**20}, "text_input: expected at most 262144 bytes, got 1048576"),
        (
            {"text_input": "x", "max_tokens": 0},
            "max_tokens: expected a whole number from 1 to",
        ),
        (
            {"text_input": "x", "sampling_parameters": "{"},
            "expected a JSON object, got text that is not",
        ),
        ({"text_input": "x", "stream": True, "exclude_input_in_output": False}, "not allowed when streaming"),
        ({"text_input": 5}, "attempt to access JSON non-string as string"),
        ({"text_input": ["x", "y"]}, "tensor with proper shape"),
    ],
)
def test_bad_input_is_one_sentence_without_a_traceback(
    quickstart_server: Any, entrance: str, body: dict[str, Any], message: str
) -> None:
    status, answer = post(quickstart_server, f"/v2/models/{entrance}/generate", body)
    error = json.loads(answer)["error"]
    assert 400 <= status <= 500
    assert message in error
    assert "Traceback" not in error
    assert "\n" not in error.strip()


@ENTRANCES
def test_bytes_that_are_no_text_are_refused(quickstart_server: Any, entrance: str) -> None:
    received: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(quickstart_server.grpc_url) as client:
        client.start_stream(lambda result, error: received.put(error or result))
        client.async_stream_infer(entrance, [tensor(triton_grpc, "text_input", b"\xff\xfe")])
        error = received.get(timeout=60)
    assert error.message().endswith("text_input: expected UTF-8, got an invalid byte at position 0")


def test_each_answer_is_accounted_for(quickstart_server: Any) -> None:
    expected = {
        "mu_request_latency_ms_count": 1,
        "mu_slo_met_total": 1,
        "mu_predicted_tokens_total": 5,
        "mu_actual_tokens_total": 5,
        "mu_prediction_error_tokens_total": 0,
        "mu_slo_missed_total": 0,
        "mu_cancelled_total": 0,
    }
    before = metrics(quickstart_server)
    generate(quickstart_server, MODEL, text_input="How are you?", max_tokens=5, ignore_eos=True)
    deadline = time.monotonic() + 10
    while metrics(quickstart_server)["mu_actual_tokens_total"] == before["mu_actual_tokens_total"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    after = metrics(quickstart_server)
    assert {name: after[name] - before[name] for name in expected} == expected
    assert 30 < after["mu_request_latency_ms_sum"] - before["mu_request_latency_ms_sum"] < 5000

"""Streams of tokens from a generative endpoint over gRPC, with the time of every token."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A Triton model at ``url`` (host:port). ``advised``: it takes the predictor's outputs as inputs."""

    url: str
    model: str
    advised: bool = False


@dataclass(slots=True)
class Timing:
    """What parallel streams saw: seconds to each first token, between tokens, and in all."""

    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def extend(self, other: Timing) -> None:
        """Count ``other`` in."""
        self.first_s += other.first_s
        self.gaps_s += other.gaps_s
        self.tokens += other.tokens
        self.seconds += other.seconds


def run_streams(
    endpoint: Endpoint, streams: int, tokens: int, *, requests: int = 1, apart_s: float = 0.0
) -> Timing:
    """``streams`` parallel clients, each with ``requests`` answers of ``tokens`` tokens one after the other.

    Client n starts n times ``apart_s`` late. SystemExit when an answer fails or has another length.
    """
    timing, lock, problems = Timing(), threading.Lock(), []
    with grpc.insecure_channel(endpoint.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def read(number: int) -> None:
            time.sleep(number * apart_s)
            try:
                for _ in range(requests):
                    seen_s = _one(stub, endpoint, f"benchmark {number}", tokens)
                    with lock:
                        timing.first_s.append(seen_s[1] - seen_s[0])
                        timing.gaps_s += [b - a for a, b in itertools.pairwise(seen_s[1:])]
                        timing.tokens += len(seen_s) - 1
            except Exception as error:
                problems.append(f"{endpoint.model}: {error}")

        threads = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        timing.seconds = time.perf_counter() - started_s
    if problems or timing.tokens != streams * requests * tokens:
        raise SystemExit(f"{(problems or ['tokens are missing'])[0]}")
    return timing


def one_token_s(endpoint: Endpoint, prompts: list[str]) -> list[float]:
    """Seconds that requests of one token take, one at a time."""
    with grpc.insecure_channel(endpoint.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return [seen_s[1] - seen_s[0] for seen_s in (_one(stub, endpoint, prompt, 1) for prompt in prompts)]


def _one(stub: Any, endpoint: Endpoint, prompt: str, tokens: int) -> list[float]:
    """When the request was sent and when each token came."""
    request = _request(endpoint, prompt, tokens)
    seen_s = [time.perf_counter()]
    for response in stub.ModelStreamInfer(iter([request])):
        if response.error_message:
            raise RuntimeError(response.error_message)
        if response.infer_response.outputs:
            seen_s.append(time.perf_counter())
    return seen_s


def _request(endpoint: Endpoint, prompt: str, tokens: int) -> Any:
    sampling = json.dumps({"max_tokens": tokens, "ignore_eos": True})
    request = service_pb2.ModelInferRequest(model_name=endpoint.model)
    _add(request, "text_input", "BYTES", bytes_contents=[prompt.encode("utf-8", "replace")])
    _add(request, "stream", "BOOL", bool_contents=[True])
    _add(request, "sampling_parameters", "BYTES", bytes_contents=[sampling.encode()])
    if endpoint.advised:  # what the predictor would have said, so that the engine does not ask
        _add(request, "predicted_tokens", "FP32", fp32_contents=[float(tokens)])
        _add(request, "priority", "UINT64", uint64_contents=[1])
        _add(request, "arrival_ms", "UINT64", uint64_contents=[time.time_ns() // 1_000_000])
    return request


def _add(request: Any, name: str, datatype: str, **contents: list[Any]) -> None:
    tensor = request.inputs.add(name=name, datatype=datatype, shape=[1])
    tensor.contents.MergeFrom(service_pb2.InferTensorContents(**contents))

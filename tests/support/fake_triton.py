"""A gRPC server that streams answers as Triton does, for clients under test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from mubackend.slots.holding import hold, parse_ticket


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each stream with its prompt's words once ``go`` is set; ``refusals`` maps prompts to errors.

    ``seen`` are the requests, ``cancelled`` the prompts of clients that went before ``go``. A call that is no
    stream is one to ``slots``: ``ModelInfer`` takes up its ticket once ``turn`` is set.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.cancelled: list[str] = []
        self.refusals: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.go = threading.Event()
        self.turn = threading.Event()
        self.turn.set()
        self.tickets: list[Any] = []
        self.given_up = 0
        self.ended_turns = 0

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        request = next(requests)
        self.seen.append(request)
        asked_for_codes = ("triton_grpc_error", "true") in context.invocation_metadata()
        prompt = tensor(request, "text_input")[0].decode()
        if prompt in self.refusals:
            code, message = self.refusals[prompt]
            assert asked_for_codes, "Triton would send the message without its code"
            context.abort(code, message)
        while not self.go.wait(0.01):
            if not context.is_active():
                self.cancelled.append(prompt)
                return
        for word in words(prompt):
            yield answer(word)
        yield service_pb2.ModelStreamInferResponse(infer_response=service_pb2.ModelInferResponse())

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self.tickets.append(request)
        while not self.turn.wait(0.01):
            if not context.is_active():
                self.given_up += 1
                return service_pb2.ModelInferResponse()
        with suppress(ConnectionError):  # of a front that ended with its last turn
            hold(parse_ticket(tensor(request, "ticket")[0].decode()))
        self.ended_turns += 1
        return service_pb2.ModelInferResponse()


def words(prompt: str) -> list[str]:
    """The tokens that ``FakeTriton`` answers with."""
    return [word + " " for word in prompt.split()]


def answer(text: str) -> Any:
    """One message with ``text_output``, as Triton sends it."""
    raw = serialize_byte_tensor(np.array([text.encode()], np.object_)).item()
    response = service_pb2.ModelInferResponse(raw_output_contents=[raw])
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    return service_pb2.ModelStreamInferResponse(infer_response=response)


def tensor(request: Any, name: str) -> list[Any]:
    """The values of a request's STRING or BOOL input, from either place where they may be."""
    place, found = next((at, t) for at, t in enumerate(request.inputs) if t.name == name)
    if not request.raw_input_contents:
        return list(found.contents.bytes_contents or found.contents.bool_contents)
    raw = request.raw_input_contents[place]
    return [raw[4:]] if found.datatype == "BYTES" else [bool(raw[0])]


@contextmanager
def fake_triton() -> Iterator[tuple[FakeTriton, str]]:
    """The server and its host:port."""
    triton = FakeTriton()
    server = grpc.server(futures.ThreadPoolExecutor(32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield triton, f"127.0.0.1:{port}"
    finally:
        triton.go.set()
        triton.turn.set()
        server.stop(None)

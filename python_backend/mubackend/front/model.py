"""Triton model ``<llm>_front``: gives requests for an engine that is not ours a native priority. Decoupled.

Inputs and output as Triton's vLLM backend. It asks the predictor model, waits with that priority for one of
``<llm>_slots`` on the same server, calls the engine over gRPC and passes the answer back as it comes. The
final flag follows the last response in an empty one.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mubackend.failure import Code, RequestError, send_failure
from mubackend.front.account import METRICS, WITHOUT_ENGINE, Account
from mubackend.front.forward import ANSWER, Array
from mubackend.front.relay import Front
from mubackend.front.settings import read_front_settings
from mubackend.length_predictor.question import ask_predictor
from mubackend.llm_engine.ledger import epoch_ms
from mubackend.metrics import open_metrics, slo_buckets_ms
from mubackend.settings import read_settings

_TAKEN = ("text_input", "stream", "sampling_parameters", "exclude_input_in_output")
_FINAL = "the front failed"


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the event loop; a wrong setting fails the model's load with one sentence."""
        settings = read_settings(args)
        front = read_front_settings(settings, os.environ)
        self._predictor_model = settings.text("predictor_model")
        slo_ms = settings.number("slo_ms")
        names = WITHOUT_ENGINE if front.advises else METRICS
        labels = {"model": front.model, "gpu": settings.text("gpu")}
        buckets = {"mu_request_latency_ms": slo_buckets_ms(slo_ms)}
        metrics = open_metrics(pb_utils, names, labels, buckets)
        account = Account(metrics, slo_ms, epoch_ms, engine_counts=front.advises)
        self._front = Front(front, account, epoch_ms)
        self._front.start()

    def execute(self, requests: list[Any]) -> None:
        """Pass each request on and return at once."""
        for request in requests:
            way = _TritonWay(request.get_response_sender())
            try:
                self._accept(request, way)
            except RequestError as error:
                way.fail(error.code, str(error))
            except Exception as error:
                way.fail(Code.INTERNAL, f"{_FINAL}: {type(error).__name__}")
                raise

    def finalize(self) -> None:
        """End what is left, so that no client waits for ever."""
        self._front.stop()

    def _accept(self, request: Any, way: _TritonWay) -> None:
        given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in _TAKEN}
        tensors = {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
        tensors.setdefault("sampling_parameters", np.array([request.parameters().encode()], np.object_))
        prompt, sampling = (tensors[name].reshape(-1)[0] for name in ("text_input", "sampling_parameters"))
        predict = partial(ask_predictor, pb_utils, self._predictor_model, prompt, sampling)
        self._front.submit(request.request_id(), tensors, predict, way)


class _TritonWay:
    """``Way`` through Triton's response sender."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, texts: Array) -> None:
        self._sender.send(pb_utils.InferenceResponse([pb_utils.Tensor(ANSWER, texts)]))

    def finish(self) -> None:
        self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, code: Code, message: str) -> None:
        send_failure(pb_utils, self._sender, code, message)

    def cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

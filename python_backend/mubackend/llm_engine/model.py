"""Triton model ``<llm>_engine``: a generative model behind its own priority queue. Decoupled.

Inputs and outputs as Triton's vLLM backend: text_input STRING[1]; optional stream BOOL[1],
sampling_parameters STRING[1], exclude_input_in_output BOOL[1]; output text_output STRING[-1]. The ensemble
also hands over predicted_tokens FP32[1], priority UINT64[1] and arrival_ms UINT64[1]; called without
them, the engine asks the predictor model itself.

With ``stream`` each token is one response, and the last one carries the final flag.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mubackend.failure import Code, RequestError, invalid, send_failure
from mubackend.length_predictor.question import ask_predictor
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.engine import Engine
from mubackend.llm_engine.executors import open_executor
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.ledger import METRICS
from mubackend.llm_engine.request import GenerationRequest, parse_request
from mubackend.llm_engine.settings import read_engine_settings
from mubackend.metrics import open_metrics, slo_buckets_ms
from mubackend.settings import read_settings
from mubackend.tensors import one_number, one_text

# How long a replica that has taken a request leaves the next one to the others.
_TURN_S = 0.002


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the engine; a wrong setting fails the model's load with one sentence."""
        settings = read_settings(args)
        self._turn_s = _TURN_S if settings.replicas > 1 else 0.0
        self._settings = read_engine_settings(settings)
        self._predictor_model = settings.text("predictor_model")
        labels = {"model": settings.text("muserve_model"), "gpu": settings.gpu}
        buckets = {"mu_request_latency_ms": slo_buckets_ms(self._settings.slo_ms)}
        metrics = open_metrics(pb_utils, METRICS, labels, buckets)
        # Triton pins an instance to a GPU but leaves the choice of device to the model.
        cuda_device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        executor = open_executor(settings, self._settings, metrics, cuda_device)
        self._engine = Engine(self._settings, executor, metrics)
        self._engine.start()
        self._questions = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predictor-question")

    def execute(self, requests: list[Any]) -> None:
        """Queue each request and return at once."""
        for request in requests:
            reply = _TritonReply(request.get_response_sender())
            try:
                self._accept(request, reply)
            except RequestError as error:
                reply.fail(error.code, str(error))
            except Exception as error:
                reply.fail(Code.INTERNAL, f"the engine failed: {type(error).__name__}")
                raise
            # Triton has one queue for all replicas. The one that asks again at once would get all of a burst.
            time.sleep(self._turn_s)

    def finalize(self) -> None:
        """End what is left, so that no client waits for ever."""
        self._engine.stop()
        self._questions.shutdown(cancel_futures=True)

    def _accept(self, request: Any, reply: _TritonReply) -> None:
        sampling = _text(request, "sampling_parameters")
        excluded = _number(request, "exclude_input_in_output")
        generation = parse_request(
            _text(request, "text_input") or "",
            stream=bool(_number(request, "stream")),
            exclude_input_in_output=None if excluded is None else bool(excluded),
            sampling_parameters=request.parameters() if sampling is None else sampling,
            max_prompt_bytes=self._settings.max_prompt_bytes,
            triton_timeout_us=request.timeout(),
        )
        prediction = _given_prediction(request)
        job = self._engine.submit(generation, reply, prediction)
        if prediction is None:
            self._questions.submit(self._ask_predictor, job, generation, sampling or request.parameters())

    def _ask_predictor(self, job: Job, generation: GenerationRequest, sampling: str) -> None:
        """Ask the predictor model through Triton (BLS) and hand the engine what it says."""
        prediction = None
        try:
            texts = (generation.prompt.encode("utf-8", "replace"), sampling.encode("utf-8", "replace"))
            prediction = ask_predictor(pb_utils, self._predictor_model, *texts)
        except Exception as error:
            pb_utils.Logger.log_warn(f"no prediction from {self._predictor_model}: {error}")
        finally:
            self._engine.resolve(job, prediction)


class _TritonReply:
    """``Reply`` through Triton's response sender."""

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, text: str, *, final: bool) -> None:
        response = pb_utils.InferenceResponse([_text_tensor("text_output", text)])
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)

    def fail(self, code: Code, message: str) -> None:
        send_failure(pb_utils, self._sender, code, message)

    def cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())


def _given_prediction(request: Any) -> Prediction | None:
    """What the ensemble hands over; None when the engine is called directly."""
    priority = _number(request, "priority")
    if priority is None:
        return None
    tokens, arrival_ms = _number(request, "predicted_tokens"), _number(request, "arrival_ms")
    if tokens is None or arrival_ms is None or not 0.0 <= tokens < float("inf"):
        raise invalid("priority: expected predicted_tokens (>= 0) and arrival_ms to come with it")
    return Prediction(predicted_tokens=tokens, priority=int(priority), arrival_ms=int(arrival_ms))


def _text(request: Any, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else one_text(name, tensor.as_numpy())


def _number(request: Any, name: str) -> float | int | bool | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else one_number(name, tensor.as_numpy())


def _text_tensor(name: str, text: str) -> Any:
    return pb_utils.Tensor(name, np.array([text.encode("utf-8", "replace")], np.object_))

"""Triton model ``<llm>_length_predictor``: the first step of a generative model's ensemble.

Inputs text_input STRING[1], sampling_parameters STRING[1] (optional); outputs predicted_tokens FP32[1]
(0: unknown), priority UINT64[1] (lower first), arrival_ms UINT64[1] (epoch milliseconds at which the
request reached this model). A request never fails here.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mubackend.length_predictor.predictor import LengthPredictor
from mubackend.length_predictor.service import PredictionService, ServiceLaw
from mubackend.metrics import open_metrics
from mubackend.settings import read_settings
from mubackend.tensors import one_text


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the predictor; a wrong setting or file fails the model's load with one sentence."""
        settings = read_settings(args)
        file = settings.text("predictor_file", "")
        served_model = settings.text("muserve_model")
        predictor = LengthPredictor.load(settings.node_dir / file if file else None, served_model)
        predictor.predict("warm up")
        labels = {"model": served_model, "gpu": settings.text("gpu")}
        law = ServiceLaw(
            const_ms=settings.number("const_ms"),
            ms_per_token=settings.number("ms_per_token"),
            alpha=settings.number("alpha", infinite=True),
        )
        metrics = open_metrics(pb_utils, ("mu_fallback_total",), labels)
        self._service = PredictionService(predictor.predict, law, metrics)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        arrival_ms = time.time_ns() // 1_000_000
        return [self._respond(request, arrival_ms) for request in requests]

    def _respond(self, request: Any, arrival_ms: int) -> Any:
        prediction = self._service.answer(
            lambda: _text(request, "text_input") or "",
            lambda: _text(request, "sampling_parameters") or request.parameters(),
            arrival_ms,
        )
        outputs = {
            "predicted_tokens": np.array([prediction.predicted_tokens], np.float32),
            "priority": np.array([prediction.priority], np.uint64),
            "arrival_ms": np.array([prediction.arrival_ms], np.uint64),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])


def _text(request: Any, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else one_text(name, tensor.as_numpy())

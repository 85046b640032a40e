"""Triton model of one partition of a single-pass network.

Inputs and outputs are those of its ``config.pbtxt``, which are the partition's own. With a max_batch_size,
the requests that Triton batches are one run.
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from mubackend.device import open_virtual_gpus
from mubackend.failure import RequestError
from mubackend.metrics import open_metrics
from mubackend.settings import read_settings
from mubackend.stage.batch import Answer, Array, answer_alone, answer_together
from mubackend.stage.runner import METRICS, StageRunner, VirtualCost, open_stage_session


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the partition; a wrong setting or graph fails the model's load with one sentence."""
        settings = read_settings(args)
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._batches = config["max_batch_size"] > 0
        self._outputs = [tensor["name"] for tensor in config["output"]]
        virtual = None
        if settings.is_virtual:
            virtual = VirtualCost(
                device=open_virtual_gpus(settings),
                latency_ms=settings.number("latency_ms"),
                sensitivity=settings.number("sensitivity"),
                row_ms=settings.number("latency_ms_per_further_row", 0.0),
            )
        labels = {"model": settings.text("muserve_model"), "gpu": settings.gpu}
        labels["stage"] = settings.text("stage_index", "0")
        metrics = open_metrics(pb_utils, METRICS, labels)
        # Triton pins an instance to a GPU but leaves the choice of device to the model.
        cuda_device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._runner = StageRunner(open_stage_session(settings, cuda_device), virtual, metrics)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        given = [self._inputs_of(request) for request in requests]
        if self._batches:
            answers = answer_together(self._runner, given, self._outputs)
        else:
            answers = [answer_alone(self._runner, inputs, self._outputs) for inputs in given]
        return [self._response(answer) for answer in answers]

    def finalize(self) -> None:
        """Release the model."""
        self._runner.close()

    def _inputs_of(self, request: Any) -> dict[str, Array]:
        return {
            name: tensor.as_numpy()
            for name in self._inputs
            if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
        }

    def _response(self, answer: Answer) -> Any:
        if isinstance(answer, RequestError):
            code = getattr(pb_utils.TritonError, answer.code.value)
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(answer), code))
        tensors = [pb_utils.Tensor(name, value) for name, value in zip(self._outputs, answer, strict=True)]
        return pb_utils.InferenceResponse(tensors)

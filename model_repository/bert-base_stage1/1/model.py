"""Triton model of one partition of a single-pass network.

Inputs and outputs are those of its ``config.pbtxt``, which are the partition's own; max_batch_size 0.
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils

from mubackend.device import open_virtual_gpus
from mubackend.failure import RequestError
from mubackend.metrics import open_metrics
from mubackend.settings import read_settings
from mubackend.stage.runner import METRICS, StageRunner, VirtualCost, open_stage_session


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the partition; a wrong setting or graph fails the model's load with one sentence."""
        settings = read_settings(args)
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        virtual = None
        if settings.is_virtual:
            virtual = VirtualCost(
                device=open_virtual_gpus(settings),
                latency_ms=settings.number("latency_ms"),
                sensitivity=settings.number("sensitivity"),
            )
        labels = {"model": settings.text("muserve_model"), "gpu": settings.gpu}
        labels["stage"] = settings.text("stage_index", "0")
        metrics = open_metrics(pb_utils, METRICS, labels)
        # Triton pins an instance to a GPU but leaves the choice of device to the model.
        cuda_device = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None
        self._runner = StageRunner(open_stage_session(settings, cuda_device), virtual, metrics)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Release the model."""
        self._runner.close()

    def _respond(self, request: Any) -> Any:
        inputs = {
            name: tensor.as_numpy()
            for name in self._inputs
            if (tensor := pb_utils.get_input_tensor_by_name(request, name)) is not None
        }
        try:
            results = self._runner.run(inputs, self._outputs)
        except RequestError as error:
            code = getattr(pb_utils.TritonError, error.code.value)
            return pb_utils.InferenceResponse([], pb_utils.TritonError(str(error), code))
        tensors = [pb_utils.Tensor(name, value) for name, value in zip(self._outputs, results, strict=True)]
        return pb_utils.InferenceResponse(tensors)

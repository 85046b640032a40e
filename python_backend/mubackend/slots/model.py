"""Triton model ``<llm>_slots``: each instance works on one request of the engine behind it. Decoupled.

Triton's native priority queue in front of the instances decides which request gets the next free one. The
inputs are the engine's, and so is the output. Four instances at least: with fewer, Triton's batcher loses
wake-ups and stalls for half a second at a time.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from mubackend.settings import read_settings
from mubackend.slots.passing import pass_on


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the engine's name; a wrong setting fails the model's load with one sentence."""
        settings = read_settings(args)
        self._engine = settings.text("engine_model")
        self._outputs = settings.text("outputs").split(",")

    def execute(self, requests: list[Any]) -> None:
        """Work on each request to its end."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                error = self._serve(request, sender)
            except Exception as failure:
                message = f"{self._engine} could not be called: {type(failure).__name__}"
                pb_utils.Logger.log_error(f"{message}: {failure}")
                error = pb_utils.TritonError(message, pb_utils.TritonError.INTERNAL)
            if error is None:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            else:
                response = pb_utils.InferenceResponse(output_tensors=[], error=error)
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _serve(self, request: Any, sender: Any) -> Any:
        """The engine's error, None when it answered."""
        call = pb_utils.InferenceRequest(
            model_name=self._engine,
            requested_output_names=self._outputs,
            inputs=request.inputs(),
            request_id=request.request_id(),
        )
        return pass_on(
            call.exec(decoupled=True),
            lambda response: sender.send(pb_utils.InferenceResponse(response.output_tensors())),
            sender.is_cancelled,
        )

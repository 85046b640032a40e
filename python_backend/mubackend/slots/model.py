"""Triton model ``<llm>_slots``: each instance stands for one request that the engine works on.

Triton's native priority queue in front of the instances decides whose turn it is. Input ticket STRING[1],
from ``<llm>_front``, which calls the engine while its ticket is held; output served BOOL[1] at the end.
Four instances at least: with fewer, Triton's batcher loses wake-ups and stalls for half a second at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mubackend.failure import Code, RequestError
from mubackend.slots.holding import hold, parse_ticket
from mubackend.tensors import one_text


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Hold each request's turn to its end."""
        return [_hold(request) for request in requests]


def _hold(request: Any) -> Any:
    try:
        tensor = pb_utils.get_input_tensor_by_name(request, "ticket")
        hold(parse_ticket(one_text("ticket", tensor.as_numpy())))
    except RequestError as error:
        return _failed(error.code, str(error))
    except OSError as error:
        return _failed(Code.UNAVAILABLE, f"the front of this ticket is gone: {error.strerror}")
    return pb_utils.InferenceResponse([pb_utils.Tensor("served", np.array([True]))])


def _failed(code: Code, message: str) -> Any:
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code.value))
    return pb_utils.InferenceResponse(output_tensors=[], error=error)

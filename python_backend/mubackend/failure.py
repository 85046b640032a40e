"""What a client is told when its request cannot be answered."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from muserve.errors import MuServeError


class Code(StrEnum):
    """Names of Triton's error codes (``pb_utils.TritonError.<name>``) that the models use."""

    INVALID_ARGUMENT = "INVALID_ARG"
    UNAVAILABLE = "UNAVAILABLE"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class RequestError(MuServeError):
    """One request fails with ``code`` and one sentence; the model goes on."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> RequestError:
    """The client's own mistake."""
    return RequestError(Code.INVALID_ARGUMENT, message)


def send_failure(pb_utils: Any, sender: Any, code: Code, message: str) -> None:
    """End a decoupled request with an error; ``pb_utils`` is Triton's ``triton_python_backend_utils``."""
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code.value))
    response = pb_utils.InferenceResponse(output_tensors=[], error=error)
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

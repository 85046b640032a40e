"""What a client is told when its request cannot be answered."""

from __future__ import annotations

from enum import StrEnum

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

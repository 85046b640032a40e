"""What a client of the OpenAI interface is told when it gets no answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Self

from muserve.errors import MuServeError


class ApiError(MuServeError):
    """One request fails with an HTTP status and OpenAI's error body.

    Shape: https://platform.openai.com/docs/guides/error-codes
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        kind: str,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    @classmethod
    def invalid(cls, message: str, *, param: str | None = None) -> Self:
        """The client's own mistake."""
        return cls(HTTPStatus.BAD_REQUEST, message, kind="invalid_request_error", param=param)

    @classmethod
    def no_model(cls, name: str) -> Self:
        """A model that is not served."""
        return cls(
            HTTPStatus.NOT_FOUND,
            f"The model {name!r} does not exist",
            kind="invalid_request_error",
            param="model",
            code="model_not_found",
        )

    @classmethod
    def from_triton(cls, message: str, status: str | None) -> Self:
        """Triton's error; ``status`` names its gRPC code, as ``StatusCode.UNAVAILABLE``."""
        code = (status or "").rpartition(".")[2]
        if code in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
            return cls.invalid(message)
        if code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
            return cls(
                HTTPStatus.SERVICE_UNAVAILABLE, message, kind="server_error", code="service_unavailable"
            )
        return cls(HTTPStatus.INTERNAL_SERVER_ERROR, message, kind="server_error")

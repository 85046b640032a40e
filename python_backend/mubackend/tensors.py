"""Reading the values of Triton STRING and BOOL tensors, which arrive as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from mubackend.failure import invalid

Array = np.ndarray[Any, np.dtype[Any]]


def one_text(name: str, values: Array) -> str:
    """The text in a STRING[1] tensor; RequestError (INVALID_ARGUMENT) when it is not one UTF-8 text."""
    value = _only(name, values)
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise invalid(f"{name}: expected a text, got {type(value).__name__}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"{name}: expected UTF-8, got an invalid byte at position {error.start}") from error


def one_number(name: str, values: Array) -> float | int | bool:
    """The value of a numeric or BOOL tensor of one element; RequestError when there are more or none."""
    value: float | int | bool = _only(name, values)
    return value


def _only(name: str, values: Array) -> Any:
    if values.size != 1:
        raise invalid(f"{name}: expected one value, got {values.size}")
    return values.reshape(-1)[0] if values.dtype == np.object_ else values.reshape(-1)[0].item()

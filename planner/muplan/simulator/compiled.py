"""The decorator of everything that runs as machine code. Importing it needs numba."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

NOBODY = -1

# Nothing here creates or keeps an array, so none has its references counted: that alone took nine tenths
# of the time.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}

_SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))


def compiled(function: Function) -> Function:
    """``function`` as machine code, kept beside its module until any module of this package changes."""
    dispatcher: Any = numba.njit(**_OPTIONS)(function)
    # Numba itself watches only the module of the function, not those of the functions it calls.
    dispatcher._cache._cache_file._source_stamp = _SOURCES.hexdigest()
    return cast(Function, dispatcher)

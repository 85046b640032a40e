"""The journal of a measurement: every finished point on its own line, so that a killed run can go on.

The first line says what is measured with what; a run with anything else refuses to continue it. A line
that a kill tore apart is dropped.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from muplan.profile.profile_file import Point
from muserve.errors import InputError

# (phase, batch, tokens, first operator, last operator, clock)
PointKey = tuple[str, int, int, int, int, int]

_POINT = TypeAdapter(Point)


class Journal:
    """Points measured so far, in a file that only one process may hold. Use as a context manager."""

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self._file = file
        self._identity = dict(identity)
        self._points: dict[PointKey, Point] = {}
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Open or create the file.

        Raises InputError when another process measures into it or it belongs to another measurement.
        """
        try:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(
                f"{self._file}: expected a file that can be written: {error.strerror}"
            ) from error
        try:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"{self._file}: another process is measuring into this file") from error
            self._continue()
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @property
    def points(self) -> Mapping[PointKey, Point]:
        """What was measured, the latest of each."""
        return self._points

    def add(self, key: PointKey, point: Point) -> None:
        """Remember one finished point, on disk before this returns."""
        self._append({"at": list(key), "point": _POINT.dump_python(point, mode="json")})
        self._points[key] = point

    def remove(self) -> None:
        """Delete the file: the profile that it was for is written."""
        self._file.unlink(missing_ok=True)

    def _continue(self) -> None:
        text = self._file.read_bytes()
        complete, newline, _torn = text.rpartition(b"\n")
        if not newline:
            os.ftruncate(self._descriptor, 0)
            self._append({"identity": self._identity})
            return
        os.ftruncate(self._descriptor, len(complete) + 1)
        header, *lines = complete.split(b"\n")
        try:
            self._compare(json.loads(header)["identity"])
            for line in lines:
                entry = json.loads(line)
                phase, batch, tokens, first, last, clock_mhz = entry["at"]
                point = _POINT.validate_python(entry["point"])
                self._points[(phase, batch, tokens, first, last, clock_mhz)] = point
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise InputError(
                f"{self._file}: expected the journal of a measurement, got something else"
            ) from error

    def _compare(self, found: Mapping[str, Any]) -> None:
        ours = json.loads(json.dumps(self._identity))
        for key in sorted({*ours, *found}):
            if ours.get(key) != found.get(key):
                raise InputError(
                    f"{self._file}: holds points of another measurement, {key} was {found.get(key)!r} and is "
                    f"{ours.get(key)!r} now: expected the same, or delete the file to start again"
                )

    def _append(self, entry: Mapping[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(entry, sort_keys=True).encode() + b"\n")
        os.fsync(self._descriptor)

"""Recorded arrivals: a CSV file with one request a line, in order.

Columns, found by name: ``arrival_s`` (seconds) or ``TIMESTAMP`` (ISO date and time), and the lengths
``ContextTokens`` and ``GeneratedTokens`` where there are any. These are the names of the Azure LLM
inference traces (github.com/Azure/AzurePublicDataset); other columns are ignored.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from muserve.errors import InputError

_ARRIVAL, _TIMESTAMP = "arrival_s", "TIMESTAMP"
_PROMPT, _OUTPUT = "ContextTokens", "GeneratedTokens"
_SHORTEST = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in order: when each arrived (seconds after the first), and its lengths where recorded."""

    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.float64] | None = None
    output_tokens: npt.NDArray[np.float64] | None = None

    @property
    def period_s(self) -> float:
        """How long it lasts: to the last arrival and one mean gap more, after which it may repeat."""
        count = len(self.arrival_s)
        return float(self.arrival_s[-1]) * count / (count - 1)

    @property
    def rate_rps(self) -> float:
        """Mean arrival rate."""
        return len(self.arrival_s) / self.period_s

    @property
    def cv(self) -> float:
        """Coefficient of variation of the gaps."""
        gaps = np.diff(self.arrival_s)
        return float(gaps.std() / gaps.mean())


def read_trace(path: Path) -> Trace:
    """Read a trace; InputError, one sentence with the line's number, when it is not one.

    Expected: a readable CSV file with two or more requests at ascending, not all equal times, and
    lengths of one or more tokens.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or ()
            when = next((name for name in (_ARRIVAL, _TIMESTAMP) if name in columns), None)
            if when is None:
                raise InputError(f"{path}: line 1: expected a column {_ARRIVAL} or {_TIMESTAMP}")
            lengths = [name for name in (_PROMPT, _OUTPUT) if name in columns]
            table = list(_table(path, rows, when, lengths))
    except OSError as error:
        raise InputError(f"{path}: expected a readable trace: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected CSV text: {error}") from error
    if len(table) < _SHORTEST:
        raise InputError(f"{path}: expected {_SHORTEST} or more requests, got {len(table)}")
    for (number, before), (later, after) in pairwise((line, values[0]) for line, values in table):
        if after < before:
            raise InputError(f"{path}: line {later}: expected a time not before that of line {number}")
    values = np.array([values for _, values in table])
    arrival_s = values[:, 0] - values[0, 0]
    if arrival_s[-1] == 0.0:
        raise InputError(f"{path}: expected arrivals at different times, all {len(table)} are at the same")
    found = {name: values[:, column] for column, name in enumerate(lengths, start=1)}
    return Trace(arrival_s=arrival_s, prompt_tokens=found.get(_PROMPT), output_tokens=found.get(_OUTPUT))


def _table(
    path: Path, rows: csv.DictReader[str], when: str, lengths: list[str]
) -> Iterator[tuple[int, list[float]]]:
    """(line number, [time in seconds, lengths ...]) of each request."""
    columns = [(when, *_TIMES[when]), *((name, _tokens, "a count of 1 or more") for name in lengths)]
    for row in rows:
        values = []
        for name, read, expected in columns:
            text = row[name] or ""
            try:
                values.append(read(text))
            except ValueError:
                raise InputError(
                    f"{path}: line {rows.line_num}: {name}: expected {expected}, got {text!r}"
                ) from None
        yield rows.line_num, values


def _seconds(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _timestamp_s(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _tokens(text: str) -> float:
    value = _seconds(text)
    if value < 1.0:
        raise ValueError(text)
    return value


_TIMES: dict[str, tuple[Callable[[str], float], str]] = {
    _ARRIVAL: (_seconds, "seconds"),
    _TIMESTAMP: (_timestamp_s, "an ISO date and time"),
}

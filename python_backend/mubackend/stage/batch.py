"""Requests that Triton hands over together, as one run of the partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from mubackend.failure import RequestError

Array = np.ndarray[Any, np.dtype[Any]]
Answer = list[Array] | RequestError


class Runner(Protocol):
    """What computes; ``StageRunner`` is one."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int = 1) -> list[Array]:
        """The named outputs; RequestError when it fails."""


def answer_together(
    runner: Runner, requests: Sequence[Mapping[str, Array]], outputs: Sequence[str]
) -> list[Answer]:
    """The answer of each request, or why it failed; every tensor has the batch axis first.

    One run computes all of them. When it fails, each request is run alone, so that one bad request does
    not fail its neighbours.
    """
    rows = [len(next(iter(request.values()))) for request in requests]
    if len(requests) == 1:
        return [answer_alone(runner, requests[0], outputs, rows[0])]
    try:
        joined = {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}
        results = runner.run(joined, outputs, sum(rows))
        parts = [np.split(result, list(accumulate(rows))[:-1]) for result in results]
    except (RequestError, ValueError):  # ValueError: arrays that do not fit together
        return [answer_alone(runner, request, outputs, n) for request, n in zip(requests, rows, strict=True)]
    return [list(answer) for answer in zip(*parts, strict=True)]


def answer_alone(
    runner: Runner, request: Mapping[str, Array], outputs: Sequence[str], rows: int = 1
) -> Answer:
    """The answer of one request, or why it failed."""
    try:
        return runner.run(request, outputs, rows)
    except RequestError as error:
        return error

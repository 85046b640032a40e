"""Several requests as one run: each gets its own rows back, and a bad one fails alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mubackend.failure import RequestError, invalid
from mubackend.metrics import RecordedMetrics
from mubackend.stage.batch import Array, answer_together
from mubackend.stage.runner import StageRunner, VirtualCost
from muserve.gpu.virtual import VirtualRun


class SumAndDouble:
    """``sum`` = a + b over rows, ``double`` = 2 a; refuses negative rows and counts its runs."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str], rows: int = 1) -> list[Array]:
        assert {len(value) for value in inputs.values()} == {rows}
        self.runs.append(rows)
        if (inputs["a"] < 0).any():
            raise invalid("negative")
        known = {"sum": inputs["a"] + inputs["b"], "double": 2 * inputs["a"]}
        return [known[name] for name in outputs]


def request(first: int, rows: int) -> dict[str, Array]:
    a = np.arange(first, first + rows, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    return {"a": a, "b": a + 1}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 4)), min_size=1, max_size=6))
def test_one_run_answers_all_of_them(asked: list[tuple[int, int]]) -> None:
    runner = SumAndDouble()
    requests = [request(first, rows) for first, rows in asked]
    answers = answer_together(runner, requests, ["double", "sum"])
    for given_, answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, RequestError)
        np.testing.assert_array_equal(answer[0], 2 * given_["a"])
        np.testing.assert_array_equal(answer[1], given_["a"] + given_["b"])
    assert runner.runs == [sum(rows for _, rows in asked)]


def test_a_bad_request_fails_alone() -> None:
    runner = SumAndDouble()
    answers = answer_together(runner, [request(1, 2), request(-9, 1), request(5, 1)], ["sum"])
    assert [isinstance(answer, RequestError) for answer in answers] == [False, True, False]
    assert runner.runs == [4, 2, 1, 1]


def test_requests_that_do_not_fit_together_are_run_one_by_one() -> None:
    wide = {name: np.ones((1, 5), np.float32) for name in "ab"}
    runner = SumAndDouble()
    answers = answer_together(runner, [request(1, 2), wide], ["double"])
    assert [np.shape(answer[0]) for answer in answers if isinstance(answer, list)] == [(2, 3), (1, 5)]
    assert runner.runs == [2, 1]


def test_a_further_row_adds_its_own_gpu_time() -> None:
    spent: list[float] = []

    class Gpu:
        def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> Any:
            spent.append(latency_ms)
            return VirtualRun(started_s=0.0, finished_s=0.0, gpu_s=latency_ms / 1000)

    class Session:
        def run(self, outputs: list[str], inputs: dict[str, Array]) -> list[Array]:
            return [inputs["a"]]

    cost = VirtualCost(device=Gpu(), latency_ms=4.0, sensitivity=0.5, row_ms=0.5)
    runner = StageRunner(Session(), cost, RecordedMetrics())  # type: ignore[arg-type]
    runner.run({"a": np.ones(3)}, ["a"])
    runner.run({"a": np.ones(3)}, ["a"], rows=3)
    assert spent == [4.0, 5.0]

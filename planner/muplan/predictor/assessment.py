"""Judging a predictor's files on the test side of a data set: quality, latency, size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from muplan.predictor.artefact import size_bytes
from muplan.predictor.evaluation import judge
from muplan.predictor.rows import TEST, Rows
from muserve.length_model import LengthModel

TIMED_PROMPTS = 1_000
LONG_PROMPT = "Please summarize what follows. " * 34_000  # about 1 MB
LONG_PROMPT_REPEATS = 50


def assess(directory: Path, rows: Rows) -> dict[str, Any]:
    """Every figure of the predictor in ``directory`` on the opening prompts of the test side of ``rows``.

    ``all_rounds`` judges all test prompts, each as if it were alone (no history is given).
    Raises InputError when the directory holds no predictor.
    """
    model = LengthModel.load(directory)
    test = rows.where(rows.part == TEST)
    predicted = model.predict_many(test.prompts)
    edges = np.array(model.card["training"]["class_edges"], np.float64)
    median = float(edges[1])
    opening = test.first_round
    return {
        "first_round": asdict(judge(test.tokens[opening], predicted[opening], edges, median)),
        "all_rounds": asdict(judge(test.tokens, predicted, edges, median)),
        "latency": _latency(model.predict, test.where(opening).prompts[:TIMED_PROMPTS]),
        "size_bytes": size_bytes(directory),
    }


def _latency(predict: Callable[[str], float], prompts: Sequence[str]) -> dict[str, float]:
    """CPU time says what the predictor costs, wall time what the machine's other work adds to it."""
    figures: dict[str, float] = {}
    for kind, timed in (("", prompts), ("megabyte_prompt_", [LONG_PROMPT] * LONG_PROMPT_REPEATS)):
        cpu_ms, wall_ms = _times_ms(predict, timed)
        for clock, times_ms in (("cpu", cpu_ms), ("wall", wall_ms)):
            for percentile in (50, 99):
                figures[f"{kind}{clock}_p{percentile}_ms"] = float(np.percentile(times_ms, percentile))
    return figures


def _times_ms(predict: Callable[[str], float], prompts: Sequence[str]) -> tuple[list[float], list[float]]:
    cpu_ms, wall_ms = [], []
    for prompt in prompts:
        cpu_started, wall_started = time.thread_time(), time.perf_counter()
        predict(prompt)
        cpu_ms.append((time.thread_time() - cpu_started) * 1e3)
        wall_ms.append((time.perf_counter() - wall_started) * 1e3)
    return cpu_ms, wall_ms

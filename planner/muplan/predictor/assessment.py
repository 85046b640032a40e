"""Judging a predictor's files on the test side of a data set: quality, latency, size."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.artefact import size_bytes
from muplan.predictor.evaluation import judge
from muplan.predictor.feature_table import queries
from muplan.predictor.rows import TEST, Rows
from muserve.conversation import Conversation, Role, Turn, render_conversation
from muserve.length_model import LengthModel
from muserve.length_query import LengthQuery

TIMED_PROMPTS = 1_000
LONG_PROMPT = "Please summarize what follows. " * 34_000  # about 1 MB
LONG_PROMPT_REPEATS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """``figures`` for people and programs, and what they were computed from (test side)."""

    figures: dict[str, Any]
    tokens: NDArray[np.float64]
    predicted: NDArray[np.float64]
    first_round: NDArray[np.bool_]
    edges: NDArray[np.float64]


def assess(directory: Path, rows: Rows) -> Assessed:
    """Judge the predictor in ``directory`` on the test side of ``rows``.

    ``single`` judges the opening prompts, ``multi`` every round with the history that it had. ``latency``
    is what serving pays: a request's text, in a chat template where there is history. Raises InputError
    when the directory holds no predictor.
    """
    model = LengthModel.load(directory)
    test = rows.where(rows.part == TEST)
    asked = queries(test)
    predicted = model.predict_many(asked)
    edges = np.array(model.card["training"]["class_edges"], np.float64)
    opening = test.first_round
    figures: dict[str, Any] = {
        "single": asdict(judge(test.tokens[opening], predicted[opening], edges)),
        "multi": asdict(judge(test.tokens, predicted, edges)),
    }
    quantiles = model.quantiles(asked)
    if quantiles:
        figures["share_below_quantile"] = {
            f"p{100 * level:.0f}": float((test.tokens <= value).mean()) for level, value in quantiles.items()
        }
    figures["latency"] = _latency(model.predict, asked)
    figures["size_bytes"] = size_bytes(directory)
    return Assessed(
        figures=figures, tokens=test.tokens, predicted=predicted, first_round=opening, edges=edges
    )


def request_text(query: LengthQuery) -> str:
    """``query`` as a client sends it: the prompt alone, or a chat in ChatML."""
    if not query.history:
        return query.prompt
    roles: tuple[Role, ...] = ("user", "assistant")
    turns = tuple(Turn(roles[place % 2], text) for place, text in enumerate(query.history))
    return render_conversation(Conversation(turns, query.prompt), "chatml")


def _latency(predict: Callable[[str], float], asked: Sequence[LengthQuery]) -> dict[str, float]:
    """CPU time says what the predictor costs, wall time what the machine's other work adds to it."""
    single = [query.prompt for query in asked if not query.history][:TIMED_PROMPTS]
    chats = [request_text(query) for query in asked if query.history][:TIMED_PROMPTS]
    long_chat = Conversation((Turn("user", LONG_PROMPT), Turn("assistant", LONG_PROMPT)), "Go on")
    timed = {
        "": single,
        "chat_": chats,
        "megabyte_prompt_": [LONG_PROMPT] * LONG_PROMPT_REPEATS,
        "megabytes_of_chat_": [render_conversation(long_chat, "chatml")] * LONG_PROMPT_REPEATS,
    }
    figures: dict[str, float] = {}
    for kind, texts in timed.items():
        for clock, times_ms in zip(("cpu", "wall"), _times_ms(predict, texts), strict=True):
            for percentile in (50, 99):
                if times_ms:
                    value = float(np.percentile(times_ms, percentile))
                    figures[f"{kind}{clock}_p{percentile}_ms"] = value
    return figures


def _times_ms(predict: Callable[[str], float], prompts: Sequence[str]) -> tuple[list[float], list[float]]:
    cpu_ms, wall_ms = [], []
    for prompt in prompts:
        cpu_started, wall_started = time.thread_time(), time.perf_counter()
        predict(prompt)
        cpu_ms.append((time.thread_time() - cpu_started) * 1e3)
        wall_ms.append((time.perf_counter() - wall_started) * 1e3)
    return cpu_ms, wall_ms

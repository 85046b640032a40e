"""What the length predictor sees of a conversation's past: above all how long the answers were so far.

All of it comes from earlier turns, never from the answer that is asked for. How much history there is in
tokens or pieces is left out: chat data were cut at a length, so that number would tell how they were made.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from muserve.length_query import LengthQuery

HISTORY_NAMES: tuple[str, ...] = (
    "answers", "last_answer", "answer_before", "mean_answer", "longest_answer", "shortest_answer",
    "spread_of_answers", "recent_answers", "similar_prompts_answers", "most_similar_prompts_answer",
    "most_similar_prompt", "last_prompt_similarity", "same_as_last_prompt", "last_prompt_chars",
    "chars_over_last_prompt", "words_from_last_answer", "last_answer_fences", "last_answer_open_fence",
    "last_answer_lines", "last_answer_items", "last_answer_cells", "last_answer_ends_sentence",
    "last_answer_ends_in_colon", "last_answer_declines",
)  # fmt: skip
"""In the order of ``history_features``; lengths are logarithms of token counts."""
_NO_HISTORY = np.full(len(HISTORY_NAMES), -1.0, np.float32)
_COMPARED_CHARS = 600
_WORD = re.compile(r"\w+")
_LIST_ITEM = re.compile(r"\n(?:[-*•]|\d{1,2}[.)])\s")
_DECLINES = ("I'm sorry", "I apologize", "As an AI", "Sorry")
_RECENT_HALVES_AFTER = 1.0
_SIMILARITY_WEIGHT, _LENGTH_WEIGHT, _AGE_WEIGHT = 4.0, 0.5, 0.3


def history_features(query: LengthQuery) -> NDArray[np.float32]:
    """Numbers of the turns before: shape ``(len(HISTORY_NAMES),)``, all finite, all -1 without any."""
    if not query.history_answer_tokens:
        return _NO_HISTORY
    lengths = np.log1p(np.array(query.history_answer_tokens, np.float64))
    ages = np.arange(len(lengths), 0.0, -1.0)
    recent = 0.5 ** (ages / _RECENT_HALVES_AFTER)
    return np.array(
        [
            len(lengths),
            lengths[-1],
            lengths[-2] if len(lengths) > 1 else -1.0,
            lengths.mean(),
            lengths.max(),
            lengths.min(),
            lengths.std(),
            recent @ lengths / recent.sum(),
            *_by_similarity(query, lengths),
            *_of_last_answer(query),
        ],
        np.float32,
    )


def _by_similarity(query: LengthQuery, lengths: NDArray[np.float64]) -> list[float]:
    """What the answers to those earlier prompts were like that this prompt resembles (word overlap)."""
    earlier = query.history[0::2][-len(lengths) :]
    if not earlier:
        return [float(lengths[-1]), float(lengths[-1]), -1.0, -1.0, -1.0, -1.0, -1.0]
    lengths = lengths[-len(earlier) :]
    words = _words(query.prompt)
    similar = np.array([_overlap(words, _words(prompt)) for prompt in earlier])
    chars = math.log1p(len(query.prompt))
    others = np.log1p(np.array([len(prompt) for prompt in earlier], np.float64))
    ages = np.arange(len(earlier), 0.0, -1.0)
    weights = np.exp(
        _SIMILARITY_WEIGHT * similar - _LENGTH_WEIGHT * np.abs(others - chars) - _AGE_WEIGHT * ages
    )
    best = len(similar) - 1 - int(np.argmax(similar[::-1]))
    return [
        float(weights @ lengths / weights.sum()),
        float(lengths[best]),
        float(similar[best]),
        float(similar[-1]),
        float(query.prompt.strip().lower() == earlier[-1].strip().lower()),
        float(others[-1]),
        chars - float(others[-1]),
    ]


def _of_last_answer(query: LengthQuery) -> list[float]:
    answer = query.history[-1] if query.history else ""
    ending = answer.rstrip()[-1:]
    words = _words(query.prompt)
    fences = answer.count("```")
    return [
        len(words & _words(answer)) / max(len(words), 1),
        float(fences),
        float(fences % 2),
        math.log1p(answer.count("\n")),
        math.log1p(len(_LIST_ITEM.findall(answer))),
        math.log1p(answer.count("|")),
        float(bool(ending) and ending in ".!?"),
        float(ending == ":"),
        float(answer.startswith(_DECLINES)),
    ]


def _words(text: str) -> frozenset[str]:
    if len(text) > 2 * _COMPARED_CHARS:
        text = f"{text[:_COMPARED_CHARS]} {text[-_COMPARED_CHARS:]}"
    return frozenset(_WORD.findall(text.lower()))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    union = len(one | other)
    return len(one & other) / union if union else 0.0

"""The inputs of every row for one split: learnt groups see nothing of what they are used to teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.rows import TRAIN, Rows
from muplan.predictor.word_model import fit_text_score
from muserve.feature_groups import FeatureGroup, HistoryFeatures, PromptFeatures, ServedModels
from muserve.length_query import LengthQuery, count_tokens

_WHOLE_CHARS = 600
"""Shorter than what any cut of a history leaves of its last answer."""
_COUNTED_PIECES = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTable:
    """``inputs`` (rows, features) and the ``groups`` they come from, in the same order.

    Where a group was learnt from the train side, the train rows hold its out-of-fold values.
    """

    inputs: NDArray[np.float32]
    groups: tuple[FeatureGroup, ...]

    def columns(self, *names: str) -> NDArray[np.float32]:
        """The inputs of the groups called ``names`` only."""
        ends = np.cumsum([0] + [len(group.names) for group in self.groups])
        chosen = [
            self.inputs[:, start:end]
            for group, start, end in zip(self.groups, ends, ends[1:], strict=False)
            if group.group in names
        ]
        return np.hstack(chosen)

    def with_group(self, group: FeatureGroup, values: NDArray[np.float32]) -> FeatureTable:
        """The table with one more group; ``values`` (rows, its features) must be out-of-fold in training."""
        return FeatureTable(inputs=np.hstack([self.inputs, values]), groups=(*self.groups, group))


def queries(rows: Rows) -> list[LengthQuery]:
    """What serving would know of each row when its answer is asked for.

    Serving counts earlier answers in token pieces: counts of another tokenizer are brought to that unit.
    """
    ratio = tokens_per_piece(rows)
    columns = zip(rows.prompts, rows.history, rows.history_answer_tokens, rows.served_model, strict=True)
    return [
        LengthQuery(
            prompt=prompt,
            history=history,
            history_answer_tokens=tuple(count / ratio for count in counts),
            served_model=model,
        )
        for prompt, history, counts, model in columns
    ]


def tokens_per_piece(rows: Rows) -> float:
    """How many tokens the rows' tokenizer makes of one token piece, from earlier answers that are whole.

    1 when no row has one.
    """
    tokens = found = 0
    for history, counts in zip(rows.history, rows.history_answer_tokens, strict=True):
        if not (history and counts and len(history[-1]) <= _WHOLE_CHARS):
            continue
        tokens += counts[-1]
        found += count_tokens(history[-1])
        if found >= _COUNTED_PIECES:
            break
    return tokens / found if tokens and found else 1.0


def build_feature_table(rows: Rows, on_progress: Callable[[str], None]) -> FeatureTable:
    """Learn the word scores from the train side of ``rows`` and compute every row's features.

    Rows of several served models get the group that tells them apart.
    """
    learn = rows.where(rows.part == TRAIN)
    text_score, held_out = fit_text_score(learn.prompts, learn.tokens, learn.group, on_progress)
    on_progress("features of prompts and histories")
    asked = queries(rows)
    scores = np.array([text_score.scores(query.prompt) for query in asked], np.float32)
    scores[rows.part == TRAIN] = held_out
    plain: list[FeatureGroup] = [PromptFeatures(), HistoryFeatures()]
    known = tuple(sorted({name for name in learn.served_model if name}))
    if len(known) > 1:
        plain.append(ServedModels(known))
    values = [np.array([group.values(query) for query in asked], np.float32) for group in plain]
    return FeatureTable(inputs=np.hstack([*values, scores]), groups=(*plain, text_score))

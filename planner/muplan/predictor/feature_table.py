"""The inputs of every row for one split: learnt groups see nothing of what they are used to teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.rows import TRAIN, Rows
from muplan.predictor.word_model import fit_text_score
from muserve.feature_groups import FeatureGroup, HistoryFeatures, PromptFeatures, ServedModels
from muserve.length_query import LengthQuery


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
    """What serving would know of each row when its answer is asked for."""
    columns = zip(rows.prompts, rows.history, rows.history_answer_tokens, rows.served_model, strict=True)
    return [
        LengthQuery(prompt=prompt, history=history, history_answer_tokens=tokens, served_model=model)
        for prompt, history, tokens, model in columns
    ]


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

"""All formulations and the baselines on the same rows, splits and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.boosting import Inputs, Lesson
from muplan.predictor.evaluation import judge
from muplan.predictor.feature_table import FeatureTable, build_feature_table
from muplan.predictor.formulations import CLASS_PERCENTILES, FORMULATIONS
from muplan.predictor.pairwise import FittedPairs
from muplan.predictor.rows import TEST, TRAIN, Rows
from muplan.predictor.training import lesson_of, require_libraries, resplit
from muserve.feature_groups import HistoryFeatures, PromptFeatures

Floats = NDArray[np.float64]
Fitting = Callable[[Lesson, Inputs], tuple[Floats, dict[str, float]]]
BASELINES = ("constant", "prompt length", "prompt and history lengths")
_PROMPT_LENGTH = "chars"
_HISTORY_LENGTHS = (
    "answers", "last_answer", "answer_before", "mean_answer", "longest_answer", "shortest_answer",
)  # fmt: skip


def compare(
    rows: Rows, names: Sequence[str], seeds: Sequence[int], on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Figures of every baseline and of the formulations ``names`` on the test side, one split a seed.

    A seed chooses both the split (``resplit``) and the randomness of training. Gives for every name the
    figures ``single`` (opening prompts) and ``multi`` (all rounds) as ``{"mean", "spread"}`` over the
    seeds; the spread is the standard deviation. Raises InputError when a training library is missing.
    """
    require_libraries()
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    for seed in seeds:
        split = resplit(rows, seed)
        on_progress(f"seed {seed}: features")
        table = build_feature_table(split, lambda step: None)
        for name, fitting, columns in _contenders(table, names):
            on_progress(f"seed {seed}: {name}")
            found.setdefault(name, []).append(_judged(split, table, columns, fitting, seed))
    return {name: _summary(per_seed) for name, per_seed in found.items()}


def _contenders(table: FeatureTable, names: Sequence[str]) -> list[tuple[str, Fitting, NDArray[np.int64]]]:
    features = [f"{group.group} {name}" for group in table.groups for name in group.names]
    everything = np.arange(len(features))
    length = np.array([features.index(f"{PromptFeatures.group} {_PROMPT_LENGTH}")])
    lengths = [features.index(f"{HistoryFeatures.group} {name}") for name in _HISTORY_LENGTHS]
    return [
        (BASELINES[0], _constant, everything),
        (BASELINES[1], _fitting("classes"), length),
        (BASELINES[2], _fitting("classes"), np.array([*length, *lengths])),
        *((name, _fitting(name), everything) for name in names),
    ]


def _constant(lesson: Lesson, inputs: Inputs) -> tuple[Floats, dict[str, float]]:
    return np.full(len(inputs), float(np.median(lesson.learn.tokens))), {}


def _fitting(name: str) -> Fitting:
    def fit(lesson: Lesson, inputs: Inputs) -> tuple[Floats, dict[str, float]]:
        fitted = FORMULATIONS[name].fit(lesson)
        more = {}
        if isinstance(fitted, FittedPairs):
            more["intransitive_share"] = fitted.intransitive_share(inputs, lesson.seed)
        return fitted.expected_tokens(inputs), more

    return fit


def _judged(
    rows: Rows, table: FeatureTable, columns: NDArray[np.int64], fitting: Fitting, seed: int
) -> dict[str, dict[str, float]]:
    chosen = FeatureTable(inputs=table.inputs[:, columns], groups=table.groups)
    test = rows.part == TEST
    predicted, more = fitting(lesson_of(rows, chosen, seed), chosen.inputs[test])
    tokens, opening = rows.tokens[test], rows.first_round[test]
    edges = np.percentile(rows.tokens[rows.part == TRAIN], CLASS_PERCENTILES)
    return {
        "single": asdict(judge(tokens[opening], predicted[opening], edges)),
        "multi": {**asdict(judge(tokens, predicted, edges)), **more},
    }


def _summary(per_seed: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    return {
        side: {
            name: {
                "mean": float(np.mean([figures[side][name] for figures in per_seed])),
                "spread": float(np.std([figures[side][name] for figures in per_seed])),
            }
            for name in per_seed[0][side]
        }
        for side in ("single", "multi")
    }

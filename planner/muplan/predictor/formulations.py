"""Every way of asking how long an answer will be, behind one interface.

A formulation is fitted on a ``Lesson`` and gives an *expected* number of tokens to schedule by: classes are
scored by the probability-weighted mean of their lengths, never by the most likely one, and a score that is
no length (a rank, a median) is mapped to one by a rising curve fitted on the validation side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from muplan.predictor.boosting import (
    Fitted,
    FittedBlend,
    FittedHead,
    Lesson,
    Side,
    boost,
    calibrated,
    class_means,
)
from muplan.predictor.pairwise import fit_pairwise
from muplan.predictor.steps import Sigmoid, Softmax, WeightedSum

CLASS_PERCENTILES = (25, 50, 75, 99)
FINE_PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 97)
QUANTILES = (0.5, 0.9)
RANKED_ROWS = 50
_RANK_GRADES = 16
_BROAD = {"num_leaves": 31, "learning_rate": 0.03, "feature_fraction": 0.3}
_FEWER = {"num_leaves": 8, "learning_rate": 0.08}


@dataclass(frozen=True, slots=True, kw_only=True)
class Formulation:
    """A way of asking; ``fit`` answers it for a lesson. ``summary`` is one line for people."""

    name: str
    summary: str
    fit: Callable[[Lesson], Fitted]


def _tokens(lesson: Lesson) -> FittedHead:
    booster = boost(lesson, lesson.learn.tokens, lesson.check.tokens, {"objective": "l2", **_BROAD})
    return FittedHead(boosters=(booster,), steps=())


def _absolute(lesson: Lesson) -> FittedHead:
    labels, check_labels = np.log(lesson.learn.tokens), np.log(lesson.check.tokens)
    return calibrated(lesson, [boost(lesson, labels, check_labels, {"objective": "l1"})])


def _binary(lesson: Lesson) -> FittedHead:
    median = float(np.median(lesson.learn.tokens))
    low, high = class_means(lesson.learn.tokens, np.array([median]))
    booster = _above(lesson, median)
    return FittedHead(boosters=(booster,), steps=(Sigmoid(), WeightedSum(np.array([high - low]), float(low))))


def _above(lesson: Lesson, edge: float) -> Any:
    labels, check_labels = ((side.tokens >= edge).astype(np.float64) for side in (lesson.learn, lesson.check))
    return boost(lesson, labels, check_labels, {"objective": "binary"})


def _ordinal(lesson: Lesson) -> FittedHead:
    """P(longer than edge k) for every k; the expected length adds up what each edge passed is worth.

    Frank and Hall, "A simple approach to ordinal classification", 2001.
    """
    edges = np.unique(np.percentile(lesson.learn.tokens, CLASS_PERCENTILES))
    means = class_means(lesson.learn.tokens, edges)
    boosters = tuple(_above(lesson, float(edge)) for edge in edges)
    return FittedHead(boosters=boosters, steps=(Sigmoid(), WeightedSum(np.diff(means), float(means[0]))))


def _classes(percentiles: tuple[int, ...], settings: dict[str, Any]) -> Callable[[Lesson], FittedHead]:
    def fit(lesson: Lesson) -> FittedHead:
        edges = np.unique(np.percentile(lesson.learn.tokens, percentiles))
        means = class_means(lesson.learn.tokens, edges)
        labels, check_labels = (
            np.digitize(side.tokens, edges).astype(np.float64) for side in (lesson.learn, lesson.check)
        )
        objective = {"objective": "multiclass", "num_class": len(means), **settings}
        booster = boost(lesson, labels, check_labels, objective)
        return FittedHead(boosters=(booster,), steps=(Softmax(), WeightedSum(means)))

    return fit


def _listwise(lesson: Lesson) -> FittedHead:
    """LambdaRank (Burges, "From RankNet to LambdaRank to LambdaMART", 2010) on random lists of rows."""
    random = np.random.default_rng(lesson.seed)
    learn, check = (_shuffled(side, random) for side in (lesson.learn, lesson.check))
    edges = np.percentile(learn.tokens, np.linspace(0, 100, _RANK_GRADES + 1)[1:-1])
    grades = [np.digitize(side.tokens, edges).astype(np.float64) for side in (learn, check)]
    objective = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [RANKED_ROWS],
        "lambdarank_truncation_level": RANKED_ROWS,
        "label_gain": list(range(_RANK_GRADES)),
    }
    shuffled = Lesson(learn=learn, check=check, seed=lesson.seed)
    lists = [_lists(len(side.tokens)) for side in (learn, check)]
    booster = boost(shuffled, grades[0], grades[1], objective, lists[0], lists[1])
    return calibrated(lesson, [booster])


def _shuffled(side: Side, random: np.random.Generator) -> Side:
    order = random.permutation(len(side.tokens))
    return Side(inputs=side.inputs[order], tokens=side.tokens[order], weight=side.weight[order])


def _lists(rows: int) -> list[int]:
    full, rest = divmod(rows, RANKED_ROWS)
    return [RANKED_ROWS] * full + [rest] * bool(rest)


def _quantile(lesson: Lesson) -> FittedHead:
    """Medians and 90th percentiles; the best non-negative mix of both, calibrated, is the expected length."""
    from scipy.optimize import nnls

    boosters = [
        boost(lesson, lesson.learn.tokens, lesson.check.tokens, {"objective": "quantile", "alpha": quantile})
        for quantile in QUANTILES
    ]
    raw = FittedHead(boosters=tuple(boosters), steps=()).raw(lesson.check.inputs)
    shares, _ = nnls(raw, lesson.check.tokens)
    head = calibrated(lesson, boosters, [WeightedSum(np.asarray(shares, np.float64))])
    return FittedHead(boosters=head.boosters, steps=head.steps, quantiles=QUANTILES)


def _blend(lesson: Lesson) -> FittedBlend:
    return FittedBlend((_classes(FINE_PERCENTILES, _FEWER)(lesson), _tokens(lesson)))


FORMULATIONS: dict[str, Formulation] = {
    formulation.name: formulation
    for formulation in (
        Formulation(name="blend", summary="mean of `fine-classes` and `mse`", fit=_blend),
        Formulation(
            name="classes", summary="5 classes, cut at p25/p50/p75/p99", fit=_classes(CLASS_PERCENTILES, {})
        ),
        Formulation(
            name="fine-classes",
            summary="11 classes, cut at the deciles and p97",
            fit=_classes(FINE_PERCENTILES, {}),
        ),
        Formulation(name="mse", summary="least squares on the length", fit=_tokens),
        Formulation(name="l1", summary="least absolute error of the log length, calibrated", fit=_absolute),
        Formulation(name="binary", summary="longer than the median or not", fit=_binary),
        Formulation(
            name="ordinal", summary="longer than p25/p50/p75/p99 or not, one model each", fit=_ordinal
        ),
        Formulation(name="listwise", summary="LambdaRank on lists of 50, calibrated", fit=_listwise),
        Formulation(name="quantile", summary="p50 and p90, mixed and calibrated", fit=_quantile),
        Formulation(
            name="pairwise", summary="which of two prompts is the longer; not exportable", fit=fit_pairwise
        ),
    )
}
DEFAULT_FORMULATION = "blend"

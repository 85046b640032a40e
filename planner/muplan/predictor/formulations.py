"""Every way of asking how long an answer will be, behind one interface.

A formulation is fitted on a ``Lesson`` and gives an *expected* number of tokens to schedule by: classes are
scored by the probability-weighted mean of their lengths, never by the most likely one, and a score that is
no length (a rank, a median) is mapped to one by a rising curve fitted on the validation side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.steps import Calibration, Sigmoid, Softmax, Step, WeightedSum, apply_steps
from muplan.predictor.trees_onnx import TreeHead
from muserve.errors import InputError
from muserve.isotonic import fit_rising_curve

Floats = NDArray[np.float64]
Inputs = NDArray[np.float32]
CLASS_PERCENTILES = (25, 50, 75, 99)
FINE_PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 97)
QUANTILES = (0.5, 0.9)
RANKED_ROWS = 50
_RANK_GRADES = 16
MOST_ITERATIONS = 600
PATIENCE = 25
_TREES: dict[str, Any] = {
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbosity": -1,
}
_BROAD = {"num_leaves": 31, "learning_rate": 0.03, "feature_fraction": 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Rows of one side of the split: ``inputs`` (n, features), ``tokens`` and ``weight`` (n,)."""

    inputs: Inputs
    tokens: Floats
    weight: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What a formulation learns from, and what it stops early and calibrates on."""

    learn: Side
    check: Side
    seed: int


class Fitted(Protocol):
    """A fitted formulation."""

    def expected_tokens(self, inputs: Inputs) -> Floats: ...
    def tree_heads(self) -> tuple[TreeHead, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedHead:
    """Trees and the steps from their raw output to a length. ``quantiles``: what the raw outputs are of."""

    boosters: tuple[Any, ...]
    steps: tuple[Step, ...]
    quantiles: tuple[float, ...] = ()

    def raw(self, inputs: Inputs) -> Floats:
        """The boosters' raw outputs side by side, shape (n, outputs)."""
        raws = [np.asarray(booster.predict(inputs, raw_score=True), np.float64) for booster in self.boosters]
        return np.column_stack(raws)

    def expected_tokens(self, inputs: Inputs) -> Floats:
        """Expected answer tokens, shape (n,)."""
        return apply_steps(self.steps, self.raw(inputs))[:, 0]

    def tree_heads(self) -> tuple[TreeHead, ...]:
        """This head for ``trees_to_onnx``."""
        dumps = tuple(booster.dump_model(num_iteration=booster.best_iteration) for booster in self.boosters)
        return (TreeHead(dumps=dumps, steps=self.steps),)


@dataclass(frozen=True, slots=True)
class FittedBlend:
    """The mean of what several heads expect."""

    heads: tuple[FittedHead, ...]

    def expected_tokens(self, inputs: Inputs) -> Floats:
        """Expected answer tokens, shape (n,)."""
        return np.asarray(np.mean([head.expected_tokens(inputs) for head in self.heads], axis=0), np.float64)

    def tree_heads(self) -> tuple[TreeHead, ...]:
        """The heads for ``trees_to_onnx``."""
        return tuple(tree_head for head in self.heads for tree_head in head.tree_heads())


@dataclass(frozen=True, slots=True, kw_only=True)
class Formulation:
    """A way of asking; ``fit`` answers it for a lesson. ``summary`` is one line for people."""

    name: str
    summary: str
    fit: Callable[[Lesson], Fitted]


def boost(
    lesson: Lesson,
    labels: Floats,
    check_labels: Floats,
    objective: dict[str, Any],
    learn_groups: Sequence[int] | None = None,
    check_groups: Sequence[int] | None = None,
) -> Any:
    """LightGBM trees of ``objective``, as many as the validation side of ``lesson`` bears."""
    import lightgbm

    settings = {**_TREES, "seed": lesson.seed, **objective}
    data = lightgbm.Dataset(lesson.learn.inputs, labels, weight=lesson.learn.weight, group=learn_groups)
    check = data.create_valid(
        lesson.check.inputs, check_labels, weight=lesson.check.weight, group=check_groups
    )
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    return lightgbm.train(settings, data, MOST_ITERATIONS, valid_sets=[check], callbacks=[stop])


def calibrated(lesson: Lesson, boosters: Sequence[Any], steps: Sequence[Step] = ()) -> FittedHead:
    """A head whose score becomes a length by what the validation side's scores came to."""
    uncalibrated = FittedHead(boosters=tuple(boosters), steps=tuple(steps))
    curve = fit_rising_curve(uncalibrated.expected_tokens(lesson.check.inputs), lesson.check.tokens)
    if curve is None:  # the score knows nothing: everyone is expected to be average
        flat = WeightedSum(np.zeros(1), float(lesson.learn.tokens.mean()))
        return FittedHead(boosters=tuple(boosters), steps=(*steps, flat))
    return FittedHead(boosters=tuple(boosters), steps=(*steps, Calibration(curve)))


def class_means(tokens: Floats, edges: Floats) -> Floats:
    """Mean length in each of the ``len(edges) + 1`` classes; of an empty one, the overall mean."""
    labels = np.digitize(tokens, edges)
    return np.array(
        [tokens[labels == c].mean() if (labels == c).any() else tokens.mean() for c in range(len(edges) + 1)]
    )


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


_FEWER = {"num_leaves": 8, "learning_rate": 0.08}


@dataclass(frozen=True, slots=True)
class FittedPairs:
    """A model of two prompts, which of them gets the longer answer; kept for comparison.

    It gives no score: nothing makes its verdicts transitive, so a queue would have to count wins. Here a
    prompt's score is its mean win against ``references`` (r, features).
    """

    booster: Any
    references: Inputs
    steps: tuple[Step, ...] = field(default=())

    def longer(self, one: Inputs, other: Inputs) -> Floats:
        """Probability that each row of ``one`` gets the longer answer, shape (n,)."""
        return np.asarray(self.booster.predict(np.hstack([one, other])), np.float64)

    def wins(self, inputs: Inputs) -> Floats:
        """Mean probability of being longer than the references, shape (n, 1)."""
        shares = [
            self.longer(inputs, np.repeat(reference[np.newaxis], len(inputs), axis=0))
            for reference in self.references
        ]
        return np.asarray(np.mean(shares, axis=0)[:, np.newaxis], np.float64)

    def expected_tokens(self, inputs: Inputs) -> Floats:
        """Expected answer tokens from the share of wins, shape (n,)."""
        return apply_steps(self.steps, self.wins(inputs))[:, 0]

    def intransitive_share(self, inputs: Inputs, seed: int, triples: int = 2_000) -> float:
        """How many random triples of rows beat one another in a circle."""
        drawn = np.random.default_rng(seed).integers(0, len(inputs), (3, triples))
        a, b, c = drawn[:, (drawn[0] != drawn[1]) & (drawn[1] != drawn[2]) & (drawn[2] != drawn[0])]
        ab, bc, ca = (
            self.longer(inputs[one], inputs[other]) > 0.5 for one, other in ((a, b), (b, c), (c, a))
        )
        return float(((ab == bc) & (bc == ca)).mean())

    def tree_heads(self) -> tuple[TreeHead, ...]:
        """Raises InputError: there is no length of one prompt to export."""
        raise InputError(
            "the pairwise formulation compares two prompts and has no score of one: it cannot be exported "
            "or served, choose another --formulation"
        )


_PAIRS, _REFERENCES = 60_000, 24


def _pairwise(lesson: Lesson) -> FittedPairs:
    random = np.random.default_rng(lesson.seed)
    learn, check = (_pairs(side, random, count) for side, count in _pair_counts(lesson))
    booster = boost(
        Lesson(learn=learn, check=check, seed=lesson.seed),
        learn.tokens,
        check.tokens,
        {"objective": "binary"},
    )
    chosen = random.choice(
        len(lesson.learn.tokens), min(_REFERENCES, len(lesson.learn.tokens)), replace=False
    )
    plain = FittedPairs(booster, lesson.learn.inputs[chosen])
    curve = fit_rising_curve(plain.wins(lesson.check.inputs)[:, 0], lesson.check.tokens)
    step: Step = Calibration(curve) if curve else WeightedSum(np.zeros(1), float(lesson.learn.tokens.mean()))
    return FittedPairs(booster, plain.references, (step,))


def _pair_counts(lesson: Lesson) -> tuple[tuple[Side, int], tuple[Side, int]]:
    return (lesson.learn, _PAIRS), (lesson.check, _PAIRS // 6)


def _pairs(side: Side, random: np.random.Generator, count: int) -> Side:
    """Random pairs of rows of different length; the label is 1 where the first is the longer."""
    one, other = random.integers(0, len(side.tokens), (2, count))
    differ = side.tokens[one] != side.tokens[other]
    one, other = one[differ], other[differ]
    return Side(
        inputs=np.hstack([side.inputs[one], side.inputs[other]]),
        tokens=(side.tokens[one] > side.tokens[other]).astype(np.float64),
        weight=np.sqrt(side.weight[one] * side.weight[other]),
    )


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
            name="pairwise", summary="which of two prompts is the longer; not exportable", fit=_pairwise
        ),
    )
}
DEFAULT_FORMULATION = "blend"

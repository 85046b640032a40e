"""Boosted trees and what makes an expected length of them: the ground that all formulations stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.steps import Calibration, Step, WeightedSum, apply_steps
from muplan.predictor.trees_onnx import TreeHead
from muserve.isotonic import fit_rising_curve

Floats = NDArray[np.float64]
Inputs = NDArray[np.float32]
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

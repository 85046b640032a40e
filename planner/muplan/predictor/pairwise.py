"""A model of two prompts: kept for comparison, as the negative result it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muplan.predictor.boosting import Floats, Inputs, Lesson, Side, boost
from muplan.predictor.steps import Calibration, Step, WeightedSum, apply_steps
from muplan.predictor.trees_onnx import TreeHead
from muserve.errors import InputError
from muserve.isotonic import fit_rising_curve

_MOST_PAIRS = 60_000
_PAIRS_A_ROW = 10
_REFERENCES = 24


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


def fit_pairwise(lesson: Lesson) -> FittedPairs:
    random = np.random.default_rng(lesson.seed)
    learn = _pairs(lesson.learn, random)
    check = _pairs(lesson.check, random)
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


def _pairs(side: Side, random: np.random.Generator) -> Side:
    """Random pairs of rows of different length; the label is 1 where the first is the longer."""
    count = min(_MOST_PAIRS, _PAIRS_A_ROW * len(side.tokens))
    one, other = random.integers(0, len(side.tokens), (2, count))
    differ = side.tokens[one] != side.tokens[other]
    one, other = one[differ], other[differ]
    return Side(
        inputs=np.hstack([side.inputs[one], side.inputs[other]]),
        tokens=(side.tokens[one] > side.tokens[other]).astype(np.float64),
        weight=np.sqrt(side.weight[one] * side.weight[other]),
    )

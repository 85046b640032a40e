"""The SSJF authors' own predictions for LMSYS-Chat-1M, judged by our metrics: no training involved.

Source: github.com/James-QiuHaoran/LLM-serving-with-proxy-models, Apache-2.0: 85,482 requests to
vicuna-13b, each with its true length and the class of five that their BERT gave it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.evaluation import Quality, captured_shares, judge
from muserve.errors import InputError

FILE = "vicuna13b_multiclass_predictions.csv"
CLASS_EDGES = (42.0, 141.0, 294.0, 503.0)
"""First lengths of classes 1 to 4: the 25th, 50th, 75th and 99th percentile of their training data."""

SEEDS = tuple(range(1, 13))


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRows:
    """True lengths in tokens and predicted classes (0 to 4), shape (n,) each."""

    tokens: NDArray[np.float64]
    predicted_class: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedQuality:
    """``by_class``: each request ordered by the mean length of its predicted class.

    ``class_accuracy`` is the share of right classes; ``captured`` has the captured share of each of SEEDS,
    ``perfect_classes_captured`` that of five classes without an error.
    """

    class_accuracy: float
    by_class: Quality
    captured: tuple[float, ...]
    perfect_classes_captured: tuple[float, ...]


def read_published(directory: Path) -> PublishedRows:
    """Read FILE in ``directory``. Raises InputError when it is missing or not those rows."""
    path = directory / FILE
    tokens: list[float] = []
    classes: list[int] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                tokens.append(float(row["output_token_length"]))
                classes.append(int(row["predicted_length"]))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except KeyError as error:
        raise InputError(f"{path}: column {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: row {len(tokens)}: expected a length and a class: {error}") from error
    if not tokens or not set(classes) <= set(range(len(CLASS_EDGES) + 1)):
        raise InputError(f"{path}: predicted_length: expected classes 0 to {len(CLASS_EDGES)}")
    return PublishedRows(tokens=np.array(tokens), predicted_class=np.array(classes, np.int64))


def judge_published(rows: PublishedRows) -> PublishedQuality:
    """Order the requests by expected length, the mean true length of their predicted class."""
    edges = np.array(CLASS_EDGES)
    true_class = np.digitize(rows.tokens, edges)
    means = np.array(
        [
            rows.tokens[true_class == c].mean() if (true_class == c).any() else edges[max(c - 1, 0)]
            for c in range(len(edges) + 1)
        ]
    )
    expected = means[rows.predicted_class]
    return PublishedQuality(
        class_accuracy=float((true_class == rows.predicted_class).mean()),
        by_class=judge(rows.tokens, expected, edges),
        captured=tuple(captured_shares(rows.tokens, expected, SEEDS).tolist()),
        perfect_classes_captured=tuple(captured_shares(rows.tokens, means[true_class], SEEDS).tolist()),
    )

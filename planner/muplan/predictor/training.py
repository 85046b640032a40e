"""Training the predictor: features out of fold, then one formulation's trees, then the graph to serve."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.boosting import Fitted, FittedHead, Lesson, Side
from muplan.predictor.feature_table import FeatureTable, build_feature_table
from muplan.predictor.formulations import CLASS_PERCENTILES, DEFAULT_FORMULATION, FORMULATIONS
from muplan.predictor.rows import LONGEST_TOKENS, TEST, TRAIN, VALIDATION, Rows
from muplan.predictor.trees_onnx import trees_to_onnx
from muplan.predictor.word_model import FOLDS
from muserve.errors import InputError
from muserve.feature_groups import FeatureGroup
from muserve.length_model import QUANTILES_OUTPUT

if TYPE_CHECKING:
    import onnx

STEPS = FOLDS + 5
FIRST_ROUND_WEIGHT = 2.0
_SHARES = (0.7, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A predictor in memory; ``edges`` are the lengths at CLASS_PERCENTILES of the train side."""

    groups: tuple[FeatureGroup, ...]
    model: onnx.ModelProto
    formulation: str
    trees: int
    quantiles: tuple[float, ...]
    edges: NDArray[np.float64]
    mean_tokens: float
    more_facts: Mapping[str, Any] = field(default_factory=dict)
    """Sections of the model card beside the usual ones."""


class MoreFeatures(Protocol):
    """Gives the table with more groups, and more sections of the card."""

    def __call__(self, rows: Rows, table: FeatureTable) -> tuple[FeatureTable, dict[str, Any]]: ...


def train(
    rows: Rows,
    seed: int,
    on_progress: Callable[[str], None] = lambda step: None,
    shuffle_labels: bool = False,
    formulation: str = DEFAULT_FORMULATION,
    more_features: MoreFeatures | None = None,
) -> Trained:
    """Learn from the train side, stop early and calibrate on the validation side; the test side is not used.

    ``shuffle_labels`` gives every training and validation prompt another one's answer length: a leak
    check, its predictor must know nothing. Raises InputError when a training library is missing or the
    formulation cannot be served. ``more_features`` may add groups.
    """
    require_libraries()
    rows = _shuffled(rows, seed) if shuffle_labels else rows
    table = build_feature_table(rows, on_progress)
    facts: dict[str, Any] = {}
    if more_features is not None:
        table, facts = more_features(rows, table)
    on_progress(f"boosted trees, {formulation}")
    fitted = FORMULATIONS[formulation].fit(lesson_of(rows, table, seed))
    on_progress("exporting")
    return replace(trained_of(rows, table, fitted, formulation), more_facts=facts)


def trained_of(rows: Rows, table: FeatureTable, fitted: Fitted, formulation: str) -> Trained:
    """``fitted`` on the ``table`` of ``rows`` as the graph that is served."""
    heads = fitted.tree_heads()
    quantiles = fitted.quantiles if isinstance(fitted, FittedHead) else ()
    learn_tokens = rows.tokens[rows.part == TRAIN]
    model = trees_to_onnx(
        heads, table.inputs.shape[1], float(LONGEST_TOKENS), QUANTILES_OUTPUT if quantiles else ""
    )
    return Trained(
        groups=table.groups,
        model=model,
        formulation=formulation,
        trees=sum(len(dump["tree_info"]) for head in heads for dump in head.dumps),
        quantiles=quantiles,
        edges=np.percentile(learn_tokens, CLASS_PERCENTILES),
        mean_tokens=float(rows.tokens[(rows.part == TRAIN) & rows.first_round].mean()),
    )


def lesson_of(rows: Rows, table: FeatureTable, seed: int, *groups: str) -> Lesson:
    """The train and validation sides of ``rows`` with the inputs of ``groups`` (default: all).

    Opening prompts, which have the least to go by, weigh FIRST_ROUND_WEIGHT times as much.
    """
    inputs = table.columns(*groups) if groups else table.inputs
    weight = np.where(rows.first_round, FIRST_ROUND_WEIGHT, 1.0)
    learn, check = (
        Side(inputs=inputs[keep], tokens=rows.tokens[keep], weight=weight[keep])
        for keep in (rows.part == TRAIN, rows.part == VALIDATION)
    )
    return Lesson(learn=learn, check=check, seed=seed)


def resplit(rows: Rows, seed: int) -> Rows:
    """The rows on other sides, groups kept together, the same shares; seed 0: as they are."""
    if seed == 0:
        return rows
    sides = {int(group): _side(f"{seed} {group}") for group in np.unique(rows.group)}
    return replace(rows, part=np.array([sides[int(group)] for group in rows.group], np.int64))


def _side(name: str) -> int:
    digest = hashlib.md5(name.encode(), usedforsecurity=False).digest()
    place = int.from_bytes(digest[:8], "big") / 2.0**64
    return (TRAIN, VALIDATION, TEST)[sum(place >= share for share in _SHARES)]


def _shuffled(rows: Rows, seed: int) -> Rows:
    tokens = rows.tokens.copy()
    places = np.flatnonzero((rows.part == TRAIN) | (rows.part == VALIDATION))
    tokens[places] = np.random.default_rng(seed).permutation(tokens[places])
    return replace(rows, tokens=tokens)


def require_libraries() -> None:
    """Raise InputError when a library that only training needs is missing."""
    try:
        import lightgbm  # noqa: F401
        import scipy.sparse  # noqa: F401
        import sklearn.linear_model  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f'training needs {error.name}: pip install "muserve[train]"') from error

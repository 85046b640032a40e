"""Training the predictor: word scores, then boosted trees, then the head that schedules better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.evaluation import captured_shares
from muplan.predictor.rows import LONGEST_TOKENS, TRAIN, VALIDATION, Rows
from muplan.predictor.trees_onnx import trees_to_onnx
from muplan.predictor.word_model import FOLDS, fit_text_score
from muserve.errors import InputError
from muserve.length_features import TextScore, hand_features

if TYPE_CHECKING:
    import onnx

HEADS = ("tokens", "classes")
"""``tokens``: least squares on the length. ``classes``: five classes scored by expected length."""
STEPS = FOLDS + 4 + len(HEADS)
CLASS_PERCENTILES = (25, 50, 75, 99)
FIRST_ROUND_WEIGHT = 3.0
MOST_ROUNDS = 400
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
    "num_threads": 2,
    "verbosity": -1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A predictor in memory. ``validation_captured`` is what each head captured on the validation side."""

    text_score: TextScore
    model: onnx.ModelProto
    head: str
    trees: int
    validation_captured: dict[str, float]
    edges: NDArray[np.float64]
    mean_tokens: float


@dataclass(frozen=True, slots=True)
class _Head:
    booster: Any
    class_means: NDArray[np.float64] | None

    def predict(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        raw = np.asarray(self.booster.predict(inputs), np.float64)
        return raw if self.class_means is None else np.asarray(raw @ self.class_means, np.float64)


def train(
    rows: Rows,
    seed: int,
    on_progress: Callable[[str], None] = lambda step: None,
    shuffle_labels: bool = False,
) -> Trained:
    """Learn from the train side, choose the head on the validation side; the test side is not touched.

    All rounds' prompts are learnt from, but the opening ones, which are what is judged, weigh more.
    ``shuffle_labels`` gives every training and validation prompt another one's answer length: a leak
    check, its predictor must know nothing. Raises InputError when a training library is missing.
    """
    _require_libraries()
    rows = _shuffled(rows, seed) if shuffle_labels else rows
    learn = rows.where(rows.part == TRAIN)
    check = rows.where((rows.part == VALIDATION) & rows.first_round)
    text_score, held_out = fit_text_score(learn.prompts, learn.tokens, learn.group, on_progress)
    on_progress("hand-made features")
    learn_inputs = np.hstack([_hand(learn), held_out])
    check_inputs = np.hstack(
        [_hand(check), np.array([text_score.scores(prompt) for prompt in check.prompts])]
    )
    heads: dict[str, _Head] = {}
    captured: dict[str, float] = {}
    for name in HEADS:
        on_progress(f"boosted trees, {name} head")
        heads[name] = _fit_head(name, learn, learn_inputs, check, check_inputs, seed)
        captured[name] = float(captured_shares(check.tokens, heads[name].predict(check_inputs)).mean())
    best = max(HEADS, key=lambda name: captured[name])
    on_progress(f"exporting the {best} head")
    booster = heads[best].booster
    model = trees_to_onnx(
        booster.dump_model(num_iteration=booster.best_iteration),
        learn_inputs.shape[1],
        float(LONGEST_TOKENS),
        heads[best].class_means,
    )
    return Trained(
        text_score=text_score,
        model=model,
        head=best,
        trees=int(booster.best_iteration) * (1 if best == "tokens" else len(CLASS_PERCENTILES) + 1),
        validation_captured=captured,
        edges=np.percentile(learn.tokens, CLASS_PERCENTILES),
        mean_tokens=float(learn.tokens[learn.first_round].mean()),
    )


def _fit_head(
    name: str,
    learn: Rows,
    learn_inputs: NDArray[np.float32],
    check: Rows,
    check_inputs: NDArray[np.float32],
    seed: int,
) -> _Head:
    import lightgbm

    edges = np.percentile(learn.tokens, CLASS_PERCENTILES)
    settings = {**_TREES, "seed": seed, "objective": "l2"}
    labels, check_labels, means = learn.tokens, check.tokens, None
    if name == "classes":
        labels = np.digitize(learn.tokens, edges).astype(np.float64)
        check_labels = np.digitize(check.tokens, edges).astype(np.float64)
        classes = range(len(edges) + 1)
        overall = learn.tokens.mean()
        means = np.array(
            [learn.tokens[labels == c].mean() if (labels == c).any() else overall for c in classes]
        )
        settings |= {"objective": "multiclass", "num_class": len(means)}
    weight = np.where(learn.first_round, FIRST_ROUND_WEIGHT, 1.0)
    data = lightgbm.Dataset(learn_inputs, labels, weight=weight)
    booster = lightgbm.train(
        settings,
        data,
        MOST_ROUNDS,
        valid_sets=[data.create_valid(check_inputs, check_labels)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return _Head(booster, means)


def _hand(rows: Rows) -> NDArray[np.float32]:
    return np.array([hand_features(prompt) for prompt in rows.prompts], np.float32)


def _shuffled(rows: Rows, seed: int) -> Rows:
    tokens = rows.tokens.copy()
    places = np.flatnonzero((rows.part == TRAIN) | (rows.part == VALIDATION))
    tokens[places] = np.random.default_rng(seed).permutation(tokens[places])
    return replace(rows, tokens=tokens)


def _require_libraries() -> None:
    try:
        import lightgbm  # noqa: F401
        import scipy.sparse  # noqa: F401
        import sklearn.linear_model  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f'training needs {error.name}: pip install "muserve[train]"') from error

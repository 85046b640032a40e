"""Fitting the text score: ridge regression on the hashed words and word pairs of the prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from muserve.length_features import token_hashes
from muserve.text_score import TextScore

LARGEST_VOCABULARY = 65_536
FEWEST_PROMPTS = 3
RIDGE = 3.0
LONGER_THAN_PERCENTILES = (10, 25, 50, 75, 90, 95)
FOLDS = 5


def fit_text_score(
    prompts: Sequence[str],
    tokens: NDArray[np.float64],
    group: NDArray[np.int64],
    on_progress: Callable[[str], None],
) -> tuple[TextScore, NDArray[np.float32]]:
    """Learn the words' scores from ``prompts`` and their answers' lengths ``tokens``.

    Returns the score fitted on all of them, and for each prompt the scores of a model that saw no
    prompt of its ``group`` (shape (n, s)): what the trees may be trained on.
    """
    from scipy import sparse
    from sklearn.linear_model import Ridge

    on_progress("counting words")
    hashes, rarity = _vocabulary(prompts)
    blank = TextScore(
        hashes=hashes,
        rarity=rarity,
        weights=np.zeros((len(hashes), 1), np.float32),
        intercepts=np.zeros(1, np.float32),
    )
    terms = [blank.terms(prompt) for prompt in prompts]
    ends = np.cumsum([0] + [len(places) for places, _ in terms])
    matrix = sparse.csr_matrix(
        (np.concatenate([v for _, v in terms]), np.concatenate([p for p, _ in terms]), ends),
        shape=(len(prompts), len(hashes)),
    )
    targets = _targets(tokens)

    def fit(rows: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        model = Ridge(alpha=RIDGE, solver="sparse_cg", tol=1e-3).fit(matrix[rows], targets[rows])
        return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)

    fold = group % FOLDS
    held_out = np.zeros(targets.shape, np.float32)
    for number in range(FOLDS):
        on_progress(f"word scores, fold {number + 1} of {FOLDS}")
        weights, intercepts = fit(fold != number)
        held_out[fold == number] = matrix[fold == number] @ weights + intercepts
    on_progress("word scores, all rows")
    weights, intercepts = fit(np.ones(len(prompts), np.bool_))
    score = TextScore(hashes=hashes, rarity=rarity, weights=weights, intercepts=intercepts)
    return score, held_out


def _vocabulary(prompts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.float32]]:
    """The hashes found in most prompts, ascending, and their smoothed inverse document frequency."""
    found: Counter[int] = Counter()
    for prompt in prompts:
        found.update(token_hashes(prompt)[0].tolist())
    often = [(count, hashed) for hashed, count in found.items() if count >= FEWEST_PROMPTS]
    often.sort(key=lambda entry: (-entry[0], entry[1]))
    chosen = sorted((hashed, count) for count, hashed in often[:LARGEST_VOCABULARY])
    hashes = np.array([hashed for hashed, _ in chosen], np.uint32)
    counts = np.array([count for _, count in chosen], np.float64)
    rarity = np.log((1.0 + len(prompts)) / (1.0 + counts)) + 1.0
    return hashes, rarity.astype(np.float16).astype(np.float32)


def _targets(tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the words are asked: log length, length, and whether the answer is longer than some lengths."""
    edges = np.percentile(tokens, LONGER_THAN_PERCENTILES)
    return np.column_stack([np.log(tokens), tokens / 100.0, tokens[:, np.newaxis] > edges])

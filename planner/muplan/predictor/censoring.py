"""Labels of answers that a limit cut: the expected length, given that it is longer than what was seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def expected_tokens(
    tokens: NDArray[np.float64], censored: NDArray[np.bool_], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``tokens`` (n,) with the ``censored`` ones replaced by their expectation, never smaller than they are.

    The survival function is Kaplan and Meier's (1958) over the ``known`` rows, the train side; the
    expectation is its mean residual life, as in Buckley and James (1979). The longest known length ends
    it (Efron's tail): nothing is added beyond. It does not look at the prompts, so it assumes that a limit
    cuts whatever comes.
    """
    completed = tokens.copy()
    if not censored.any() or not known.any():
        return completed
    lengths, place = np.unique(tokens[known], return_inverse=True)
    ended = np.bincount(place, ~censored[known], len(lengths))
    at_risk = np.cumsum(np.bincount(place, minlength=len(lengths))[::-1])[::-1]
    hazard = ended / at_risk
    hazard[-1] = 1.0
    longer = np.concatenate([[1.0], np.cumprod(1.0 - hazard)])  # P(length > lengths[i - 1])
    starts = np.concatenate([[0.0], lengths])
    # Area under the survival function from each start to the longest length.
    beyond = np.concatenate([np.cumsum((longer[:-1] * np.diff(starts))[::-1])[::-1], [0.0]])
    cut = tokens[censored]
    step = np.searchsorted(starts, cut, side="right") - 1
    area = beyond[step] - longer[step] * (cut - starts[step])
    share = np.where(longer[step] > 0.0, longer[step], 1.0)
    completed[censored] = cut + np.maximum(area, 0.0) / share
    return completed

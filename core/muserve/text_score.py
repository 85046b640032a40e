"""A learnt score of a prompt's words: one of the length predictor's groups of features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from muserve.length_features import token_hashes
from muserve.length_query import LengthQuery

TEXT_SCORE_FILE = "text_score.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """Linear scores of a prompt's words: what the words alone say about the answer's length.

    ``hashes`` (n, ascending) are the known words and pairs, ``rarity`` (n) their inverse document
    frequencies, ``weights`` (n, s) and ``intercepts`` (s) one linear model a column over the
    log-count, rarity-weighted, unit-length vector of the prompt.
    """

    group: ClassVar[str] = "text_score"
    hashes: NDArray[np.uint32]
    rarity: NDArray[np.float32]
    weights: NDArray[np.float32]
    intercepts: NDArray[np.float32]

    @property
    def names(self) -> tuple[str, ...]:
        """One feature name a score."""
        return tuple(f"text_score_{column}" for column in range(len(self.intercepts)))

    def terms(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Places in ``hashes`` of what is known of ``text``, and the values of its unit vector there."""
        found, counts = token_hashes(text)
        places = np.minimum(np.searchsorted(self.hashes, found), len(self.hashes) - 1)
        known = self.hashes[places] == found
        places = places[known]
        values = (1.0 + np.log(counts[known])).astype(np.float32) * self.rarity[places]
        norm = float(np.sqrt(np.dot(values, values)))
        return places, values / np.float32(norm) if norm > 0.0 else values

    def scores(self, text: str) -> NDArray[np.float32]:
        """The scores of ``text``, shape ``(s,)``."""
        places, values = self.terms(text)
        return np.asarray(values @ self.weights[places] + self.intercepts, np.float32)

    def values(self, query: LengthQuery) -> NDArray[np.float32]:
        """The scores of the prompt of ``query``, shape ``(s,)``."""
        return self.scores(query.prompt)

    def save(self, directory: Path) -> None:
        """Write a compressed file (16-bit where that is enough) to ``directory``; same scores, same bytes."""
        np.savez_compressed(
            directory / TEXT_SCORE_FILE,
            hashes=self.hashes,
            rarity=self.rarity.astype(np.float16),
            weights=self.weights.astype(np.float16),
            intercepts=self.intercepts,
        )

    @classmethod
    def load(cls, directory: Path) -> TextScore:
        """Read what ``save`` wrote. Raises OSError, EOFError, ValueError or KeyError otherwise."""
        with np.load(directory / TEXT_SCORE_FILE, allow_pickle=False) as arrays:
            return cls(
                hashes=arrays["hashes"].astype(np.uint32),
                rarity=arrays["rarity"].astype(np.float32),
                weights=arrays["weights"].astype(np.float32),
                intercepts=arrays["intercepts"].astype(np.float32),
            )

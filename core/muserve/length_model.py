"""A trained length predictor on disk, and running it: NumPy and ONNX Runtime, nothing else.

A predictor is a directory: ``model.onnx`` (feature vector -> expected answer tokens), ``model_card.json``
(what it was trained on, how good it is, which groups of features it takes and their fingerprint), and the
files of those groups (``muserve.feature_groups``), such as ``text_score.npz``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muserve.errors import InputError
from muserve.feature_groups import FeatureGroup, features_fingerprint, inputs_of, open_groups
from muserve.length_query import LengthQuery, read_query
from muserve.one_thread_session import open_one_thread_session

MODEL_FILE = "model.onnx"
CARD_FILE = "model_card.json"
QUANTILES_OUTPUT = "quantiles"
"""The graph's second output where it was trained on quantiles; the card says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthModel:
    """Predicts how many tokens the answer to a prompt will have."""

    groups: tuple[FeatureGroup, ...]
    session: Any
    card: Mapping[str, Any]

    @classmethod
    def load(cls, directory: Path) -> LengthModel:
        """Open a predictor directory. Raises InputError when a file is missing, broken or outdated."""
        try:
            card = json.loads((directory / CARD_FILE).read_text("utf-8"))
            graph = (directory / MODEL_FILE).read_bytes()
            expected = card["features"]["fingerprint"]
            groups = open_groups(list(card["features"].get("groups", {})), directory)
            float(card["training"]["mean_tokens"])
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename}: not found, expected a length predictor's files there"
            ) from error
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            raise InputError(f"{directory}: not a length predictor: {error}") from error
        if expected != features_fingerprint(groups):
            raise InputError(
                f"{directory / CARD_FILE}: features.fingerprint is {expected}, expected "
                f"{features_fingerprint(groups)}: train it again with `muplan predictor train`"
            )
        return cls(groups=groups, session=open_one_thread_session(graph, directory / MODEL_FILE), card=card)

    @property
    def mean_tokens(self) -> float:
        """Mean answer length of the training rows: the guess when nothing is known of a prompt."""
        return float(self.card["training"]["mean_tokens"])

    def predict(self, text: str, served_model: str = "") -> float:
        """Expected number of answer tokens for the request ``text`` (any string), at least 1.

        A ``text`` in a chat template is predicted with its history (``muserve.conversation``).
        """
        return float(self.predict_many([read_query(text, served_model)])[0])

    def predict_many(self, queries: Iterable[LengthQuery]) -> NDArray[np.float64]:
        """The expected number of answer tokens of each of ``queries``, shape (n,)."""
        rows = [inputs_of(query, self.groups) for query in queries]
        return self.run(np.array(rows)) if rows else np.zeros(0)

    def quantiles(self, queries: Iterable[LengthQuery]) -> dict[float, NDArray[np.float64]]:
        """Predicted quantiles of the answer's length, each (n,); {} if the predictor was trained without."""
        levels = [float(level) for level in self.card["training"].get("quantiles", [])]
        rows = [inputs_of(query, self.groups) for query in queries]
        if not levels or not rows:
            return {}
        (values,) = self.session.run([QUANTILES_OUTPUT], {"features": np.array(rows)})
        return {level: np.asarray(values[:, place], np.float64) for place, level in enumerate(levels)}

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """Expected tokens for feature vectors ``inputs`` (n, features), shape (n,)."""
        (tokens,) = self.session.run(["tokens"], {"features": inputs})
        return np.asarray(tokens, np.float64)

"""A trained length predictor on disk, and running it: NumPy and ONNX Runtime, nothing else.

A predictor is a directory of three files: ``model.onnx`` (feature vector -> expected answer tokens),
``text_score.npz`` (``muserve.length_features.TextScore``) and ``model_card.json`` (what it was trained
on, how good it is, and the fingerprint of the features it expects).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muserve.errors import InputError
from muserve.length_features import (
    FEATURE_NAMES,
    FEATURES_VERSION,
    HEAD_CHARS,
    TAIL_CHARS,
    TextScore,
    model_inputs,
)

MODEL_FILE = "model.onnx"
TEXT_SCORE_FILE = "text_score.npz"
CARD_FILE = "model_card.json"


def features_fingerprint(text_score: TextScore) -> str:
    """Changes whenever a trained model would be fed other features than it was trained on."""
    names = (
        *FEATURE_NAMES,
        *text_score.names,
        f"head {HEAD_CHARS}",
        f"tail {TAIL_CHARS}",
        f"version {FEATURES_VERSION}",
    )
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthModel:
    """Predicts how many tokens the answer to a prompt will have."""

    text_score: TextScore
    session: Any
    card: Mapping[str, Any]

    @classmethod
    def load(cls, directory: Path) -> LengthModel:
        """Open a predictor directory. Raises InputError when a file is missing, broken or outdated."""
        try:
            card = json.loads((directory / CARD_FILE).read_text("utf-8"))
            text_score = TextScore.load(directory / TEXT_SCORE_FILE)
            graph = (directory / MODEL_FILE).read_bytes()
            expected = card["features"]["fingerprint"]
            float(card["training"]["mean_tokens"])
        except FileNotFoundError as error:
            raise InputError(
                f"{error.filename}: not found, expected a length predictor's files there"
            ) from error
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{directory}: not a length predictor: {error}") from error
        if expected != features_fingerprint(text_score):
            raise InputError(
                f"{directory / CARD_FILE}: features.fingerprint is {expected}, expected "
                f"{features_fingerprint(text_score)}: train it again with `muplan predictor train`"
            )
        return cls(text_score=text_score, session=open_session(graph, directory / MODEL_FILE), card=card)

    @property
    def mean_tokens(self) -> float:
        """Mean answer length of the training rows: the guess when nothing is known of a prompt."""
        return float(self.card["training"]["mean_tokens"])

    def predict(self, text: str) -> float:
        """Expected number of answer tokens for the prompt ``text`` (any string), at least 1."""
        return float(self._run(model_inputs(text, self.text_score)[np.newaxis])[0])

    def predict_many(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """``predict`` for each of ``texts``, shape (n,)."""
        rows = [model_inputs(text, self.text_score) for text in texts]
        return self._run(np.array(rows)) if rows else np.zeros(0)

    def _run(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        (tokens,) = self.session.run(None, {"features": inputs})
        return np.asarray(tokens, np.float64)


def open_session(graph: bytes, path: Path) -> Any:
    """An ONNX Runtime session on one thread: a prompt is too little work to share."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as refusals
    except ModuleNotFoundError as error:
        raise InputError('the length predictor needs ONNX Runtime: pip install "muserve[serve]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (
        refusals.Fail,
        refusals.InvalidProtobuf,
        refusals.InvalidGraph,
        refusals.InvalidArgument,
    ) as error:
        raise InputError(f"{path}: not an ONNX model that ONNX Runtime can open: {error}") from error

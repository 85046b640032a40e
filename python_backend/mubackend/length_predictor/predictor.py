"""The predictor that runs inside Triton: the trained one that comes with the package, or the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from muserve.length_model import LengthModel

DEFAULT_MODEL = Path(__file__).parent / "default"


@dataclass(frozen=True, slots=True)
class LengthPredictor:
    """Expected answer length of a prompt; deterministic, about a millisecond on one core.

    ``served_model`` is who answers: it matters to a predictor that was trained on several models' answers.
    """

    model: LengthModel
    served_model: str = ""

    @classmethod
    def load(cls, path: Path | None = None, served_model: str = "") -> LengthPredictor:
        """Open the predictor in directory ``path`` (default: the packaged one).

        Raises InputError, naming the file, when it is missing, broken or needs other features.
        """
        return cls(LengthModel.load(DEFAULT_MODEL if path is None else path), served_model)

    @property
    def mean_tokens(self) -> float:
        """What to assume of a request whose prediction failed."""
        return self.model.mean_tokens

    def predict(self, text: str) -> float:
        """Expected (mean, not most likely class) number of answer tokens, >= 1, for any string.

        A chat written out in a known template is predicted with its history.
        """
        return self.model.predict(text, self.served_model)

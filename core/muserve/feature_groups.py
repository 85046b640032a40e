"""The length predictor's inputs as named groups: each computes a few numbers of a query.

A trained predictor lists the groups it was trained on, in order; ``open_groups`` opens them again from its
directory. A new group is a class here or elsewhere with ``group``, ``names``, ``values``, ``save`` and
``load``, and an entry in GROUPS.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from muserve.encoder_score import EncoderScore
from muserve.errors import InputError
from muserve.history_features import HISTORY_NAMES, history_features
from muserve.length_features import (
    FEATURE_NAMES,
    FEATURES_VERSION,
    HEAD_CHARS,
    TAIL_CHARS,
    hand_features,
)
from muserve.length_query import LengthQuery
from muserve.text_score import TextScore

SERVED_MODELS_FILE = "served_models.json"


class FeatureGroup(Protocol):
    """A named group of features. ``values`` gives one finite number for each of ``names``, for any query."""

    @property
    def group(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    def values(self, query: LengthQuery) -> NDArray[np.float32]: ...
    def save(self, directory: Path) -> None: ...


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """What is counted in the prompt."""

    group: ClassVar[str] = "prompt"
    names: ClassVar[tuple[str, ...]] = FEATURE_NAMES

    def values(self, query: LengthQuery) -> NDArray[np.float32]:
        """Shape ``(len(FEATURE_NAMES),)``."""
        return hand_features(query.prompt)

    def save(self, directory: Path) -> None:
        """Nothing was learnt, nothing is written."""

    @classmethod
    def load(cls, directory: Path) -> PromptFeatures:
        """Nothing is read."""
        return cls()


@dataclass(frozen=True, slots=True)
class HistoryFeatures:
    """What the turns before were like."""

    group: ClassVar[str] = "history"
    names: ClassVar[tuple[str, ...]] = HISTORY_NAMES

    def values(self, query: LengthQuery) -> NDArray[np.float32]:
        """Shape ``(len(HISTORY_NAMES),)``."""
        return history_features(query)

    def save(self, directory: Path) -> None:
        """Nothing was learnt, nothing is written."""

    @classmethod
    def load(cls, directory: Path) -> HistoryFeatures:
        """Nothing is read."""
        return cls()


@dataclass(frozen=True, slots=True)
class ServedModels:
    """Which of the ``known`` models is to answer: one predictor for many LLMs; an unknown one is no one."""

    group: ClassVar[str] = "served_model"
    known: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One feature a known model."""
        return tuple(f"served_model_{name}" for name in self.known)

    def values(self, query: LengthQuery) -> NDArray[np.float32]:
        """1 at the model that is to answer, 0 elsewhere; shape ``(len(known),)``."""
        return np.array([float(name == query.served_model) for name in self.known], np.float32)

    def save(self, directory: Path) -> None:
        """Write the names to ``directory``."""
        (directory / SERVED_MODELS_FILE).write_text(json.dumps(list(self.known), indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, directory: Path) -> ServedModels:
        """Read what ``save`` wrote. Raises OSError or ValueError otherwise."""
        known = json.loads((directory / SERVED_MODELS_FILE).read_text("utf-8"))
        if not isinstance(known, list) or not all(isinstance(name, str) for name in known):
            raise ValueError(f"{SERVED_MODELS_FILE} is not a list of names")
        return cls(tuple(known))


GROUPS: dict[str, Callable[[Path], FeatureGroup]] = {
    PromptFeatures.group: PromptFeatures.load,
    HistoryFeatures.group: HistoryFeatures.load,
    TextScore.group: TextScore.load,
    ServedModels.group: ServedModels.load,
    EncoderScore.group: EncoderScore.load,
}
"""How to open each group from a predictor's directory."""


def open_groups(names: Sequence[str], directory: Path) -> tuple[FeatureGroup, ...]:
    """The groups ``names`` of the predictor in ``directory``.

    Raises InputError for an unknown group; what a broken file raises comes through.
    """
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise InputError(
            f"{directory}: features.groups names {unknown[0]!r}, expected some of {', '.join(GROUPS)}"
        )
    return tuple(GROUPS[name](directory) for name in names)


def inputs_of(query: LengthQuery, groups: Iterable[FeatureGroup]) -> NDArray[np.float32]:
    """The feature vector of ``query``: the groups' values one after the other."""
    return np.concatenate([group.values(query) for group in groups])


def features_fingerprint(groups: Iterable[FeatureGroup]) -> str:
    """Changes whenever a trained model would be fed other features than it was trained on."""
    names = [f"{group.group} {name}" for group in groups for name in group.names]
    names += [f"head {HEAD_CHARS}", f"tail {TAIL_CHARS}", f"version {FEATURES_VERSION}"]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

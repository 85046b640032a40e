"""Training rows: a prompt, its past, the number of tokens of its answer, and its side of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.censoring import expected_tokens
from muplan.predictor.cleaning import DEFAULT_CLEANING, DEFAULT_LONGEST_TOKENS, Cleaning
from muplan.predictor.data_files import ProgressReport
from muplan.predictor.dataset import Exchange, read_exchanges
from muplan.predictor.prepared import AS_READ, Preparation, read_preparation, read_prepared
from muserve.errors import InputError

LONGEST_TOKENS = DEFAULT_LONGEST_TOKENS
TRAIN, VALIDATION, TEST = 0, 1, 2
PART_NAMES = ("train", "validation", "test")
_SHARES = (0.7, 0.8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Parallel columns, one entry an exchange (see ``Exchange`` for what they mean).

    ``tokens``: answer length; where ``censored`` the expected one on the train and validation sides, the
    one seen on the test side, which is what the request took when it was served. ``group``: rows with one
    group number share a side of the split; ``part``: TRAIN, VALIDATION or TEST; ``first_round``: opens its
    conversation.
    ``preparation``: how they were labelled and cleaned.
    """

    prompts: tuple[str, ...]
    tokens: NDArray[np.float64]
    censored: NDArray[np.bool_]
    group: NDArray[np.int64]
    part: NDArray[np.int64]
    first_round: NDArray[np.bool_]
    round: NDArray[np.int64]
    history: tuple[tuple[str, ...], ...]
    history_answer_tokens: tuple[tuple[int, ...], ...]
    served_model: tuple[str, ...]
    preparation: Preparation = AS_READ

    def where(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows for which ``keep`` holds."""
        places = np.flatnonzero(keep).tolist()
        return replace(
            self,
            prompts=tuple(self.prompts[place] for place in places),
            tokens=self.tokens[keep],
            censored=self.censored[keep],
            group=self.group[keep],
            part=self.part[keep],
            first_round=self.first_round[keep],
            round=self.round[keep],
            history=tuple(self.history[place] for place in places),
            history_answer_tokens=tuple(self.history_answer_tokens[place] for place in places),
            served_model=tuple(self.served_model[place] for place in places),
        )


def read_rows(path: Path | None, on_progress: ProgressReport | None = None) -> Rows:
    """The rows of ``path``: prepared data as they are, chat data (None: ShareGPT) by the default rule.

    Raises InputError for a file that is neither, or too small to split.
    """
    preparation = None if path is None else read_preparation(path)
    if path is None or preparation is None:
        return make_rows(read_exchanges(path, on_progress))
    # What is in a prepared file has passed its own rule.
    as_is = Cleaning(name="prepared", shortest_tokens=0, longest_tokens=None, keeps_cut=True)
    return replace(make_rows(read_prepared(path, on_progress), as_is), preparation=preparation)


def make_rows(exchanges: Iterable[Exchange], cleaning: Cleaning = DEFAULT_CLEANING) -> Rows:
    """Split ``exchanges`` that ``cleaning`` keeps: 70 % train, 10 % validation, 20 % test.

    Conversations whose opening prompts agree (up to case and white space) form one group, and the
    MD5 of the group's smallest conversation id decides its side, so that no opening prompt of the
    test side was seen in training. Raises InputError when a side of the split stays empty.
    """
    kept: list[Exchange] = []
    joined = _Groups()
    for exchange in exchanges:
        if exchange.opening:
            joined.join("id " + exchange.conversation, "prompt " + exchange.opening)
        cleaned, complaint = cleaning.apply(exchange)
        if complaint is None:
            kept.append(replace(cleaned, answer=""))
    names = [joined.name("id " + exchange.conversation) for exchange in kept]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tokens = np.array([exchange.answer_tokens for exchange in kept], np.float64)
    censored = np.array([exchange.censored for exchange in kept], np.bool_)
    part = np.array([_part(name) for name in names], np.int64)
    rows = Rows(
        prompts=tuple(exchange.prompt for exchange in kept),
        tokens=np.where(part == TEST, tokens, expected_tokens(tokens, censored, part == TRAIN)),
        censored=censored,
        group=np.array([numbers[name] for name in names], np.int64),
        part=part,
        first_round=np.array([exchange.first_round for exchange in kept], np.bool_),
        round=np.array([exchange.round for exchange in kept], np.int64),
        history=tuple(exchange.history for exchange in kept),
        history_answer_tokens=tuple(exchange.history_answer_tokens for exchange in kept),
        served_model=tuple(exchange.served_model for exchange in kept),
    )
    for side, name in enumerate(PART_NAMES):
        if not (rows.first_round & (rows.part == side)).any():
            raise InputError(
                f"the data leave no opening prompt for the {name} side: {len(kept)} usable answers in "
                f"{len(numbers)} groups of conversations are too few"
            )
    return rows


def _part(name: str) -> int:
    digest = hashlib.md5(name.encode("utf-8", "replace"), usedforsecurity=False).digest()
    place = int.from_bytes(digest[:8], "big") / 2.0**64
    return sum(place >= share for share in _SHARES)


class _Groups:
    """Disjoint sets of strings; a set is named after its smallest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def name(self, member: str) -> str:
        root = member
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while (parent := self._parent.get(member, member)) != root:
            self._parent[member] = root
            member = parent
        return root

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.name(one), self.name(other)))
        self._parent[second] = first

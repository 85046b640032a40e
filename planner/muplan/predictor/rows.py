"""Training rows: a prompt, the number of token pieces of its answer, and the side of the split it is on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.dataset import Exchange
from muserve.errors import InputError
from muserve.token_pieces import pieces

SHORTEST_TOKENS = 2
LONGEST_TOKENS = 1024
TRAIN, VALIDATION, TEST = 0, 1, 2
PART_NAMES = ("train", "validation", "test")
_SHARES = (0.7, 0.8)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Parallel columns, one entry an exchange.

    ``tokens``: answer length in token pieces; ``group``: rows with one group number share a side of
    the split; ``part``: TRAIN, VALIDATION or TEST; ``first_round``: opens its conversation.
    """

    prompts: tuple[str, ...]
    tokens: NDArray[np.float64]
    group: NDArray[np.int64]
    part: NDArray[np.int64]
    first_round: NDArray[np.bool_]

    def where(self, keep: NDArray[np.bool_]) -> Rows:
        """The rows for which ``keep`` holds."""
        return Rows(
            prompts=tuple(self.prompts[row] for row in np.flatnonzero(keep)),
            tokens=self.tokens[keep],
            group=self.group[keep],
            part=self.part[keep],
            first_round=self.first_round[keep],
        )


def make_rows(exchanges: Iterable[Exchange]) -> Rows:
    """Label and split ``exchanges``: 70 % train, 10 % validation, 20 % test.

    Conversations whose opening prompts agree (up to case and white space) form one group, and the
    MD5 of the group's smallest conversation id decides its side, so that no opening prompt of the
    test side was seen in training. Answers outside SHORTEST_TOKENS..LONGEST_TOKENS are left out.
    Raises InputError when a side of the split stays empty.
    """
    kept: list[tuple[str, str, bool, int]] = []
    joined = _Groups()
    for exchange in exchanges:
        tokens = len(pieces(exchange.answer))
        if not SHORTEST_TOKENS <= tokens <= LONGEST_TOKENS:
            continue
        if exchange.first_round:
            joined.join("id " + exchange.conversation, "prompt " + _normal(exchange.prompt))
        kept.append((exchange.prompt, exchange.conversation, exchange.first_round, tokens))
    names = [joined.name("id " + conversation) for _, conversation, _, _ in kept]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    rows = Rows(
        prompts=tuple(prompt for prompt, _, _, _ in kept),
        tokens=np.array([tokens for _, _, _, tokens in kept], np.float64),
        group=np.array([numbers[name] for name in names], np.int64),
        part=np.array([_part(name) for name in names], np.int64),
        first_round=np.array([first for _, _, first, _ in kept], np.bool_),
    )
    for part, name in enumerate(PART_NAMES):
        if not (rows.first_round & (rows.part == part)).any():
            raise InputError(
                f"the data leave no opening prompt for the {name} side: {len(kept)} usable answers of "
                f"{SHORTEST_TOKENS} to {LONGEST_TOKENS} tokens are too few"
            )
    return rows


def _normal(prompt: str) -> str:
    return _SPACE.sub(" ", prompt).strip().lower()


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

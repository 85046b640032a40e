"""Prepared data: exchanges that are cleaned and labelled, one JSON line each, after a header line.

The header says how the file was made: ``{"format": "muserve-prepared-exchanges", "version": 1,
"tokenizer", "cleaning": {...}, "history", "inputs", "models"}``. A line has the fields of
``muplan.predictor.dataset.Exchange`` but the answer's text. A name that ends in ``.gz`` compresses.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from muplan.predictor.cleaning import DEFAULT_CLEANING, Cleaning
from muplan.predictor.data_files import ProgressReport, read_objects
from muplan.predictor.dataset import PREPARED_FORMAT, Exchange
from muplan.predictor.labels import TOKEN_PIECES
from muserve.errors import InputError
from muserve.history_text import bounded_history

VERSION = 1
_KINDS = {
    "conversation": str, "opening": str, "first_round": bool, "round": int, "history": list,
    "history_answer_tokens": list, "prompt": str, "answer_tokens": int, "censored": bool,
    "served_model": str,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How exchanges became examples: whose tokens the labels count, which were kept, how history was cut.

    ``inputs`` are file names; ``models`` the LLMs whose answers were kept (empty: all).
    """

    tokenizer: str = TOKEN_PIECES.name
    cleaning: Cleaning = DEFAULT_CLEANING
    history: str = "head-tail"
    inputs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()


AS_READ = Preparation()
"""Chat data read without being prepared: default labels, default rule, nothing recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What became of the exchanges: ``read`` = ``kept`` + all ``dropped``; so many kept ones ``censored``."""

    read: int
    kept: int
    censored: int
    dropped: Mapping[str, int]


def write_prepared(path: Path, exchanges: Iterable[Exchange], preparation: Preparation) -> Summary:
    """Clean ``exchanges``, cut their histories and write them; ``path`` appears only when it is whole.

    Raises InputError when nothing is left, or the file cannot be written.
    """
    kept = censored = 0
    dropped: Counter[str] = Counter()
    with _written_whole(path) as file:
        file.write(_line({"format": PREPARED_FORMAT, "version": VERSION, **asdict(preparation)}))
        for exchange in exchanges:
            cleaned, complaint = preparation.cleaning.apply(exchange)
            if preparation.models and exchange.served_model not in preparation.models:
                complaint = "answered by another LLM"
            if complaint is not None:
                dropped[complaint] += 1
                continue
            kept += 1
            censored += cleaned.censored
            history = bounded_history(cleaned.history, preparation.history)
            fields = {name: getattr(cleaned, name) for name in _KINDS}
            file.write(_line({**fields, "history": history}))
        if not kept:
            reasons = ", ".join(f"{number} ({reason})" for reason, number in dropped.items())
            raise InputError(f"{path}: not written, no answer is left; dropped: {reasons or 'none'}")
    return Summary(read=kept + dropped.total(), kept=kept, censored=censored, dropped=dict(dropped))


def read_preparation(path: Path) -> Preparation | None:
    """The header of a prepared file, None if ``path`` is not one. Raises InputError for another version."""
    header = next(iter(read_objects(path)), None)
    if header is None or header.get("format") != PREPARED_FORMAT:
        return None
    if header.get("version") != VERSION:
        raise InputError(
            f"{path}: version is {header.get('version')!r}, expected {VERSION}: prepare it again"
        )
    try:
        return Preparation(
            tokenizer=str(header["tokenizer"]),
            cleaning=Cleaning(**header["cleaning"]),
            history=str(header["history"]),
            inputs=tuple(header["inputs"]),
            models=tuple(header["models"]),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged header: {error}: prepare it again") from error


def read_prepared(path: Path, on_progress: ProgressReport | None = None) -> Iterator[Exchange]:
    """The exchanges of a prepared file, their ``answer`` empty. Raises InputError for a damaged line."""
    for number, value in enumerate(read_objects(path, on_progress), 1):
        if number > 1:
            yield _exchange(value, f"{path}: example {number - 1}")


def _exchange(value: Mapping[str, Any], name: str) -> Exchange:
    for key, kind in _KINDS.items():
        # bool is an int to isinstance, so that kinds are compared.
        if type(value.get(key)) is not kind:
            raise InputError(f"{name}: {key}: expected {kind.__name__}, got {value.get(key)!r}")
    fields: dict[str, Any] = {key: value[key] for key in _KINDS}
    return Exchange(
        **{
            **fields,
            "history": tuple(map(str, fields["history"])),
            "history_answer_tokens": tuple(map(int, fields["history_answer_tokens"])),
            "answer": "",
        }
    )


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


@contextmanager
def _written_whole(path: Path) -> Iterator[IO[str]]:
    """A text file that takes ``path``'s place at the end, and is gone after an error."""
    partial = path.with_name(path.name + ".partial")
    try:
        with ExitStack() as stack:
            raw: Any = stack.enter_context(partial.open("wb"))
            if path.name.endswith(".gz"):
                raw = stack.enter_context(gzip.GzipFile("", "wb", 6, raw, mtime=0))
            yield stack.enter_context(io.TextIOWrapper(cast(IO[bytes], raw), "utf-8", newline="\n"))
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)

"""What the ``replay`` engine answers: recorded answers where there are any, else synthetic ones.

A synthetic answer is not language: it is words drawn at random, and its length is drawn from a lognormal
distribution with the median and spread of real chat answers. Both depend on the prompt only (its SHA-256 is
the seed), so a prompt always gets the same answer, as from a model at temperature 0.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mubackend.llm_engine.stop_text import StopText
from mubackend.sampling import Sampling
from muserve.errors import InputError
from muserve.token_pieces import pieces

# Cuts a text into the pieces that are streamed, one a token; joined they are the text again.
Split = Callable[[str], list[str]]

# Of 1,688 opening answers of ShareGPT in token pieces.
SYNTHETIC_MEDIAN_TOKENS = 233.0
SYNTHETIC_SIGMA = 1.06

_WORDS = (
    "all", "also", "and", "as", "at", "by", "case", "change", "data", "each", "example", "first", "for",
    "from", "in", "is", "it", "line", "model", "more", "number", "of", "on", "one", "or", "order", "part",
    "point", "result", "set", "state", "step", "system", "that", "the", "then", "this", "time", "to",
    "value", "when", "which", "with", "work",
)  # fmt: skip


def read_answers(file: Path) -> dict[str, str]:
    """Recorded answers by the SHA-256 (hex) of their prompt in UTF-8.

    One JSON object a line: ``{"prompt_sha256": ..., "answer": ...}``. InputError names the bad line.
    """
    try:
        with file.open(encoding="utf-8") as lines:
            return dict(_recorded(line, f"{file}:{number}") for number, line in enumerate(lines, start=1))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected a readable file of recorded answers: {error}") from error


def _recorded(line: str, place: str) -> tuple[str, str]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if isinstance(record, dict):
        digest, answer = record.get("prompt_sha256"), record.get("answer")
        if isinstance(digest, str) and isinstance(answer, str):
            return digest, answer
    raise InputError(f'{place}: expected a JSON object with the texts "prompt_sha256" and "answer"')


def tokenizer_split(file: Path) -> Split:
    """The tokens of a Hugging Face ``tokenizer.json`` as pieces of the text they stand for.

    A character that takes several tokens comes whole with the last of them, after empty pieces.
    InputError when the file is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file}: expected a tokenizer.json: {error}") from error

    def split(text: str) -> list[str]:
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        if not offsets:
            return [text] if text else []
        bounds = [0, *(start for start, _ in offsets[1:]), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(bounds)]

    return split


class Answers:
    """Recorded answers cut by ``split``, synthetic ones word by word; deterministic."""

    def __init__(self, recorded: Mapping[str, str], split: Split = pieces) -> None:
        self._recorded = recorded
        self._split = split

    def tokens(self, prompt: str, sampling: Sampling) -> list[str]:
        """The pieces to generate for ``prompt``, at least one; empty ones wait for what ``stop`` says."""
        digest = hashlib.sha256(prompt.encode("utf-8", "replace"))
        recorded = self._recorded.get(digest.hexdigest())
        words = random.Random(digest.digest())
        if recorded is None:
            drawn = words.lognormvariate(math.log(SYNTHETIC_MEDIAN_TOKENS), SYNTHETIC_SIGMA)
            answer = list(itertools.islice(_babble(words), max(1, round(drawn))))
        else:
            answer = self._split(recorded) or [""]
        return limited(answer, sampling, lambda: _babble(words))


def limited(answer: list[str], sampling: Sampling, more: Callable[[], Iterator[str]]) -> list[str]:
    """``answer`` brought to the length that ``sampling`` asks for; ``more`` continues a short one."""
    wanted = sampling.max_tokens if sampling.ignore_eos else sampling.min_tokens
    if len(answer) < wanted:
        answer = answer + list(itertools.islice(more(), wanted - len(answer)))
    return _stopped(answer[: sampling.max_tokens], sampling)


def _stopped(answer: list[str], sampling: Sampling) -> list[str]:
    stops = StopText(sampling)
    kept: list[str] = []
    for piece in answer:
        kept.append(stops.push(piece))
        if stops.stopped:
            return kept
    kept[-1] += stops.rest()
    return kept


def _babble(words: random.Random) -> Iterator[str]:
    while True:
        yield " " + words.choice(_WORDS)

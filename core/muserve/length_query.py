"""What is known of a request when the length of its answer is asked for: its prompt and its past."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from muserve.conversation import Turn, parse_conversation
from muserve.history_text import bounded_chars
from muserve.token_pieces import pieces

REMEMBERED_ANSWERS = 8
COUNTED_CHARS = 4096
"""Of a longer answer this many characters are counted; the rest is taken to be like them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthQuery:
    """A ``prompt`` and what came before it in its conversation.

    ``history`` has the turns before as ``muserve.history_text.bounded_chars`` cuts them, prompt and answer
    alternating, oldest first. ``history_answer_tokens`` has the lengths of the last REMEMBERED_ANSWERS
    answers in token pieces, oldest first. ``served_model`` is to answer ("": unknown).
    """

    prompt: str
    history: tuple[str, ...] = ()
    history_answer_tokens: tuple[float, ...] = ()
    served_model: str = ""


def read_query(text: str, served_model: str = "") -> LengthQuery:
    """The query that the request ``text`` makes: its chat's turns if it is one, else one prompt.

    Never raises; counts no more than REMEMBERED_ANSWERS * COUNTED_CHARS characters.
    """
    chat = parse_conversation(text)
    if not chat.earlier:
        return LengthQuery(prompt=chat.prompt, served_model=served_model)
    turns = _alternating(chat.earlier)
    answers = turns[1::2][-REMEMBERED_ANSWERS:]
    return LengthQuery(
        prompt=chat.prompt,
        history=bounded_chars(turns[: len(turns) - len(turns) % 2]),
        history_answer_tokens=tuple(count_tokens(answer) for answer in answers),
        served_model=served_model,
    )


def count_tokens(answer: str) -> int:
    """The length of ``answer`` in token pieces, extrapolated beyond COUNTED_CHARS characters."""
    counted = len(pieces(answer[:COUNTED_CHARS]))
    return round(counted * max(1.0, len(answer) / COUNTED_CHARS))


def _alternating(turns: tuple[Turn, ...]) -> list[str]:
    """Prompt, answer, prompt, ... as training data have it: system turns left out, neighbours joined."""
    texts: list[str] = []
    spoken = (turn for turn in turns if turn.role != "system")
    for role, same in groupby(spoken, key=lambda turn: turn.role):
        if not texts and role == "assistant":
            texts.append("")
        texts.append("\n".join(turn.text for turn in same))
    return texts

"""The earlier turns of a chat as text of bounded size: its beginning and its end, the middle left out.

A history is a tuple of turns, oldest first, alternating prompt and answer; it always starts with a
prompt ("" where the first prompt is not known). Training and serving both cut it here. Tokens are
``muserve.token_pieces``; 128 from the head and 382 from the tail are what is left of 512 positions of a
BERT encoder beside its special tokens (Sun et al., "How to Fine-Tune BERT for Text Classification?", 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from muserve.token_pieces import pieces

HISTORY_MODES = ("head-tail", "tail", "none")
HEAD_TOKENS = 128
TAIL_TOKENS = 382
HEAD_CHARS = 1024
TAIL_CHARS = 4096


def bounded_history(turns: Sequence[str], mode: str = "head-tail") -> tuple[str, ...]:
    """``turns`` cut to 128 + 382 tokens (``head-tail``), 510 tokens (``tail``) or nothing (``none``).

    Raises ValueError for another mode.
    """
    head, tail = _budget(mode)
    return cut_turns(bounded_chars(turns), head, tail, pieces)


def conversation_text(history: Sequence[str], prompt: str, mode: str = "head-tail") -> str:
    """``history`` and ``prompt`` as one text, a line a turn, at most 510 tokens and the line breaks.

    ``none`` gives the prompt's own head and tail. Raises ValueError for an unknown mode.
    """
    head, tail = _budget("head-tail" if mode == "none" else mode)
    turns = (prompt,) if _budget(mode) == (0, 0) else (*history, prompt)
    return "\n".join(turn for turn in cut_turns(bounded_chars(turns), head, tail, pieces) if turn)


def bounded_chars(turns: Sequence[str]) -> tuple[str, ...]:
    """``turns`` cut to HEAD_CHARS + TAIL_CHARS characters: nearly always more than the tokens above."""
    return cut_turns(turns, HEAD_CHARS, TAIL_CHARS, lambda text: text)


def cut_turns(
    turns: Sequence[str], head: int, tail: int, split: Callable[[str], Sequence[str]]
) -> tuple[str, ...]:
    """The first ``head`` and the last ``tail`` units of ``turns``, prompts and answers still alternating.

    ``split`` cuts a turn into units that join to it. Only the turns that are kept are split. What meets
    at the gap is one turn of two lines if both sides are prompts, or both answers.
    """
    front, (first, taken_front) = _take(turns, range(len(turns)), head, split, from_end=False)
    back, (last, taken_back) = _take(turns, range(len(turns) - 1, -1, -1), tail, split, from_end=True)
    if first > last or (first == last and taken_front + taken_back >= len(split(turns[first]))):
        return tuple(turns)
    back.reverse()
    if not front:
        return ("",) * (last % 2 if back else 0) + tuple(back)
    if back and (last - first) % 2 == 0:
        back[0] = f"{front.pop()}\n{back[0]}"
    return (*front, *back)


def _take(
    turns: Sequence[str],
    order: range,
    budget: int,
    split: Callable[[str], Sequence[str]],
    from_end: bool,
) -> tuple[list[str], tuple[int, int]]:
    """Up to ``budget`` units of the turns in ``order``; the last turn touched, units taken of it."""
    found: list[str] = []
    place, taken = order.start - order.step, 0
    for place in order:
        if budget <= 0:
            return found, (place - order.step, taken)
        units = split(turns[place])
        taken = min(budget, len(units))
        kept = units[len(units) - taken :] if from_end else units[:taken]
        found.append(turns[place] if taken == len(units) else "".join(kept))
        budget -= taken
    return found, (place, taken)


def _budget(mode: str) -> tuple[int, int]:
    if mode not in HISTORY_MODES:
        raise ValueError(f"history mode {mode!r}, expected one of {', '.join(HISTORY_MODES)}")
    tail_only = (0, HEAD_TOKENS + TAIL_TOKENS)
    return {"head-tail": (HEAD_TOKENS, TAIL_TOKENS), "tail": tail_only, "none": (0, 0)}[mode]

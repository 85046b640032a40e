"""Histories cut to a head and a tail: bounded, alternating, and the right ends."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.history_text import bounded_chars, bounded_history, conversation_text, cut_turns
from muserve.token_pieces import pieces

TURN = st.text("abcdefghij", max_size=9)
PAIRS = st.lists(st.tuples(TURN, TURN), max_size=6)


def flat(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(text for pair in pairs for text in pair)


@given(pairs=PAIRS, head=st.integers(0, 12), tail=st.integers(0, 12))
def test_a_cut_keeps_both_ends_and_no_more_than_asked(
    pairs: list[tuple[str, str]], head: int, tail: int
) -> None:
    turns = flat(pairs)
    cut = cut_turns(turns, head, tail, lambda text: text)
    whole, kept = "".join(turns), "".join(cut).replace("\n", "")
    if len(whole) <= head + tail:
        assert kept == whole
    else:
        assert kept == whole[:head] + whole[len(whole) - tail :]


@given(pairs=PAIRS, head=st.integers(0, 12), tail=st.integers(0, 12))
def test_prompts_stay_prompts_and_answers_answers(pairs: list[tuple[str, str]], head: int, tail: int) -> None:
    marked = flat([(p.lower(), a.upper()) for p, a in pairs])
    cut = cut_turns(marked, head, tail, lambda text: text)
    assert all(text == (text.upper() if place % 2 else text.lower()) for place, text in enumerate(cut))
    if cut and tail:
        assert len(cut) % 2 == 0  # it ends with an answer, as it did


def test_the_gap_by_hand() -> None:
    turns = ("one two", "three four", "five six", "seven eight")
    words = re.compile(r"\S+ ?").findall
    assert cut_turns(turns, 1, 1, words) == ("one ", "eight")
    assert cut_turns(turns, 3, 1, words) == ("one two", "three \neight")
    assert cut_turns(turns, 0, 3, words) == ("six", "seven eight")
    assert cut_turns(turns, 0, 1, words) == ("", "eight")
    assert cut_turns(turns, 8, 0, words) == turns
    assert cut_turns((), 1, 1, words) == ()


def test_a_long_history_is_510_tokens_a_short_one_whole() -> None:
    turns = tuple(f" word{number}" * 40 for number in range(20))
    for mode in ("head-tail", "tail"):
        cut = bounded_history(turns, mode)
        assert sum(len(pieces(turn.replace("\n", ""))) for turn in cut) == 510
        assert cut[-1] == turns[-1]
    assert bounded_history(turns, "head-tail")[0] == turns[0]
    assert bounded_history(turns, "none") == ()
    assert bounded_history(("hi", "hello"), "tail") == ("hi", "hello")
    assert bounded_history(bounded_history(turns)) == bounded_history(turns)


def test_a_conversation_ends_with_its_prompt_and_may_leave_out_its_past() -> None:
    past = ("a question", "an answer " * 900)
    assert conversation_text(past, "the prompt").startswith("a question\nan answer")
    assert conversation_text(past, "the prompt").endswith("an answer \nthe prompt")
    assert conversation_text(past, "the prompt", "tail").startswith(("an", " an", " answer"))
    assert conversation_text(past, "the prompt", "none") == "the prompt"
    assert conversation_text((), "") == ""
    with pytest.raises(ValueError, match="expected one of head-tail, tail, none"):
        conversation_text(past, "the prompt", "middle")


def test_a_megabyte_costs_what_a_page_does() -> None:
    turns = ("x" * 1_000_000, "y" * 1_000_000)
    assert sum(map(len, bounded_chars(turns))) == 5120
    assert [set(turn) for turn in bounded_chars(turns)] == [{"x"}, {"y"}]

"""Token pieces: the unit that the replay engine streams and the length predictor counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.token_pieces import pieces

ANY_CHARACTER = st.characters(exclude_categories=())
CLUSTERS = (
    "e\u0301", "\r\n", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "क्षि", "한", "\u1112\u1161\u11ab", "नी", "ก็", "x\u20e3",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "e\u0301\u0302",
)  # fmt: skip


@given(text=st.text(ANY_CHARACTER))
def test_joined_pieces_are_the_text(text: str) -> None:
    parts = pieces(text)
    assert "".join(parts) == text
    assert all(parts)


@given(parts=st.lists(st.sampled_from(CLUSTERS) | st.sampled_from([" ", "a", "Word", "7", ". ", "\n"])))
def test_no_cut_inside_what_a_reader_sees_as_one_character(parts: list[str]) -> None:
    inside: set[int] = set()
    at = 0
    for part in parts:
        if part in CLUSTERS:
            inside.update(range(at + 1, at + len(part)))
        at += len(part)
    at = 0
    for piece in pieces("".join(parts)):
        at += len(piece)
        assert at not in inside


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello world", ["Hello", " world"]),
        ("don't stop", ["don", "'t", " stop"]),
        ("a\n\nb", ["a", "\n\n", "b"]),
        ("  indented", ["  ", "indented"]),
        ("123456", ["123", "456"]),
        ("responsibilities", ["responsibi", "lities"]),
        ("parseHttpRequest", ["parse", "Http", "Request"]),
        ("-" * 20, ["-" * 16, "-" * 4]),
    ],
)
def test_cuts(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_about_four_and_a_half_characters_of_english_a_piece() -> None:
    text = (
        "The engine looks at every request that waits, takes the one that is expected to finish first, and "
        "runs it. Requests which have waited for a long time move forward, so nobody is forgotten. "
    )
    assert 4.0 <= len(text) / len(pieces(text)) <= 5.5


def test_linear_in_the_text() -> None:
    for unit in (" ", "\t ", "\u0301", "a", "\u1100", "\n\r", "_", "🇩"):
        text = unit * 200_000
        assert "".join(pieces(text)) == text

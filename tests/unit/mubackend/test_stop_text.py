from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mubackend.llm_engine.stop_text import StopText
from mubackend.sampling import Sampling

LETTERS = st.text("abc", max_size=4)
PIECES = st.lists(LETTERS, max_size=12)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple)


def run(pieces: list[str], sampling: Sampling) -> tuple[list[str], bool]:
    stops, sent = StopText(sampling), []
    for piece in pieces:
        sent.append(stops.push(piece))
        if stops.stopped:
            return sent, True
    return [*sent, stops.rest()], False


def expected(pieces: list[str], sampling: Sampling) -> tuple[str, bool]:
    """The definition, looking at the whole text after each token."""
    exempt = len("".join(pieces[: sampling.min_tokens]))
    for count in range(sampling.min_tokens + 1, len(pieces) + 1):
        text = "".join(pieces[:count])
        ends = [
            (at + len(stop), index, at)
            for index, stop in enumerate(sampling.stop)
            for at in range(len(text))
            if text.startswith(stop, at) and at + len(stop) > exempt
        ]
        if ends:
            end, _, at = min(ends)
            return text[: end if sampling.include_stop else at], True
    return "".join(pieces), False


@given(PIECES, STOPS, st.integers(0, 4), st.booleans())
def test_it_cuts_where_the_whole_text_says(
    pieces: list[str], stop: tuple[str, ...], least: int, include: bool
) -> None:
    sampling = Sampling(stop=stop, min_tokens=least, include_stop=include)
    sent, stopped = run(pieces, sampling)
    assert ("".join(sent), stopped) == expected(pieces, sampling)


@given(PIECES, STOPS)
def test_it_holds_back_no_more_than_the_start_of_a_stop_string(
    pieces: list[str], stop: tuple[str, ...]
) -> None:
    stops, sent = StopText(Sampling(stop=stop)), ""
    for count, piece in enumerate(pieces, start=1):
        sent += stops.push(piece)
        if stops.stopped:
            return
        held = "".join(pieces[:count])[len(sent) :]
        assert not held or any(text.startswith(held) for text in stop)


def test_without_stop_strings_every_piece_passes_at_once() -> None:
    assert run(["a", "", "b"], Sampling()) == (["a", "", "b", ""], False)

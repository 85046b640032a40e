"""What training sees of a conversation is what serving sees of the same one, sent as a templated text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.predictor.dataset import read_exchanges
from muserve.conversation import TEMPLATES, Conversation, Turn, render_conversation
from muserve.history_features import HISTORY_NAMES, history_features
from muserve.length_query import LengthQuery, count_tokens, read_query
from muserve.token_pieces import pieces

WORDS = st.lists(
    st.sampled_from(["steam", "Why", "is", "1.", "- a", "blue?", "中文", "sky:", "|"]), min_size=1
)
TEXTS = WORDS.map(" ".join).map(lambda text: text.strip())
ROUNDS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(rounds=ROUNDS, template=st.sampled_from(TEMPLATES), repeats=st.sampled_from([1, 40]))
def test_every_round_is_asked_as_it_was_learnt(
    tmp_path_factory: object, rounds: list[tuple[str, str]], template: str, repeats: int
) -> None:
    rounds = [(prompt, " ".join([answer] * repeats)) for prompt, answer in rounds]
    turns = [
        {"from": role, "value": text}
        for pair in rounds
        for role, text in zip(("human", "gpt"), pair, strict=True)
    ]
    path = Path(tmp_path_factory.mktemp("chat"), "chat.json")  # type: ignore[attr-defined]
    path.write_text(json.dumps([{"id": "c_0", "conversations": turns}]), "utf-8")
    for number, exchange in enumerate(read_exchanges(path)):
        said = [
            Turn(r, t) for pair in rounds[:number] for r, t in zip(("user", "assistant"), pair, strict=True)
        ]
        text = render_conversation(Conversation(tuple(said), rounds[number][0]), template)
        served = read_query(text)
        learnt = LengthQuery(
            prompt=exchange.prompt,
            history=exchange.history,
            history_answer_tokens=exchange.history_answer_tokens,
        )
        assert served == learnt
        np.testing.assert_array_equal(history_features(served), history_features(learnt))


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


@given(
    prompt=ANY_TEXT,
    history=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=9),
    counts=st.lists(st.integers(0, 100_000), max_size=8),
)
def test_history_features_are_finite_for_anything(
    prompt: str, history: list[tuple[str, str]], counts: list[int]
) -> None:
    turns = tuple(text for pair in history for text in pair)
    query = LengthQuery(prompt=prompt, history=turns, history_answer_tokens=tuple(counts))
    features = history_features(query)
    assert features.shape == (len(HISTORY_NAMES),)
    assert np.isfinite(features).all()
    assert bool((features == -1.0).all()) == (not counts)


@given(text=ANY_TEXT)
def test_any_text_is_a_query(text: str) -> None:
    query = read_query(text, "opt-1.3b")
    assert query.prompt in text
    assert query.served_model == "opt-1.3b"


def test_the_history_of_a_similar_prompt_is_looked_up() -> None:
    query = LengthQuery(
        prompt="Translate to German: two trains",
        history=("Translate to German: a train", "ein Zug", "Write an essay on steam", "Steam is " * 50),
        history_answer_tokens=(3, 600),
    )
    features = dict(zip(HISTORY_NAMES, history_features(query), strict=True))
    assert features["most_similar_prompts_answer"] < features["last_answer"]
    assert features["similar_prompts_answers"] < features["recent_answers"]


def test_a_long_answer_is_counted_by_its_beginning() -> None:
    answer = "The boiler makes steam. " * 4000
    assert abs(count_tokens(answer) / len(pieces(answer)) - 1.0) < 0.02
    system_only = Conversation((Turn("system", "Be brief."),), "Hi")
    assert read_query(render_conversation(system_only, "chatml")) == LengthQuery(prompt="Hi")

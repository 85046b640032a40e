"""The packaged length predictor: what Triton runs for every request."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mubackend.length_predictor.predictor import DEFAULT_MODEL, LengthPredictor
from muserve.conversation import TEMPLATES, Conversation, Turn, render_conversation
from muserve.errors import InputError
from muserve.length_model import CARD_FILE, MODEL_FILE
from muserve.text_score import TEXT_SCORE_FILE

ANY_CHARACTER = st.characters(exclude_categories=())  # lone surrogates and NUL included
ASCII_TRAPS = st.sampled_from(
    ["", "\x00", "\ud800", "\r\n", "9" * 50, "1-1 words", "'s", "```", "\u200d", "١٢ words"]
)


@pytest.fixture(scope="module")
def predictor() -> LengthPredictor:
    return LengthPredictor.load()


def is_length(tokens: float) -> bool:
    return isinstance(tokens, float) and math.isfinite(tokens) and 1.0 <= tokens <= 1024.0


@given(text=st.text(ANY_CHARACTER) | st.lists(ASCII_TRAPS | st.text(ANY_CHARACTER)).map("".join))
def test_every_string_gets_a_length_and_always_the_same(predictor: LengthPredictor, text: str) -> None:
    tokens = predictor.predict(text)
    assert is_length(tokens)
    assert predictor.predict(text) == tokens


@pytest.mark.parametrize("unit", ["a", " ", "\n", "9 words ", "\ud800", "中", "'", "`", "Write 9 poems. "])
def test_a_megabyte_is_no_harder_than_a_page(predictor: LengthPredictor, unit: str) -> None:
    text = unit * ((1 << 20) // len(unit))
    started = time.thread_time()
    assert is_length(predictor.predict(text))
    assert time.thread_time() - started < 0.05  # CPU time: others' work does not count


def test_reads_the_request_out_of_the_prompt(predictor: LengthPredictor) -> None:
    short = predictor.predict("Translate 'good morning' to French. Answer with one word.")
    long = predictor.predict(
        "Write a detailed 1000 words blog article about the history of the steam engine."
    )
    assert 2 * short < long


def test_the_end_of_a_long_prompt_counts(predictor: LengthPredictor) -> None:
    filler = "It was a quiet day in the valley and nothing moved. " * 2_000
    brief = predictor.predict(filler + "\nIs this text happy or sad? Answer with one word, yes or no.")
    extensive = predictor.predict(filler + "\nWrite a detailed 800 words essay about this text.")
    assert brief < extensive


BRIEF, LENGTHY = "It is blue.", "It is blue because of how light is scattered in the air. " * 40


def chat(answer: str) -> Conversation:
    asked = Turn("user", "Why is the sky blue?")
    return Conversation((asked, Turn("assistant", answer), asked, Turn("assistant", answer)), "And at night?")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_predicted_by_the_answers_so_far(predictor: LengthPredictor, template: str) -> None:
    after = {
        answer: predictor.predict(render_conversation(chat(answer), template)) for answer in (BRIEF, LENGTHY)
    }
    assert 2 * after[BRIEF] < after[LENGTHY]


def test_every_template_gives_the_same_prediction(predictor: LengthPredictor) -> None:
    lengths = {predictor.predict(render_conversation(chat(BRIEF), template)) for template in TEMPLATES}
    assert len(lengths) == 1


def test_a_megabyte_of_chat_is_no_harder_than_a_page(predictor: LengthPredictor) -> None:
    long = Conversation((Turn("user", LENGTHY * 200), Turn("assistant", LENGTHY * 200)), "Go on")
    for template in TEMPLATES:
        text = render_conversation(long, template)
        started = time.thread_time()
        assert is_length(predictor.predict(text))
        assert time.thread_time() - started < 0.05


def test_a_loaded_copy_predicts_the_same(predictor: LengthPredictor, tmp_path: Path) -> None:
    shutil.copytree(DEFAULT_MODEL, tmp_path / "own")
    own = LengthPredictor.load(tmp_path / "own")
    assert own.predict("List 5 ideas") == predictor.predict("List 5 ideas")
    assert own.mean_tokens == predictor.mean_tokens
    assert is_length(own.mean_tokens)


def test_the_package_stays_small() -> None:
    assert sum(file.stat().st_size for file in DEFAULT_MODEL.iterdir()) < 3_000_000


def test_the_card_states_what_was_measured() -> None:
    card = json.loads((DEFAULT_MODEL / CARD_FILE).read_text("utf-8"))
    single, multi = card["metrics"]["single"], card["metrics"]["multi"]
    assert single["kendall_tau"] >= 0.39
    assert single["captured"] >= 0.62
    assert multi["kendall_tau"] >= 0.48
    assert multi["captured"] >= 0.74
    assert card["command"].startswith("muplan predictor train")


def test_features_are_computed_as_in_training(predictor: LengthPredictor) -> None:
    examples = json.loads((DEFAULT_MODEL / CARD_FILE).read_text("utf-8"))["examples"]
    assert len(examples) >= 3
    for prompt, tokens in examples.items():
        assert predictor.predict(prompt) == pytest.approx(tokens, rel=1e-3)


@pytest.mark.parametrize("name", [CARD_FILE, MODEL_FILE, TEXT_SCORE_FILE])
@pytest.mark.parametrize("content", [None, b"", b"not what it should be", b"{}"])
def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path, name: str, content: bytes | None) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(DEFAULT_MODEL, directory)
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(InputError, match="broken"):
        LengthPredictor.load(directory)


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "other"
    shutil.copytree(DEFAULT_MODEL, directory)
    card = json.loads((directory / CARD_FILE).read_text("utf-8"))
    card["features"]["fingerprint"] = "0123456789abcdef"
    (directory / CARD_FILE).write_text(json.dumps(card), "utf-8")
    with pytest.raises(InputError, match="fingerprint"):
        LengthPredictor.load(directory)

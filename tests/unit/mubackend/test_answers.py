from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from mubackend.llm_engine.answers import SYNTHETIC_MEDIAN_TOKENS, Answers, read_answers, tokenizer_split
from mubackend.sampling import Sampling
from muserve.errors import InputError
from muserve.token_pieces import pieces

RECORDED = "One two three. Four five!"
ANSWERS = Answers({hashlib.sha256(b"known").hexdigest(): RECORDED, hashlib.sha256(b"silent").hexdigest(): ""})


def test_a_recorded_answer_comes_back_in_its_token_pieces() -> None:
    assert ANSWERS.tokens("known", Sampling()) == pieces(RECORDED)
    assert ANSWERS.tokens("silent", Sampling()) == [""]


def test_synthetic_answers_depend_on_the_prompt_alone_and_have_chat_lengths() -> None:
    limits = Sampling(max_tokens=100_000)
    answers = [ANSWERS.tokens(f"unknown {number}", limits) for number in range(400)]
    assert answers[7] == Answers({}).tokens("unknown 7", limits)
    median = float(np.median([len(answer) for answer in answers]))
    assert median == pytest.approx(SYNTHETIC_MEDIAN_TOKENS, rel=0.2)
    assert all(pieces("".join(answer)) == answer for answer in answers[:20])


@given(st.text(), st.integers(1, 50), st.integers(0, 50), st.booleans())
def test_lengths_obey_the_limits(prompt: str, most: int, least: int, ignore_eos: bool) -> None:
    least = min(least, most)
    sampling = Sampling(max_tokens=most, min_tokens=least, ignore_eos=ignore_eos)
    for question in (prompt, "known"):
        count = len(ANSWERS.tokens(question, sampling))
        assert max(1, least) <= count <= most
        assert not ignore_eos or count == most


@pytest.mark.parametrize(
    ("stop", "min_tokens", "text", "tokens"),
    [
        (("three",), 0, "One two ", 3),
        (("o thr",), 0, "One tw", 3),
        (("five", "two"), 0, "One ", 2),
        (("One",), 0, "", 1),
        (("One",), 1, RECORDED, 7),
        ((" ",), 2, "One two", 3),
        (("absent",), 0, RECORDED, 7),
    ],
)
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(
    stop: tuple[str, ...], min_tokens: int, text: str, tokens: int
) -> None:
    answer = ANSWERS.tokens("known", Sampling(stop=stop, min_tokens=min_tokens))
    assert ("".join(answer), len(answer)) == (text, tokens)


def test_the_file_is_read_by_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"prompt_sha256": "ab", "answer": "é"}) + "\n", encoding="utf-8")
    assert read_answers(file) == {"ab": "é"}
    file.write_text('{"prompt_sha256": "ab", "answer": "x"}\n{"prompt": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"answers\.jsonl:2: expected a JSON object with the texts"):
        read_answers(file)
    with pytest.raises(InputError, match="expected a readable file"):
        read_answers(tmp_path / "none.jsonl")


def test_a_tokenizer_file_decides_what_a_token_is(tmp_path: Path) -> None:
    tokenizer = Tokenizer(BPE(unk_token=None))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = BpeTrainer(initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the heron and the other heron stand in the water"] * 8, alphabet)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    split = tokenizer_split(tmp_path / "tokenizer.json")
    for text in ("the heron stands", "  a \u00e9t\u00e9 \U0001f426\n", "x", ""):
        assert "".join(split(text)) == text
        assert len(split(text)) == len(tokenizer.encode(text).ids)
    assert split("the heron") == ["the", " heron"]
    answers = Answers({hashlib.sha256(b"known").hexdigest(): "the heron"}, split)
    assert answers.tokens("known", Sampling()) == ["the", " heron"]


def test_a_file_that_is_no_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a tokenizer\.json"):
        tokenizer_split(tmp_path / "tokenizer.json")

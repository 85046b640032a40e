"""The encoder's runtime: what it reads of a prompt, and what it says of broken files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.encoder_score import (
    ENCODER_FILE,
    LONGEST_INPUT_TOKENS,
    TOKENIZER_FILE,
    EncoderScore,
    encoder_fingerprint,
    read_tokenizer,
    token_ids,
)
from muserve.errors import InputError
from muserve.length_query import LengthQuery
from small_encoder import WORDS, small_graph, small_tokenizer, write_small_encoder

_TOKENIZER = small_tokenizer()
_FIRST, _LAST = 2, 3


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderScore:
    return EncoderScore.load(write_small_encoder(tmp_path_factory.mktemp("encoder")))


@given(st.text() | st.lists(st.sampled_from(WORDS), max_size=400).map(" ".join))
def test_any_text_becomes_at_most_128_tokens_between_the_special_ones(text: str) -> None:
    ids = token_ids(_TOKENIZER, text)
    assert 2 <= len(ids) <= LONGEST_INPUT_TOKENS
    assert (ids[0], ids[-1]) == (_FIRST, _LAST)


def test_a_short_prompt_is_kept_whole_and_a_long_one_loses_its_middle() -> None:
    words = ["write", *["a"] * 300, "no"]
    whole = _TOKENIZER.encode(" ".join(words), add_special_tokens=False).ids
    assert token_ids(_TOKENIZER, "write a story") == _TOKENIZER.encode("write a story").ids
    assert token_ids(_TOKENIZER, " ".join(words), 10) == [_FIRST, *whole[:2], *whole[-6:], _LAST]


def test_the_score_is_the_graphs_for_every_string(encoder: EncoderScore) -> None:
    scores = [encoder.score(text) for text in ("", "write a long story", "\ud800", "\x00", "a" * 1_000_000)]
    assert all(map(math.isfinite, scores))
    assert encoder.score("write a long story") == scores[1] != scores[0]
    query = LengthQuery(prompt="write a long story", history=("a", "b"))
    assert encoder.values(query).tolist() == pytest.approx([scores[1]])


def test_the_fingerprint_follows_both_files(tmp_path: Path, encoder: EncoderScore) -> None:
    same, other = write_small_encoder(tmp_path / "same"), write_small_encoder(tmp_path / "other", seed=1)
    assert encoder_fingerprint(same) == encoder.fingerprint != encoder_fingerprint(other)
    (same / TOKENIZER_FILE).write_text(small_tokenizer().to_str() + "\n")
    assert encoder_fingerprint(same) != encoder.fingerprint


@pytest.mark.parametrize("name", [ENCODER_FILE, TOKENIZER_FILE])
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe garbage", b"{}"])
def test_missing_and_broken_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    file = write_small_encoder(tmp_path) / name
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=name):
        EncoderScore.load(tmp_path)


def test_a_graph_of_another_shape_is_refused(tmp_path: Path) -> None:
    file = write_small_encoder(tmp_path) / ENCODER_FILE
    file.write_bytes(small_graph(inputs=("tokens", "attention_mask")).SerializeToString())
    with pytest.raises(InputError, match=r"encoder\.onnx: takes .*tokens.* expected"):
        EncoderScore.load(tmp_path)


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    file = tmp_path / TOKENIZER_FILE
    Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(file))
    with pytest.raises(InputError, match="first and a last token"):
        read_tokenizer(file)

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mubackend.failure import Code, RequestError
from mubackend.llm_engine.request import GenerationRequest, parse_request
from mubackend.sampling import DEFAULT_MAX_TOKENS, Sampling, parse_sampling
from mubackend.tensors import one_number, one_text


def parse(prompt: str = "hi", **changes: Any) -> GenerationRequest:
    arguments: dict[str, Any] = {"stream": False, "exclude_input_in_output": None, "sampling_parameters": ""}
    return parse_request(prompt, **(arguments | changes))


@pytest.mark.parametrize(
    ("stream", "excluded", "prepended"),
    [
        (False, None, True),
        (False, False, True),
        (False, True, False),
        (True, None, False),
        (True, True, False),
    ],
)
def test_the_prompt_is_prepended_as_by_tritons_vllm_backend(
    stream: bool, excluded: bool | None, prepended: bool
) -> None:
    assert parse(stream=stream, exclude_input_in_output=excluded).prepend_prompt is prepended


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "text_input: expected a prompt, got an empty text"),
        (
            {"prompt": "ä" * 600, "max_prompt_bytes": 1000},
            "text_input: expected at most 1000 bytes, got 1200",
        ),
        (
            {"stream": True, "exclude_input_in_output": False},
            "exclude_input_in_output: false is not allowed when streaming",
        ),
        ({"sampling_parameters": "[1]"}, "sampling_parameters: expected a JSON object, got [1]"),
    ],
)
def test_a_bad_request_is_the_clients_mistake_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**changes)
    assert (caught.value.code, str(caught.value)) == (Code.INVALID_ARGUMENT, message)


def test_a_prompt_of_a_megabyte_is_refused_by_default() -> None:
    with pytest.raises(RequestError, match="at most 262144 bytes, got 1048576"):
        parse("x" * 2**20)


def test_sampling_has_defaults() -> None:
    expected = Sampling(max_tokens=DEFAULT_MAX_TOKENS, min_tokens=0, ignore_eos=False, stop=())
    assert parse_sampling("") == parse_sampling("{}") == expected
    assert parse_sampling('{"max_tokens": null}') == expected


def test_how_tokens_are_chosen_is_read_and_what_is_unknown_kept() -> None:
    text = '{"temperature": "0.7", "top_p": 0.9, "top_k": -1, "seed": "3", "min_p": 0.1}'
    expected = Sampling(temperature=0.7, top_p=0.9, top_k=0, seed=3, others={"min_p": 0.1})
    assert parse_sampling(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"temperature": -1}', "temperature: expected a number from 0 to 100, got -1"),
        ('{"temperature": true}', "temperature: expected a number from 0 to 100, got true"),
        ('{"temperature": NaN}', "temperature: expected a number from 0 to 100, got NaN"),
        ('{"top_p": 1.5}', "top_p: expected a number from 0 to 1, got 1.5"),
        ('{"top_p": 0}', "top_p: expected a number above 0, got 0"),
        ('{"top_k": -2}', "top_k: expected a whole number from -1 to 1000000, got -2"),
        ('{"seed": "x"}', 'seed: expected a whole number from 0 to 9223372036854775807, got "x"'),
    ],
)
def test_a_wrong_choice_of_tokens_is_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_sampling(text)
    assert str(caught.value) == f"sampling_parameters: {complaint}"


def test_numbers_may_be_texts_as_in_the_vllm_backends_client() -> None:
    text = '{"max_tokens": "100", "min_tokens": 3.0, "ignore_eos": "True", "stop": "END"}'
    assert parse_sampling(text) == Sampling(max_tokens=100, min_tokens=3, ignore_eos=True, stop=("END",))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": "9" * 5000}, "max_tokens"),
        ({"max_tokens": [5]}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"n": 2}, "n"),
    ],
)
def test_a_wrong_type_names_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(RequestError, match=f"^sampling_parameters: {key}: expected ") as caught:
        parse_sampling(json.dumps(values))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


KEYS = st.sampled_from(["max_tokens", "min_tokens", "n", "stop", "ignore_eos", "other"])
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)


@given(st.text() | st.dictionaries(KEYS, JSON).map(json.dumps))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        sampling = parse_sampling(text)
    except RequestError:
        return
    assert 0 <= sampling.min_tokens <= sampling.max_tokens


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(RequestError, match="not JSON"):
        parse_sampling("[" * 200_000)


@given(st.floats(0.0, 1e6), st.integers(1, 2000), st.integers(0, 2000))
def test_a_prediction_is_brought_within_the_limits(tokens: float, most: int, least: int) -> None:
    least = min(least, most)
    clipped = Sampling(max_tokens=most, min_tokens=least).clip(tokens)
    assert least <= clipped <= most
    assert clipped == tokens or clipped in (least, most)
    assert Sampling(max_tokens=most, ignore_eos=True).clip(tokens) == most


def test_tensors_hold_one_value() -> None:
    assert one_text("text_input", np.array(["grün".encode()], np.object_)) == "grün"
    assert one_number("priority", np.array([2**64 - 1], np.uint64)) == 2**64 - 1
    assert one_number("stream", np.array([True])) is True
    with pytest.raises(RequestError, match="text_input: expected UTF-8, got an invalid byte at position 2"):
        one_text("text_input", np.array([b"ab\xff"], np.object_))
    with pytest.raises(RequestError, match="text_input: expected one value, got 2"):
        one_text("text_input", np.array([b"a", b"b"], np.object_))
    with pytest.raises(RequestError, match="expected a text"):
        one_text("text_input", np.array([1], np.object_))

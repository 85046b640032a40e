"""Chats written out in a template are found again; prose is left alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muserve.conversation import (
    TEMPLATES,
    Conversation,
    Turn,
    parse_conversation,
    render_conversation,
)

MARKS = ("<|", "|>", "[INST]", "[/INST]", "<start_of", "<end_of", "</s>", "<s>", "USER:", "ASSISTANT:",
         "Human:", "User:", "Assistant:", "### ", "<<SYS>>", "<</SYS>>")  # fmt: skip
PHRASES = st.sampled_from(
    [
        "USER",
        "Assistant",
        "###",
        "# Title",
        "INST",
        "<",
        ">",
        "|",
        "\n",
        "\n\n",
        " ",
        "user\n",
        "Input:",
        "中文",
    ]
)
TEXTS = (
    (st.text(max_size=30) | st.lists(PHRASES | st.text(max_size=8), max_size=12).map("".join))
    .map(str.strip)
    .filter(lambda text: text and not any(mark in text for mark in MARKS) and not text.endswith("#"))
)
ANSWERED = st.lists(st.tuples(TEXTS, TEXTS), max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    earlier = [Turn("system", draw(TEXTS))] if draw(st.booleans()) else []
    for prompt, answer in draw(ANSWERED):
        earlier += [Turn("user", prompt), Turn("assistant", answer)]
    return Conversation(tuple(earlier), draw(TEXTS))


@pytest.mark.parametrize("template", TEMPLATES)
@given(chat=conversations())
def test_a_rendered_chat_is_found_again(template: str, chat: Conversation) -> None:
    assert parse_conversation(render_conversation(chat, template)) == chat


@given(
    text=st.text(st.characters(exclude_categories=()))
    | st.lists(PHRASES | st.sampled_from(MARKS)).map("".join)
)
def test_any_text_parses_and_its_prompt_comes_from_it(text: str) -> None:
    chat = parse_conversation(text)
    assert chat.prompt in text
    assert all(turn.text in text for turn in chat.earlier)
    if not any(mark in text for mark in MARKS):
        assert chat == Conversation((), text)


TWO_ROUNDS = Conversation((Turn("user", "Hi"), Turn("assistant", "Hello!")), "Tell me more")
SYSTEM = Turn("system", "You are brief.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (  # Qwen2, with a system prompt and a thinking prefix
            "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nTell me more<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n",
            Conversation((SYSTEM, *TWO_ROUNDS.earlier), TWO_ROUNDS.prompt),
        ),
        (  # Llama 2 chat
            "<s>[INST] <<SYS>>\nYou are brief.\n<</SYS>>\n\nHi [/INST] Hello! </s>"
            "<s>[INST] Tell me more [/INST]",
            Conversation((SYSTEM, *TWO_ROUNDS.earlier), TWO_ROUNDS.prompt),
        ),
        ("<s>[INST] Hi[/INST] Hello!</s>[INST] Tell me more[/INST]", TWO_ROUNDS),  # Mistral
        (  # Llama 3
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nTell me more<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            TWO_ROUNDS,
        ),
        (  # Gemma
            "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>\n"
            "<start_of_turn>user\nTell me more<end_of_turn>\n<start_of_turn>model\n",
            TWO_ROUNDS,
        ),
        (  # Phi-3
            "<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
            "<|user|>\nTell me more<|end|>\n<|assistant|>\n",
            TWO_ROUNDS,
        ),
        ("USER: Hi ASSISTANT: Hello!</s>USER: Tell me more ASSISTANT:", TWO_ROUNDS),
        ("### Human: Hi\n### Assistant: Hello!\n### Human: Tell me more\n### Assistant:", None),
        ("### Instruction:\nTell me more\n\n### Response:\n", Conversation((), "Tell me more")),
        ("\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Tell me more\n\nAssistant:", TWO_ROUNDS),
    ],
)
def test_templates_as_their_models_write_them(text: str, expected: Conversation | None) -> None:
    assert parse_conversation(text) == (TWO_ROUNDS if expected is None else expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What does <|im_start|>user mean in ChatML?",
        "Why does my template end in [/INST]?",
        "<|im_start|>user\nunclosed",
        "<|im_start|>assistant\n",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n<|im_end|>\n",
        "Go on with this dialogue.\nHuman: Hi\nAssistant: Hello! How are you?",
        "Is this right?\nAssistant: yes\nAssistant:",
        "The USER: field and the ASSISTANT: field must both be filled in",
        "# Notes\n\n### Instruction: none\n\nPlease summarise the above.",
        "def f(x):\n    return x[INST]",
    ],
)
def test_prose_about_templates_is_one_prompt(text: str) -> None:
    assert parse_conversation(text) == Conversation((), text)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("unit", ["word ", "\n", "### ", "<|im_start|>", "<|user|>", "USER: ", "Human: a\n"])
def test_a_megabyte_takes_milliseconds(template: str, unit: str) -> None:
    chat = Conversation((Turn("user", "Hi"), Turn("assistant", unit * 1000)), unit * (1_000_000 // len(unit)))
    text = render_conversation(chat, template)
    started = time.thread_time()
    parse_conversation(text)
    assert time.thread_time() - started < 0.05  # CPU time, on a machine that others use too

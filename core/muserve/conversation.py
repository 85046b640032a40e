"""The turns of a chat, found again in the one text that a client sends.

Clients of a language model's endpoint send a whole chat as a single prompt, written out in the template of
the served model. ``parse_conversation`` undoes the templates in common use. It is conservative: a text that
does not keep to a template from its first mark to its last is one prompt, as ordinary prose is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, Role] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "tool": "user", "ipython": "user", "function": "user",
    "[inst]": "user", "instruction": "user",
    "assistant": "assistant", "model": "assistant", "[/inst]": "assistant", "response": "assistant",
}  # fmt: skip
MOST_TURNS = 1_000
"""A text with more of one kind of mark than this is taken for one prompt."""
_BLANK_CHARS = 64
_LLAMA2_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said; ``text`` without the white space around it."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """``earlier`` turns, oldest first, and the ``prompt`` that is to be answered now."""

    earlier: tuple[Turn, ...]
    prompt: str

    @property
    def previous_answers(self) -> tuple[str, ...]:
        """What the assistant has said so far, oldest first."""
        return tuple(turn.text for turn in self.earlier if turn.role == "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """How a chat is written out.

    ``mark`` matches the start of each turn, its group 1 names the speaker; it begins with one of ``literals``
    (searching for those is what keeps a megabyte cheap). ``end`` closes a turn. A ``plain`` template's marks
    are words that prose may hold too: there the turns must alternate and the text must end in an assistant's
    mark; text before the first mark is a system turn. The others must begin with a mark.
    """

    literals: tuple[str, ...]
    mark: re.Pattern[str]
    end: re.Pattern[str] = re.compile(r"\s*\Z")
    plain: bool = False
    system: str
    user: str
    assistant: str
    generation: str


def _closed(*marks: str) -> re.Pattern[str]:
    return re.compile(rf"\s*(?:{'|'.join(map(re.escape, marks))})\s*\Z")


_SENTENCES_END = re.compile(r"(?:</s>|<\|endoftext\|>|<\|end_of_text\|>)?\s*\Z")
_TEMPLATES = {
    "chatml": _Template(
        literals=("<|im_start|>",),
        mark=re.compile(r"<\|im_start\|>(system|developer|user|assistant|tool)\n"),
        end=_closed("<|im_end|>"),
        system="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n{}<|im_end|>\n",
        assistant="<|im_start|>assistant\n{}<|im_end|>\n",
        generation="<|im_start|>assistant\n",
    ),
    "llama-3": _Template(
        literals=("<|start_header_id|>",),
        mark=re.compile(r"<\|start_header_id\|>(system|user|assistant|ipython|tool)<\|end_header_id\|>"),
        end=_closed("<|eot_id|>", "<|eom_id|>"),
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama-2": _Template(
        literals=("[INST]", "[/INST]"),
        mark=re.compile(r"(\[/?INST\])"),
        end=re.compile(r"\s*(?:</s>)?\s*(?:<s>)?\s*\Z"),
        system="",
        user="<s>[INST] {} ",
        assistant="[/INST] {} </s>",
        generation="[/INST]",
    ),
    "gemma": _Template(
        literals=("<start_of_turn>",),
        mark=re.compile(r"<start_of_turn>(system|user|model)\n"),
        end=_closed("<end_of_turn>"),
        system="<start_of_turn>system\n{}<end_of_turn>\n",
        user="<start_of_turn>user\n{}<end_of_turn>\n",
        assistant="<start_of_turn>model\n{}<end_of_turn>\n",
        generation="<start_of_turn>model\n",
    ),
    "zephyr": _Template(
        literals=("<|system|>", "<|user|>", "<|assistant|>"),
        mark=re.compile(r"(?:^|(?<=[\n>]))<\|(system|user|assistant)\|>\n?"),
        end=re.compile(r"\s*(?:</s>|<\|end\|>|<\|endoftext\|>)?\s*\Z"),
        system="<|system|>\n{}</s>\n",
        user="<|user|>\n{}</s>\n",
        assistant="<|assistant|>\n{}</s>\n",
        generation="<|assistant|>\n",
    ),
    "vicuna": _Template(
        literals=("USER:", "ASSISTANT:"),
        mark=re.compile(r"(?:^|(?<=[\s>]))(USER|ASSISTANT):"),
        end=_SENTENCES_END,
        plain=True,
        system="{} ",
        user="USER: {} ",
        assistant="ASSISTANT: {}</s>",
        generation="ASSISTANT:",
    ),
    "alpaca": _Template(
        literals=("### ",),
        mark=re.compile(r"^### (Instruction|Response|User|Human|Assistant):", re.MULTILINE),
        end=_SENTENCES_END,
        plain=True,
        system="{}\n\n",
        user="### Instruction:\n{}\n\n",
        assistant="### Response:\n{}\n\n",
        generation="### Response:\n",
    ),
    "human-assistant": _Template(
        literals=("Human:", "User:", "Assistant:"),
        mark=re.compile(r"^(Human|User|Assistant):", re.MULTILINE),
        end=_SENTENCES_END,
        plain=True,
        system="{}\n\n",
        user="Human: {}\n\n",
        assistant="Assistant: {}\n\n",
        generation="Assistant:",
    ),
}
TEMPLATES: tuple[str, ...] = tuple(_TEMPLATES)
"""Names of the templates that are understood and can be written."""
_BEGINNING = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)?\s*")


def parse_conversation(text: str) -> Conversation:
    """The chat written out in ``text``; a text in no known template is one prompt without history.

    Never raises. Time grows with ``len(text)``, by about a millisecond a megabyte of ordinary text.
    """
    for template in _TEMPLATES.values():
        found = _parse(text, template)
        if found is not None:
            return found
    return Conversation((), text)


def render_conversation(conversation: Conversation, template: str) -> str:
    """``conversation`` as a client would send it, ending in the mark after which the model answers.

    ``parse_conversation`` gives it back if no turn holds a mark of a template. Raises KeyError for a name
    that is not in TEMPLATES.
    """
    forms = _TEMPLATES[template]
    turns = [*conversation.earlier, Turn("user", conversation.prompt)]
    if template == "llama-2":
        turns = _system_within_user(turns)
    form = {"system": forms.system, "user": forms.user, "assistant": forms.assistant}
    return "".join(form[turn.role].replace("{}", turn.text) for turn in turns) + forms.generation


def _system_within_user(turns: Sequence[Turn]) -> list[Turn]:
    if turns[0].role != "system":
        return list(turns)
    system, user, *others = turns
    return [Turn("user", f"<<SYS>>\n{system.text}\n<</SYS>>\n\n{user.text}"), *others]


def _parse(text: str, template: _Template) -> Conversation | None:
    if not (_ends_in_answer(text, template) if template.plain else _begins_with_mark(text, template)):
        return None
    marks = _marks(text, template)
    if not marks:
        return None
    turns: list[Turn] = []
    preamble = text[: marks[0].start()].strip() if template.plain else ""
    if preamble:
        turns.append(Turn("system", preamble))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    last = len(marks) - 1
    for place, (mark, end) in enumerate(zip(marks, ends, strict=True)):
        role = _ROLES[mark[1].lower()]
        body = text[mark.end() : end]
        closing = template.end.search(body, max(len(body) - _BLANK_CHARS, 0))
        if place == last and role == "assistant":  # what the model is to go on from
            if template.plain and body.strip():
                return None
            break
        if closing is None:
            return None
        body = body[: closing.start()]
        if template is _TEMPLATES["llama-2"] and role == "user" and (system := _LLAMA2_SYSTEM.match(body)):
            turns.append(Turn("system", system[1].strip()))
            body = body[system.end() :]
        turns.append(Turn(role, body.strip()))
    return _conversation(turns, template.plain)


def _conversation(turns: list[Turn], alternating: bool) -> Conversation | None:
    if not turns or turns[-1].role != "user" or not turns[-1].text:
        return None
    if alternating:
        spoken = [turn.role for turn in turns if turn.role != "system"]
        if any(role != ("user", "assistant")[place % 2] for place, role in enumerate(spoken)):
            return None
    return Conversation(tuple(turns[:-1]), turns[-1].text)


def _marks(text: str, template: _Template) -> list[re.Match[str]]:
    """The marks of ``text`` in order; none when there are too many."""
    places: list[int] = []
    for literal in template.literals:
        found = list(islice(_places(text, literal), MOST_TURNS + 1))
        if len(found) > MOST_TURNS:
            return []
        places += found
    return [mark for place in sorted(places) if (mark := template.mark.match(text, place))]


def _places(text: str, literal: str) -> Iterator[int]:
    place = text.find(literal)
    while place >= 0:
        yield place
        place = text.find(literal, place + len(literal))


def _begins_with_mark(text: str, template: _Template) -> bool:
    beginning = _BEGINNING.match(text, 0, _BLANK_CHARS)
    return template.mark.match(text, beginning.end() if beginning else 0) is not None


def _ends_in_answer(text: str, template: _Template) -> bool:
    tail = text[-_BLANK_CHARS:]
    marks = _marks(tail, template)
    return bool(marks) and _ROLES[marks[-1][1].lower()] == "assistant" and not tail[marks[-1].end() :].strip()

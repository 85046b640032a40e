"""Messages as the one text that a language model continues."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muplan.openai.failure import ApiError
from muserve.errors import InputError

Message = dict[str, str]

_CHATML_END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class ChatForm:
    """``render`` writes messages out and opens the assistant's turn; ``stop`` ends that turn."""

    name: str
    render: Callable[[Sequence[Message]], str]
    stop: tuple[str, ...] = ()


def chatml(messages: Sequence[Message]) -> str:
    """The form for a model without a template of its own (ChatML, as Qwen's models are trained on).

    The length predictor finds earlier answers again in it.
    """
    turns = [f"<|im_start|>{message['role']}\n{message['content']}{_CHATML_END}\n" for message in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


CHATML = ChatForm("chatml", chatml, (_CHATML_END,))


def read_chat_form(file: Path) -> ChatForm:
    """The model's own template in ``file`` (see ``muplan.repository.chat_template``); ChatML without one.

    The template runs in Jinja's sandbox. InputError when it does not compile, or Jinja is not installed.
    """
    if not file.is_file():
        return CHATML
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise InputError(
            f"{file}: the model's chat template needs Jinja: pip install 'muserve[openai]'"
        ) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    try:
        document = json.loads(file.read_bytes())
        template = environment.from_string(document["template"])
    except (OSError, ValueError, KeyError, TypeError, TemplateError) as error:
        raise InputError(f"{file}: expected a chat template that Jinja compiles: {error}") from error
    tokens = {key: document.get(key, "") for key in ("bos_token", "eos_token")}

    def render(messages: Sequence[Message]) -> str:
        try:
            text: str = template.render(messages=list(messages), add_generation_prompt=True, **tokens)
        except Exception as error:  # whatever a template does with messages it was not written for
            raise ApiError.invalid(f"the model's chat template: {error}", param="messages") from error
        return text

    return ChatForm("model's own", render)


def _raise_exception(message: str) -> Any:
    raise ValueError(message)


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)

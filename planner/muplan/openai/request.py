"""Bodies of ``/v1/chat/completions`` and ``/v1/completions``, checked.

Parameters: https://platform.openai.com/docs/api-reference/chat/create and .../completions/create. Taken as
well are those that vLLM's server adds. What would change the answer and cannot be done is refused, what
would not (``user``, ``metadata``, ``store``, ...) is ignored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muplan.openai.chat_form import ChatForm, Message
from muplan.openai.failure import ApiError

CHAT_MAX_TOKENS = 1024
"""Longest chat answer when the request sets no limit; the engine's own."""
COMPLETION_MAX_TOKENS = 16
"""The same for a completion: OpenAI's."""

_SAMPLING = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos",
)  # fmt: skip
# Value that asks for nothing, by the name of what cannot be done.
_UNSUPPORTED: dict[str, Sequence[Any]] = {
    "n": (1,), "best_of": (1,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "audio": (), "modalities": (["text"],),
    "response_format": ({"type": "text"},), "prediction": (), "web_search_options": (),
}  # fmt: skip

Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Part(_Body):
    type: Literal["text"]
    text: str


class _Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def plain(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class _StreamOptions(_Body):
    include_usage: bool = False


class _Request(_Body):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Tokens | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None


class _Chat(_Request):
    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None


class _Completion(_Request):
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: bool | None = None


R = TypeVar("R", bound=_Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A checked request: ``prompt`` goes to the model, ``opening`` is what the answer starts with (echo)."""

    model: str
    prompt: str
    opening: str
    sampling: str
    max_tokens: int
    stream: bool
    include_usage: bool


def model_of(body: bytes) -> tuple[dict[str, Any], str]:
    """The JSON object in ``body`` and the model that it names; ApiError when there is none."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise ApiError.invalid("expected a body of JSON") from error
    if not isinstance(document, dict):
        raise ApiError.invalid("expected a body with a JSON object")
    model = document.get("model")
    if not isinstance(model, str):
        raise ApiError.invalid("model: expected the name of a model", param="model")
    return document, model


def chat_ask(document: dict[str, Any], form: ChatForm) -> Ask:
    """A chat; ApiError names the parameter that is wrong."""
    chat = _checked(_Chat, document)
    most = chat.max_completion_tokens or chat.max_tokens or CHAT_MAX_TOKENS
    prompt = form.render([message.plain() for message in chat.messages])
    return _ask(chat, prompt, "", most, form.stop)


def completion_ask(document: dict[str, Any]) -> Ask:
    """A completion; ApiError names the parameter that is wrong."""
    completion = _checked(_Completion, document)
    prompt = completion.prompt if isinstance(completion.prompt, str) else completion.prompt[0]
    opening = prompt if completion.echo else ""
    return _ask(completion, prompt, opening, completion.max_tokens or COMPLETION_MAX_TOKENS, ())


def _ask(request: _Request, prompt: str, opening: str, most: int, own_stop: tuple[str, ...]) -> Ask:
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    values = request.model_dump(include=set(_SAMPLING), exclude_none=True) | {
        key: value for key, value in (request.model_extra or {}).items() if key in _SAMPLING
    }
    sampling = {"max_tokens": most, "stop": [text for text in (*stop, *own_stop) if text], **values}
    if not sampling["stop"]:
        del sampling["stop"]
    return Ask(
        model=request.model,
        prompt=prompt,
        opening=opening,
        sampling=json.dumps(sampling),
        max_tokens=most,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def _checked(kind: type[R], document: dict[str, Any]) -> R:
    for key, harmless in _UNSUPPORTED.items():
        value = document.get(key)
        if value is not None and value not in harmless:
            raise ApiError.invalid(f"{key}: not supported here, got {_shown(value)}", param=key)
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        complaint = error.errors()[-1]  # of a choice of types, the one that got furthest
        # Beside keys and positions the place names the types of a choice.
        keys = [part for part in map(str, complaint["loc"]) if part != "str" and "[" not in part]
        raise ApiError.invalid(f"{'.'.join(keys)}: {complaint['msg']}", param=keys[0]) from error


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."

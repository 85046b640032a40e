"""The formats of chat data, recognised object by object, as one kind of record.

- ShareGPT: ``{"id": "abc_0", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", ...}]}``;
  ``abc_1`` is a later piece of the conversation ``abc_0``.
- LMSYS-Chat-1M: ``{"conversation_id": "...", "model": "...", "conversation": [{"role", "content"}, ...]}``.
- OpenAI chat: ``{"messages": [...]}`` with the answers among them; or a log's request and response:
  ``{"request": {"model", "messages", "max_tokens"}, "response": {"choices": [...], "usage": {...}}}``,
  where the two may also be one object, and each may have its content under ``body``.
- muServe request log: ``{"prompt" or "messages", "output" and/or "output_tokens", "max_tokens", "model",
  "finish_reason", "conversation_id"}``, one line a request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

HUMAN, ASSISTANT, SYSTEM, OTHER = "human", "assistant", "system", "other"
_ROLES = {
    **dict.fromkeys(("human", "user"), HUMAN),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
_PIECE = re.compile(r"(.+)_(\d+)", re.DOTALL)
_FINISHED = frozenset(
    {"stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls", "function_call", "tool_use"}
)

Turn = tuple[str, str]
"""Who (HUMAN, ASSISTANT, SYSTEM, OTHER) and what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A conversation, or one request of a log, as its file has it.

    ``identity``: the conversation's id without its piece number, "" if it has none. ``later_piece``: the
    turns before the first one here are lost. ``one_request``: only the last turn is a recorded answer,
    the turns before it were its input. ``answer_tokens`` (None: to be counted) and ``cut`` (ended by a
    limit, not by the LLM) are that last answer's.
    """

    identity: str
    later_piece: bool
    turns: tuple[Turn, ...]
    served_model: str
    one_request: bool = False
    answer_tokens: int | None = None
    cut: bool = False


def recognise(value: dict[str, Any]) -> Recorded | None:
    """The record in ``value``, a JSON object or a row of a table; None if it is in no known format."""
    if "response" in value or "choices" in value:
        return _openai_log(value)
    if "output" in value or "output_tokens" in value:
        return _request_log(value)
    for key in ("conversations", "conversation", "messages"):
        turns = value.get(key)
        if isinstance(turns, list):
            identity, later_piece = _identity(value)
            return Recorded(
                identity=identity,
                later_piece=later_piece,
                turns=_turns(turns),
                served_model=_text(value.get("model")),
            )
    return None


def _openai_log(value: dict[str, Any]) -> Recorded | None:
    request = _body(value.get("request", value))
    response = _body(value.get("response", value))
    messages, choices = request.get("messages"), response.get("choices")
    if not isinstance(messages, list) or not isinstance(choices, list) or not choices:
        return None
    choice = _body(choices[0])
    usage = _body(response.get("usage"))
    # With several choices the usage is their sum, and says nothing of the first one.
    tokens = _count(usage.get("completion_tokens")) if len(choices) == 1 else None
    limit = request.get("max_completion_tokens", request.get("max_tokens"))
    return Recorded(
        identity=_identity(value)[0],
        later_piece=False,
        turns=(*_turns(messages), (ASSISTANT, _content(_body(choice.get("message")).get("content")))),
        served_model=_text(response.get("model", request.get("model"))),
        one_request=True,
        answer_tokens=tokens,
        cut=_is_cut(choice.get("finish_reason"), tokens, limit),
    )


def _request_log(value: dict[str, Any]) -> Recorded | None:
    messages, prompt, output = value.get("messages"), value.get("prompt"), value.get("output")
    if isinstance(messages, list):
        turns = _turns(messages)
    elif isinstance(prompt, str):
        turns = ((HUMAN, _text(prompt)),)
    else:
        return None
    tokens = _count(value.get("output_tokens"))
    if tokens is None and not isinstance(output, str):
        return None
    return Recorded(
        identity=_identity(value)[0],
        later_piece=False,
        turns=(*turns, (ASSISTANT, _text(output))),
        served_model=_text(value.get("model")),
        one_request=True,
        answer_tokens=tokens,
        cut=_is_cut(value.get("finish_reason"), tokens, value.get("max_tokens")),
    )


def _identity(value: dict[str, Any]) -> tuple[str, bool]:
    """The conversation's id, and whether ``value`` is a later piece of it (only ShareGPT numbers pieces)."""
    identity = value.get("conversation_id", value.get("id") if "conversations" in value else None)
    identity = "" if identity is None else _text(str(identity))
    numbered = _PIECE.fullmatch(identity) if "conversations" in value else None
    return (numbered[1], int(numbered[2]) > 0) if numbered else (identity, False)


def _turns(turns: list[Any]) -> tuple[Turn, ...]:
    return tuple(_turn(turn) for turn in turns)


def _turn(turn: object) -> Turn:
    if not isinstance(turn, dict):
        return OTHER, ""
    role = _ROLES.get(str(turn.get("from", turn.get("role"))).lower(), OTHER)
    return role, _content(turn.get("value", turn.get("content")))


def _content(content: object) -> str:
    """A message's text: a string, or OpenAI's list of typed parts."""
    if isinstance(content, list):
        return "\n".join(_text(_body(part).get("text")) for part in content)
    return _text(content)


def _is_cut(finish_reason: object, tokens: int | None, limit: object) -> bool:
    """Without a reason an answer counts as cut when it is as long as its request allowed."""
    if isinstance(finish_reason, str):
        return finish_reason.lower() not in _FINISHED
    most = _count(limit)
    return tokens is not None and most is not None and tokens >= most


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _body(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    body = value.get("body")
    return body if isinstance(body, dict) else value


def _text(value: object) -> str:
    # JSON can spell half a surrogate pair, which no client could send on as UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""

"""Response bodies of the OpenAI interface, whole and as chunks of a stream. Pure.

Shapes: https://platform.openai.com/docs/api-reference/chat/object, .../chat-streaming,
.../completions/object, .../models/object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int

    def body(self) -> dict[str, int]:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What every body of one answer has in common. ``chat``: of a chat, else of a completion."""

    id: str
    created: int
    model: str
    chat: bool

    def whole(self, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
        """The answer in one body."""
        if self.chat:
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text, "refusal": None}}
        else:
            choice = {"text": text}
        choice |= {"index": 0, "logprobs": None, "finish_reason": finish_reason}
        kind = "chat.completion" if self.chat else "text_completion"
        return self._body(kind, [choice]) | {"usage": usage.body()}

    def opening(self) -> dict[str, Any] | None:
        """The chunk that starts a chat's stream; a completion has none."""
        return self._chunk({"role": "assistant", "content": ""}) if self.chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk({"content": text} if self.chat else text)

    def end(self, finish_reason: str) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        return self._chunk({} if self.chat else "", finish_reason)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last chunk of a stream that was asked to include it."""
        return self._body(self._chunk_kind, []) | {"usage": usage.body()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, content: Any, finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta" if self.chat else "text": content}
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        return self._body(self._chunk_kind, [choice])

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def model_body(name: str, created: int) -> dict[str, Any]:
    """One entry of ``/v1/models``."""
    return {"id": name, "object": "model", "created": created, "owned_by": "muserve"}

"""One accepted request on its way through the engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from mubackend.failure import Code
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.request import GenerationRequest


class Reply(Protocol):
    """The way back to one client. Used by one thread at a time, never again after a final call."""

    def send(self, text: str, *, final: bool) -> None:
        """Send one response."""

    def fail(self, code: Code, message: str) -> None:
        """Send an error as the last response."""

    def cancelled(self) -> bool:
        """Whether the client has gone; costs a message to Triton."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A request, its reply, and how far it has come.

    ``number`` counts requests in order of arrival. ``sent`` tokens of the answer have been generated.
    ``predicted_tokens`` is 0 while unknown. ``expires_s`` is when its time is up, ``started_s`` when it
    got its slot (monotonic clock). From the waiting line: ``key_ms``, by which it was ordered; ``wait_ms``
    until it got a slot; ``promoted``: before a request that was predicted to be shorter.
    """

    request: GenerationRequest
    reply: Reply
    number: int
    arrival_ms: int
    undecided_until_s: float
    priority: int | None = None
    predicted_tokens: float = 0.0
    sent: int = 0
    unsent: list[str] = field(default_factory=list)
    ended: bool = False
    check_cancelled_s: float = 0.0
    expires_s: float = math.inf
    started_s: float = 0.0
    service_ms: float = 0.0
    key_ms: float | None = None
    wait_ms: float = 0.0
    promoted: bool = False

    def take(self, prediction: Prediction) -> None:
        """Use a prediction; the arrival is the earlier of the two known ones."""
        self.priority = prediction.priority
        self.predicted_tokens = prediction.predicted_tokens
        self.arrival_ms = min(self.arrival_ms, prediction.arrival_ms)

    def deliver(self, text: str, tokens: int, *, final: bool) -> None:
        """Send what the client should get now of ``tokens`` more tokens; ``final`` ends the job."""
        self.sent += tokens
        if self.request.stream:
            self.ended = final
            self.reply.send(text, final=final)
            return
        self.unsent.append(text)
        if final:
            self.ended = True
            start = self.request.prompt if self.request.prepend_prompt else ""
            self.reply.send(start + "".join(self.unsent), final=True)

    def fail(self, code: Code, message: str) -> None:
        """End the job with an error, unless it has ended."""
        if not self.ended:
            self.ended = True
            self.reply.fail(code, message)

"""What the client saw of each request."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.load.schedule import PlannedRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The fate of one request; all times in seconds since the load's start.

    ``completed_s`` is when the last response with content reached the client, and None when the
    request failed; ``error`` then says why, else it is empty.
    """

    request: PlannedRequest
    sent_s: float
    first_response_s: float | None
    completed_s: float | None
    responses: int
    error: str

    @property
    def lateness_s(self) -> float:
        """How long after its planned time the client managed to send the request."""
        return self.sent_s - self.request.planned_s

    @property
    def jct_s(self) -> float | None:
        """Completion minus *planned* arrival, so a sender that falls behind cannot flatter the server."""
        if self.completed_s is None:
            return None
        return self.completed_s - self.request.planned_s

    def met(self, slo_ms: float) -> bool:
        """Whether the request was answered within ``slo_ms``; a failed request was not."""
        jct_s = self.jct_s
        return jct_s is not None and jct_s * 1000 <= slo_ms

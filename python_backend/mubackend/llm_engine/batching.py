"""Which waiting requests may join the running ones: no, dynamic or continuous batching.

The three ways of Qiu et al. 2024 ("Efficient Interactive LLM Serving with Proxy Model-based Sequence Length
Prediction"). They differ in nothing but admission: in each of them an answer is sent as it is generated and
ends when it is complete, which is the most favourable reading of dynamic batching.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Batching(StrEnum):
    """``none``: one request at a time. ``dynamic``: a batch, formed by size or delay, runs to its end before
    the next one begins. ``continuous``: a request takes any slot that becomes free between two steps.
    """

    NONE = "none"
    DYNAMIC = "dynamic"
    CONTINUOUS = "continuous"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule:
    """Admission to ``slots`` slots; ``delay_ms`` is how long dynamic batching waits for a full batch."""

    batching: Batching = Batching.CONTINUOUS
    slots: int
    delay_ms: float = 0.0

    def room(self, running: int, waiting: int, waited_ms: float) -> int:
        """How many of ``waiting`` requests to admit now, the oldest of which has ``waited_ms``."""
        if self.batching is Batching.NONE:
            return min(waiting, max(0, 1 - running))
        if self.batching is Batching.DYNAMIC:
            due = waiting >= self.slots or waited_ms >= self.delay_ms
            return min(waiting, self.slots) if due and not running else 0
        return min(waiting, max(0, self.slots - running))

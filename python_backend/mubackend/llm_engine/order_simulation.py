"""Independent slots behind one discipline, event by event: to compare orders without a server.

No preemption, no batching effects: a request holds its slot for its own service time. The disciplines are
those that serve, so what is proved and measured here is about the product's own code.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mubackend.llm_engine.disciplines import Discipline, Ticket


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request comes, how long it holds a slot, and how long it was predicted to (ms)."""

    at_ms: float
    service_ms: float
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Served:
    """``backlog_ms``: true work ahead at arrival over the slots, 0 where a slot was free.

    ``key_ms``: what the discipline made of the request.
    """

    wait_ms: float
    backlog_ms: float
    key_ms: float


def serve(arrivals: Sequence[Arrival], discipline: Discipline[int], slots: int = 1) -> list[Served]:
    """Serve all of ``arrivals``, which are in order of time."""
    running: list[tuple[float, float, int]] = []  # end, predicted end, number
    keys, backlogs, waits = [0.0] * len(arrivals), [0.0] * len(arrivals), [0.0] * len(arrivals)
    waiting_ms = predicted_waiting_ms = predicted_sum_ms = 0.0
    coming = 0
    while coming < len(arrivals) or running:
        arrives_ms = arrivals[coming].at_ms if coming < len(arrivals) else math.inf
        ends_ms = running[0][0] if running else math.inf
        now_ms = min(arrives_ms, ends_ms)
        if ends_ms <= arrives_ms:
            heapq.heappop(running)
        else:
            arrival = arrivals[coming]
            predicted_sum_ms += arrival.predicted_ms
            predicted_backlog_ms = 0.0
            if len(running) == slots:
                left_ms = sum(end_ms - now_ms for end_ms, _, _ in running)
                predicted_left_ms = sum(max(0.0, end_ms - now_ms) for _, end_ms, _ in running)
                backlogs[coming] = (waiting_ms + left_ms) / slots
                predicted_backlog_ms = (predicted_waiting_ms + predicted_left_ms) / slots
            ticket = Ticket(
                number=coming,
                arrival_ms=now_ms,
                service_ms=arrival.predicted_ms,
                backlog_ms=predicted_backlog_ms,
                mean_service_ms=predicted_sum_ms / (coming + 1),
            )
            keys[coming] = discipline.push(coming, ticket)
            waiting_ms += arrival.service_ms
            predicted_waiting_ms += arrival.predicted_ms
            coming += 1
        while discipline and len(running) < slots:
            chosen = discipline.pop(now_ms)
            arrival = arrivals[chosen]
            waits[chosen] = now_ms - arrival.at_ms
            # Exactly zero when nobody waits, whatever rounding has left.
            waiting_ms = waiting_ms - arrival.service_ms if discipline else 0.0
            predicted_waiting_ms = predicted_waiting_ms - arrival.predicted_ms if discipline else 0.0
            heapq.heappush(running, (now_ms + arrival.service_ms, now_ms + arrival.predicted_ms, chosen))
    return [Served(*values) for values in zip(waits, backlogs, keys, strict=True)]

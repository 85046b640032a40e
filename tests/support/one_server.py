"""Many slots and one waiting line, event by event: what the proofs about the orders speak of."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from mubackend.llm_engine.disciplines import Discipline, Ticket


@dataclass(frozen=True)
class Arrival:
    at_ms: float
    service_ms: float
    predicted_ms: float


@dataclass(frozen=True)
class Served:
    """``backlog_ms``: true work ahead at arrival over the slots, 0 where a slot was free."""

    wait_ms: float
    backlog_ms: float
    key_ms: float


def serve(arrivals: Sequence[Arrival], discipline: Discipline[int], slots: int = 1) -> list[Served]:
    """Serve all without preemption; predicted backlogs are exact where predictions are."""
    running: list[tuple[float, int]] = []
    keys, backlogs, waits = [0.0] * len(arrivals), [0.0] * len(arrivals), [0.0] * len(arrivals)
    started_ms: dict[int, float] = {}
    coming, predicted_sum = 0, 0.0
    while coming < len(arrivals) or running:
        arrives_ms = arrivals[coming].at_ms if coming < len(arrivals) else float("inf")
        ends_ms = running[0][0] if running else float("inf")
        now_ms = min(arrives_ms, ends_ms)
        if ends_ms <= arrives_ms:
            heapq.heappop(running)
        else:
            arrival = arrivals[coming]
            predicted_sum += arrival.predicted_ms
            true_ms = guessed_ms = 0.0
            if len(running) == slots:
                waiting = list(discipline)
                true_ms = sum(arrivals[i].service_ms for i in waiting) + sum(
                    end_ms - now_ms for end_ms, _ in running
                )
                guessed_ms = sum(arrivals[i].predicted_ms for i in waiting) + sum(
                    max(0.0, started_ms[i] + arrivals[i].predicted_ms - now_ms) for _, i in running
                )
            backlogs[coming] = true_ms / slots
            keys[coming] = discipline.push(
                coming,
                Ticket(
                    number=coming,
                    arrival_ms=now_ms,
                    service_ms=arrival.predicted_ms,
                    backlog_ms=guessed_ms / slots,
                    mean_service_ms=predicted_sum / (coming + 1),
                ),
            )
            coming += 1
        while discipline and len(running) < slots:
            chosen = discipline.pop(now_ms)
            waits[chosen] = now_ms - arrivals[chosen].at_ms
            started_ms[chosen] = now_ms
            heapq.heappush(running, (now_ms + arrivals[chosen].service_ms, chosen))
    return [Served(*values) for values in zip(waits, backlogs, keys, strict=True)]

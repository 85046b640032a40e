"""The waiting side of an engine: which request gets the next free slot.

A request with a prediction waits in the order of the engine's discipline, within its traffic class; one
without waits for ``decide``. When a slot would stay empty otherwise the oldest undecided one takes it;
when no prediction comes in time it waits as if it were very short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.class_lines import ClassLines
from mubackend.llm_engine.disciplines import Ticket
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.queue import PriorityQueue
from mubackend.llm_engine.settings import EngineSettings
from mubackend.metrics import Reason
from muserve.queue_order import Order

_PACE_MEMORY = 0.99
_PACE_PRIOR_JOBS = 10.0
_MEAN_MEMORY_JOBS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The running side as a new request finds it: free slots, and predicted work left in the others."""

    free: int
    left_ms: float


class WaitingLine:
    """Jobs that have no slot yet. Owned by one thread; knows no clock but the times that it is given.

    ``fell_back`` is told why a job is served without a prediction.
    """

    def __init__(self, settings: EngineSettings, fell_back: Callable[[Reason], None]) -> None:
        self._settings = settings
        self._fell_back = fell_back
        self._decided = self._no_lines()
        self._undecided: dict[Job, None] = {}
        self._expiring: PriorityQueue[Job] = PriorityQueue()
        self._mean_service_ms = 0.0
        self._jobs = 0
        self._actual_ms = self._predicted_ms = 0.0

    def add(self, job: Job, slots: Slots) -> None:
        """A job has come in, with its prediction or without."""
        if job.expires_s < float("inf"):
            self._expiring.push(job, job.expires_s, job.number)
        told = self._settings.queue_order is Order.ORACLE and job.request.terms.oracle_tokens is not None
        if job.priority is not None or told or self._settings.queue_order is Order.FCFS:
            self._join(job, slots)
        else:
            self._undecided[job] = None

    def decide(self, job: Job, prediction: Prediction | None, slots: Slots) -> None:
        """A job's prediction has come, or None because the predictor failed; too late is no error."""
        if job in self._undecided:
            if prediction is None:
                self._fall_back(job, Reason.PREDICTOR_FAILED, slots)
            else:
                job.take(prediction)
                del self._undecided[job]
                self._join(job, slots)
        elif prediction is not None and job.priority is None:
            job.predicted_tokens = prediction.predicted_tokens  # too late for the order, not for the backlog
            self._learn(prediction.predicted_tokens)

    def give_up_predictions(self, now_s: float, slots: Slots) -> None:
        """Put the jobs whose predictions should have come by ``now_s`` in line without."""
        for job in [job for job in self._undecided if job.undecided_until_s <= now_s]:
            self._fall_back(job, Reason.PREDICTOR_LATE, slots)

    def expired(self, now_s: float) -> list[Job]:
        """Take out the jobs whose own time is up."""
        gone = []
        while self._expiring and self._expiring.lowest_key() <= now_s:
            job = self._expiring.pop()
            self.remove(job)
            gone.append(job)
        return gone

    def next(self, now_ms: float, *, undecided: bool = True) -> Job | None:
        """Take out the job that gets a slot; None when nobody waits.

        Jobs without a prediction are taken if ``undecided`` and nobody else waits.
        """
        if self._decided:
            job, promoted = self._decided.pop(now_ms, self._mean_service_ms)
            job.promoted = promoted
        elif undecided and self._undecided:
            job = next(iter(self._undecided))
            del self._undecided[job]
        else:
            return None
        self._expiring.remove(job)
        job.wait_ms = max(0.0, now_ms - job.arrival_ms)
        return job

    def remove(self, job: Job) -> bool:
        """Take out one job, wherever it stands; False when it does not wait."""
        self._expiring.remove(job)
        if job in self._undecided:
            del self._undecided[job]
            return True
        return self._decided.remove(job)

    def clear(self) -> list[Job]:
        """Take out everything."""
        jobs = list(self)
        self._decided, self._undecided, self._expiring = self._no_lines(), {}, PriorityQueue()
        return jobs

    def served(self, job: Job, slot_ms: float) -> None:
        """A job has been in its slot for ``slot_ms`` and got its whole answer."""
        if job.predicted_tokens <= 0.0:
            return
        predicted_ms = self._settings.service_ms(job.predicted_tokens)
        if not self._predicted_ms:
            self._actual_ms = self._predicted_ms = _PACE_PRIOR_JOBS * predicted_ms
        self._actual_ms = _PACE_MEMORY * self._actual_ms + slot_ms
        self._predicted_ms = _PACE_MEMORY * self._predicted_ms + predicted_ms

    @property
    def pace(self) -> float:
        """Actual over predicted time in a slot, of late: lower clocks and short predictions raise it."""
        return self._actual_ms / self._predicted_ms if self._predicted_ms else 1.0

    def expected_wait_ms(self, slots: Slots) -> float:
        """How long a request that comes now would wait for a slot if it went last."""
        if slots.free > len(self):
            return 0.0
        undecided_ms = len(self._undecided) * self._mean_service_ms
        waiting_ms = self._decided.work_ms() + undecided_ms
        return self.pace * (slots.left_ms + waiting_ms) / self._settings.slots

    def __len__(self) -> int:
        return len(self._decided) + len(self._undecided)

    def __iter__(self) -> Iterator[Job]:
        """Everybody who waits, the decided ones first, each part in order of coming in."""
        yield from self._decided
        yield from self._undecided

    def _no_lines(self) -> ClassLines[Job]:
        return ClassLines(self._settings.queue_order, self._settings.order_parameters)

    def _fall_back(self, job: Job, reason: Reason, slots: Slots) -> None:
        self._fell_back(reason)
        job.priority = self._settings.fallback_priority(job.arrival_ms)
        del self._undecided[job]
        self._join(job, slots)

    def _join(self, job: Job, slots: Slots) -> None:
        terms = job.request.terms
        tokens = job.predicted_tokens
        if self._settings.queue_order is Order.ORACLE:
            tokens = terms.oracle_tokens or 0.0
        job.service_ms = self._settings.service_ms(tokens) if tokens > 0.0 else 0.0
        self._learn(tokens)
        backlog_ms = 0.0
        if slots.free <= len(self):
            ahead_ms = slots.left_ms + self._decided.work_ms(terms.traffic_class)
            backlog_ms = self.pace * ahead_ms / self._settings.slots
        ticket = Ticket(
            number=job.number,
            arrival_ms=job.arrival_ms,
            service_ms=job.service_ms,
            backlog_ms=backlog_ms,
            mean_service_ms=self._mean_service_ms,
            pace=self.pace,
            priority=job.priority,
        )
        job.key_ms = self._decided.push(job, ticket, terms.traffic_class)

    def _learn(self, tokens: float) -> None:
        if tokens > 0.0:
            self._jobs = min(self._jobs + 1, _MEAN_MEMORY_JOBS)
            self._mean_service_ms += (self._settings.service_ms(tokens) - self._mean_service_ms) / self._jobs

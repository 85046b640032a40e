"""The waiting side of an engine: which request gets the next free slot.

A request with a prediction waits in order of its priority; one without waits for ``decide``. When a slot
would stay empty otherwise the oldest undecided one takes it; when no prediction comes in time it goes
first come, first served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.queue import PriorityQueue
from mubackend.llm_engine.settings import EngineSettings, QueueOrder
from mubackend.metrics import Reason


class WaitingLine:
    """Jobs that have no slot yet. Owned by one thread; knows no clock but the times that it is given.

    ``fell_back`` is told why a job goes first come, first served.
    """

    def __init__(self, settings: EngineSettings, fell_back: Callable[[Reason], None]) -> None:
        self._settings = settings
        self._fell_back = fell_back
        self._queue: PriorityQueue[Job] = PriorityQueue()
        self._undecided: dict[Job, None] = {}

    def add(self, job: Job) -> None:
        """A job has come in, with its priority or without."""
        if self._settings.queue_order is QueueOrder.FCFS:
            self._queue.push(job, 0, job.number)
        elif job.priority is None:
            self._undecided[job] = None
        else:
            self._queue.push(job, job.priority, job.number)

    def decide(self, job: Job, prediction: Prediction | None) -> None:
        """A job's prediction has come, or None because the predictor failed; too late is no error."""
        if job in self._undecided:
            if prediction is None:
                self._fall_back(job, Reason.PREDICTOR_FAILED)
            else:
                job.take(prediction)
                del self._undecided[job]
                self.add(job)
        elif prediction is not None and job.priority is None:
            job.predicted_tokens = prediction.predicted_tokens  # too late for the order, not for the backlog

    def give_up_predictions(self, now_s: float) -> None:
        """Put the jobs whose predictions should have come by ``now_s`` in line without."""
        for job in [job for job in self._undecided if job.undecided_until_s <= now_s]:
            self._fall_back(job, Reason.PREDICTOR_LATE)

    def next(self, *, undecided: bool = True) -> Job | None:
        """Take out the job that gets a slot; None when nobody waits, or nobody but jobs without a prediction,
        which are taken if ``undecided``."""
        if self._queue:
            return self._queue.pop()
        if undecided and self._undecided:
            job = next(iter(self._undecided))
            del self._undecided[job]
            return job
        return None

    def remove(self, job: Job) -> None:
        """Take out one job, wherever it stands."""
        if not self._queue.remove(job):
            self._undecided.pop(job, None)

    def clear(self) -> list[Job]:
        """Take out everything."""
        jobs = list(self)
        self._queue, self._undecided = PriorityQueue(), {}
        return jobs

    def __len__(self) -> int:
        return len(self._queue) + len(self._undecided)

    def __iter__(self) -> Iterator[Job]:
        """Everybody who waits, the decided ones first, each part in order of coming in."""
        yield from self._queue
        yield from self._undecided

    def _fall_back(self, job: Job, reason: Reason) -> None:
        self._fell_back(reason)
        job.priority = self._settings.fallback_key(job.arrival_ms)
        del self._undecided[job]
        self.add(job)

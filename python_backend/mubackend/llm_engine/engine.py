"""The ``replay`` engine: continuous batching with real requests and real token streams on virtual time.

One thread owns the batch. Before each iteration it takes new requests in, fills free slots with the
waiting requests of lowest priority, pays their prefill, then runs one decode step in which every
running request gets one token (iteration-level scheduling: Yu et al. 2022, Orca). Only the time is virtual:
a ``VirtualGpu`` says how long each iteration takes at the clock in force.

A request without a priority waits for ``resolve`` with a prediction; it is served earlier when a slot
would stay empty otherwise, and first come, first served when none came in time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mubackend.device import Device
from mubackend.failure import Code, RequestError
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.answers import Answers
from mubackend.llm_engine.job import Job, Reply
from mubackend.llm_engine.ledger import Ledger, epoch_ms
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.settings import EngineSettings
from mubackend.llm_engine.waiting_line import WaitingLine
from mubackend.metrics import Metrics
from muserve.errors import MuServeError

logger = logging.getLogger(__name__)

_RUNNING_CHECK_S = 0.05
_WAITING_CHECK_S = 0.25
_WAITING_CHECKS = 16
_SENDERS = 4
_SHUTDOWN = "the server is shutting down"


class ReplayEngine:
    """Serves requests until ``stop``; every accepted request is ended exactly once.

    ``submit`` and ``resolve`` may be called from any thread and never block for long. A failure of the
    virtual GPU or a bug fails all requests of that moment with INTERNAL, and the engine goes on.
    """

    def __init__(
        self,
        settings: EngineSettings,
        device: Device,
        answers: Answers,
        metrics: Metrics,
        now_ms: Callable[[], int] = epoch_ms,
    ) -> None:
        self._settings = settings
        self._device = device
        self._answers = answers
        self._now_ms = now_ms
        self._ledger = Ledger(settings, metrics, now_ms)
        # Shared between threads, guarded by _changed.
        self._changed = threading.Condition()
        self._inbox: list[Job] = []
        self._resolved: list[tuple[Job, Prediction | None]] = []
        self._waiting = 0
        self._arrivals = 0
        self._stopping = False
        # Owned by the worker.
        self._line = WaitingLine(settings, self._ledger.fell_back)
        self._running: list[Job] = []
        self._finished_s: float | None = None
        self._senders = ThreadPoolExecutor(_SENDERS - 1, thread_name_prefix="replay-sender")
        self._worker = threading.Thread(target=self._work, name="replay-engine", daemon=True)

    def start(self) -> None:
        """Start the thread that owns the batch."""
        self._worker.start()

    def submit(self, request: GenerationRequest, reply: Reply, prediction: Prediction | None) -> Job:
        """Accept one request; without ``prediction``, ``resolve`` must follow with the returned job.

        Raises RequestError (UNAVAILABLE) when the queue is full or the engine stops.
        """
        with self._changed:
            if self._stopping:
                raise RequestError(Code.UNAVAILABLE, _SHUTDOWN)
            full = self._waiting >= self._settings.queue_limit
            if not full:
                self._arrivals += 1
                job = Job(
                    request=request,
                    reply=reply,
                    number=self._arrivals,
                    arrival_ms=self._now_ms(),
                    undecided_until_s=time.monotonic() + self._settings.predictor_timeout_s,
                    check_cancelled_s=time.monotonic() + _WAITING_CHECK_S,
                )
                if prediction is not None:
                    job.take(prediction)
                self._waiting += 1
                self._inbox.append(job)
                self._changed.notify()
        if full:
            self._ledger.rejected()
            limit = self._settings.queue_limit
            raise RequestError(
                Code.UNAVAILABLE, f"the queue of {self._settings.model} is full: {limit} requests are waiting"
            )
        return job

    def resolve(self, job: Job, prediction: Prediction | None) -> None:
        """Give a job its prediction; None when the predictor failed."""
        with self._changed:
            self._resolved.append((job, prediction))
            self._changed.notify()

    def stop(self) -> None:
        """End everything that is queued or running with UNAVAILABLE, and the worker. Call it once."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._worker.join()
        self._senders.shutdown()

    def _work(self) -> None:
        while True:
            try:
                if not self._collect():
                    break
                self._drop_cancelled()
                self._admit()
                self._iterate()
            except MuServeError as error:
                logger.error("the engine failed: %s", error)
                self._fail_all(Code.INTERNAL, f"the engine failed: {error}")
            except Exception as error:
                logger.exception("the engine failed")
                self._fail_all(Code.INTERNAL, f"the engine failed: {type(error).__name__}")
        self._fail_all(Code.UNAVAILABLE, _SHUTDOWN)

    def _collect(self) -> bool:
        """Wait for something to do and take in what other threads left; False when told to stop."""
        with self._changed:
            while not (self._stopping or self._inbox or self._has_work()):
                self._report_load()
                self._finished_s = None
                self._resolved.clear()  # of jobs that have ended
                self._changed.wait()
            # Under the lock, so that a job is always in one of the places where _fail_all looks.
            for job in self._inbox:
                self._line.add(job)
            self._inbox = []
            resolved, self._resolved = self._resolved, []
            stopping = self._stopping
        for job, prediction in resolved:
            self._line.decide(job, prediction)
        self._line.give_up_predictions(time.monotonic())
        return not stopping

    def _has_work(self) -> bool:
        return bool(self._line or self._running)

    def _drop_cancelled(self) -> None:
        """Ask Triton, which costs a message for each question, seldom enough not to slow the batch."""
        now_s = time.monotonic()
        for job in [job for job in self._running if job.check_cancelled_s <= now_s]:
            job.check_cancelled_s = now_s + _RUNNING_CHECK_S
            if self._is_gone(job):
                self._running.remove(job)
                self._end_cancelled(job)
        due = [job for job in self._line if job.check_cancelled_s <= now_s]
        for job in due[:_WAITING_CHECKS]:
            job.check_cancelled_s = now_s + _WAITING_CHECK_S
            if self._is_gone(job):
                self._line.remove(job)
                self._leave_line()
                self._end_cancelled(job)

    def _is_gone(self, job: Job) -> bool:
        try:
            return job.reply.cancelled()
        except Exception as error:  # one client's channel; sending will tell
            logger.warning("a client could not be watched: %s", error)
            return False

    def _end_cancelled(self, job: Job) -> None:
        self._ledger.cancelled()
        self._end(job, Code.CANCELLED, "the client cancelled the request")

    def _leave_line(self) -> None:
        with self._changed:
            self._waiting -= 1

    def _admit(self) -> None:
        """Fill the free slots and pay the prefill of what came in."""
        admitted: list[Job] = []
        while len(self._running) < self._settings.slots and (job := self._line.next()) is not None:
            self._leave_line()
            self._running.append(job)
            job.check_cancelled_s = min(job.check_cancelled_s, time.monotonic() + _RUNNING_CHECK_S)
            job.tokens = self._answers.tokens(job.request.prompt, job.request.sampling)
            admitted.append(job)
        if admitted:
            self._spend(self._settings.prefill_ms * len(admitted), self._settings.prefill_sensitivity)

    def _iterate(self) -> None:
        """One decode step: a token for every running request."""
        if self._ledger.load_is_due():
            self._report_load()
        if not self._running:
            return
        self._spend(self._settings.step_ms(len(self._running)), self._settings.decode_sensitivity)
        # Sending waits for Triton to take each token: several senders wait at the same time.
        shares = [self._running[place::_SENDERS] for place in range(_SENDERS)]
        others = [self._senders.submit(_step_all, share) for share in shares[1:] if share]
        results = [*_step_all(shares[0]), *(result for other in others for result in other.result())]
        self._running = [job for job, error in results if error is None and not job.ended]
        for job, error in results:
            if error is not None:  # one client's channel; the others go on
                logger.warning("a response could not be sent: %s", error)
                self._ledger.failed()
                self._end(job, Code.INTERNAL, "a response could not be sent")
            elif job.ended:
                self._ledger.completed(job)

    def _spend(self, latency_ms: float, sensitivity: float) -> None:
        if not latency_ms:  # an engine without a GPU behind it, to measure the rest
            return
        # Sending tokens overlaps with the next step on a real GPU, hence not_before_s.
        run = self._device.run(latency_ms, sensitivity, not_before_s=self._finished_s)
        self._finished_s = run.finished_s

    def _report_load(self) -> None:
        self._ledger.load(list(self._line), self._running)

    def _end(self, job: Job, code: Code, message: str) -> None:
        try:
            job.fail(code, message)
        except Exception as error:  # nobody is left to tell
            logger.warning("an error could not be sent: %s", error)

    def _fail_all(self, code: Code, message: str) -> None:
        with self._changed:
            jobs = [*self._running, *self._line.clear(), *self._inbox]
            self._inbox = []
            self._waiting = 0
        self._running = []
        for job in jobs:
            if not job.ended:
                self._ledger.failed()
                self._end(job, code, message)
        self._report_load()


def _step_all(jobs: Sequence[Job]) -> list[tuple[Job, Exception | None]]:
    """One token for each job, and the error of each that could not be sent."""
    results: list[tuple[Job, Exception | None]] = []
    for job in jobs:
        try:
            job.step()
            results.append((job, None))
        except Exception as error:
            results.append((job, error))
    return results

"""The engine of a generative model: requests in order of priority in front of an executor.

One thread owns the batch. Before each step it takes new requests in, lets the waiting ones of lowest
priority join the running ones as the batching allows, and sends on what the executor then makes of them.

A request without a priority waits for ``resolve`` with a prediction; it is served earlier when a slot
would stay empty otherwise, and first come, first served when none came in time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mubackend.failure import Code, RequestError, invalid
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.batching import BatchRule
from mubackend.llm_engine.executor import Executor, Output
from mubackend.llm_engine.job import Job, Reply
from mubackend.llm_engine.ledger import Ledger, epoch_ms
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.settings import EngineSettings
from mubackend.llm_engine.waiting_line import Slots, WaitingLine
from mubackend.metrics import Metrics
from muserve.errors import MuServeError
from muserve.queue_order import Order

logger = logging.getLogger(__name__)

_RUNNING_CHECK_S = 0.05
_WAITING_CHECK_S = 0.25
_WAITING_CHECKS = 16
_SENDERS = 4
_FORMING_CHECK_S = 0.002  # how exactly a batch that is not full keeps its delay
_SHUTDOWN = "the server is shutting down"


class Engine:
    """Serves requests until ``stop``; every accepted request is ended exactly once.

    ``submit`` and ``resolve`` may be called from any thread and never block for long. A failure of the
    executor or a bug fails all requests of that moment with INTERNAL, and the engine goes on.
    """

    def __init__(
        self,
        settings: EngineSettings,
        executor: Executor,
        metrics: Metrics,
        now_ms: Callable[[], int] = epoch_ms,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._now_ms = now_ms
        self._ledger = Ledger(settings, metrics, now_ms)
        # Shared between threads, guarded by _changed.
        self._changed = threading.Condition()
        self._inbox: list[Job] = []
        self._resolved: list[tuple[Job, Prediction | None]] = []
        self._waiting = 0
        self._expected_wait_ms = 0.0
        self._arrivals = 0
        self._stopping = False
        # Owned by the worker.
        self._line = WaitingLine(settings, self._ledger.fell_back)
        self._running: list[Job] = []
        self._unstarted: dict[Job, None] = {}
        self._batches = BatchRule(
            batching=settings.batching, slots=executor.capacity, delay_ms=settings.batch_delay_ms
        )
        self._executor_has_a_line = executor.capacity > settings.slots
        self._senders = ThreadPoolExecutor(_SENDERS - 1, thread_name_prefix="engine-sender")
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread that owns the batch."""
        self._worker.start()

    def submit(self, request: GenerationRequest, reply: Reply, prediction: Prediction | None) -> Job:
        """Accept one request; without ``prediction``, ``resolve`` must follow with the returned job.

        Raises RequestError: UNAVAILABLE when the queue is full or the engine stops, INVALID_ARGUMENT when
        the request tells its true length and the engine does not order by it.
        """
        terms = request.terms
        if terms.oracle_tokens is not None and self._settings.queue_order is not Order.ORACLE:
            raise invalid("sampling_parameters: oracle_tokens: only allowed where serving.order is oracle")
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
                if terms.timeout_ms is not None:
                    left_ms = terms.timeout_ms - max(0, self._now_ms() - job.arrival_ms)
                    job.expires_s = time.monotonic() + left_ms / 1000
                self._waiting += 1
                self._inbox.append(job)
                self._changed.notify()
            wait_s = self._expected_wait_ms / 1000
        if full:
            self._ledger.rejected(terms.traffic_class)
            raise RequestError(
                Code.UNAVAILABLE,
                f"the queue of {self._settings.model} is full: {self._settings.queue_limit} requests are "
                f"waiting, expected wait {wait_s:.1f} s",
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
        self._executor.close()

    def _work(self) -> None:
        while True:
            try:
                if not self._collect():
                    break
                self._drop_expired()
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
                self._executor.idle()
                self._resolved.clear()  # of jobs that have ended
                self._changed.wait()
            slots = self._slots()
            # Under the lock, so that a job is always in one of the places where _fail_all looks.
            for job in self._inbox:
                self._line.add(job, slots)
            self._inbox = []
            resolved, self._resolved = self._resolved, []
            stopping = self._stopping
        for job, prediction in resolved:
            self._line.decide(job, prediction, slots)
        self._line.give_up_predictions(time.monotonic(), slots)
        self._expected_wait_ms = self._line.expected_wait_ms(slots)
        return not stopping

    def _slots(self) -> Slots:
        left_ms = self._ledger.left_ms(self._running)
        return Slots(free=self._settings.slots - len(self._running), left_ms=left_ms)

    def _has_work(self) -> bool:
        return bool(self._line or self._running)

    def _drop_expired(self) -> None:
        now_s = time.monotonic()
        for job in self._line.expired(now_s):
            self._leave_line()
            self._end_expired(job)
        for job in [job for job in self._running if job.expires_s <= now_s]:
            self._stop_running(job)
            self._end_expired(job)

    def _stop_running(self, job: Job) -> None:
        self._running.remove(job)
        self._executor.cancel(job)
        self._have_started([job])

    def _end_expired(self, job: Job) -> None:
        self._ledger.timed_out(job)
        timeout_ms = job.request.terms.timeout_ms
        self._end(job, Code.UNAVAILABLE, f"the request's timeout of {timeout_ms:g} ms is over")

    def _drop_cancelled(self) -> None:
        """Ask Triton, which costs a message for each question, seldom enough not to slow the batch."""
        now_s = time.monotonic()
        for job in [job for job in self._running if job.check_cancelled_s <= now_s]:
            job.check_cancelled_s = now_s + _RUNNING_CHECK_S
            if self._is_gone(job):
                self._stop_running(job)
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
        """Let as many waiting jobs join as the batching allows."""
        if not self._line:
            return
        admitted: list[Job] = []
        for _ in range(self._room()):
            # A slot that would stay empty is not kept from a job that waits for its prediction.
            job = self._line.next(self._now_ms(), undecided=len(self._running) < self._settings.slots)
            if job is None:
                break
            self._running.append(job)
            self._unstarted[job] = None
            job.check_cancelled_s = min(job.check_cancelled_s, time.monotonic() + _RUNNING_CHECK_S)
            admitted.append(job)
        if not self._executor_has_a_line:
            self._have_started(admitted)
        if admitted:
            self._executor.admit(admitted)
        elif not self._running:
            self._wait_for_more()

    def _room(self) -> int:
        waited_ms = 0
        if not self._running:
            waited_ms = self._now_ms() - min(job.arrival_ms for job in self._line)
        return self._batches.room(len(self._running), len(self._line), waited_ms)

    def _have_started(self, jobs: Iterable[Job]) -> None:
        """Jobs that the executor has admitted, and lets wait no longer."""
        for job in jobs:
            if job in self._unstarted:
                del self._unstarted[job]
                job.started_s = time.monotonic()
                self._leave_line()
                self._ledger.started(job)

    def _wait_for_more(self) -> None:
        with self._changed:
            if not (self._stopping or self._inbox or self._resolved):
                self._changed.wait(_FORMING_CHECK_S)

    def _iterate(self) -> None:
        """One step of the executor, and its outputs to the clients."""
        if self._ledger.load_is_due():
            self._report_load()
        if not self._running:
            return
        outputs = self._executor.step()
        self._have_started(output.job for output in outputs)
        # Sending waits for Triton to take each token: several senders wait at the same time.
        shares = [outputs[place::_SENDERS] for place in range(_SENDERS)]
        others = [self._senders.submit(_deliver_all, share) for share in shares[1:] if share]
        results = [*_deliver_all(shares[0]), *(result for other in others for result in other.result())]
        for output, error in results:
            job = output.job
            if output.failure is not None:
                if output.failure.code is not Code.INVALID_ARGUMENT:
                    self._ledger.failed(job)
                self._end(job, output.failure.code, str(output.failure))
            elif error is not None:  # one client's channel; the others go on
                logger.warning("a response could not be sent: %s", error)
                self._ledger.failed(job)
                self._executor.cancel(job)
                self._end(job, Code.INTERNAL, "a response could not be sent")
            elif job.ended:
                self._ledger.completed(job)
                self._line.served(job, 1000 * (time.monotonic() - job.started_s))
        self._running = [job for job in self._running if not job.ended]

    def _report_load(self) -> None:
        started = [job for job in self._running if job not in self._unstarted]
        self._ledger.load([*self._line, *self._unstarted], started, self._line.pace)

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
        for job in self._running:
            self._executor.cancel(job)
        self._running, self._unstarted = [], {}
        for job in jobs:
            if not job.ended:
                self._ledger.failed(job)
                self._end(job, code, message)
        self._report_load()


def _deliver_all(outputs: Sequence[Output]) -> list[tuple[Output, Exception | None]]:
    """Send each output on; with the error of each that could not be sent."""
    results: list[tuple[Output, Exception | None]] = []
    for output in outputs:
        try:
            if output.failure is None:
                output.job.deliver(output.text, output.tokens, final=output.final)
            results.append((output, None))
        except Exception as error:
            results.append((output, error))
    return results

"""An executor over an asynchronous generator that has a waiting line of its own, as vLLM has.

Everything is handed over at once with its priority, so that the generator's scheduler, which knows how much
of its cache is free, chooses what runs; the engine's queue only limits how many wait.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from mubackend.failure import Code, RequestError
from mubackend.llm_engine.executor import Output
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.settings import EngineSettings
from muserve.queue_order import Order, TrafficClass

logger = logging.getLogger(__name__)

CLASS_MS = 600_000
_POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The next piece of an answer."""

    text: str
    tokens: int
    final: bool


class Generator(Protocol):
    """Answers many requests at a time; all calls come from one event loop."""

    async def start(self) -> None:
        """Load the model; InputError when that cannot be."""

    def generate(self, request: GenerationRequest, name: str, priority: int) -> AsyncIterator[Part]:
        """The answer; lower ``priority`` goes first. Closing the iterator early aborts the request.

        Raises RequestError when it cannot be answered.
        """

    async def stop(self) -> None:
        """Let go of the model."""


class AsyncExecutor:
    """``Executor`` over a ``Generator``, whose event loop has a thread of its own."""

    def __init__(self, generator: Generator, settings: EngineSettings) -> None:
        self._generator = generator
        self._settings = settings
        self._made: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self._answers: dict[Job, Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="generator", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(generator.start(), self._loop).result()
        except BaseException:
            self._end_loop()
            raise

    @property
    def capacity(self) -> int:
        """Everything that may wait as well."""
        return self._settings.slots + self._settings.queue_limit

    def admit(self, jobs: Sequence[Job]) -> None:
        """Hand jobs over."""
        for job in jobs:
            self._answers[job] = asyncio.run_coroutine_threadsafe(self._answer(job), self._loop)

    def step(self) -> list[Output]:
        """Everything that has been made; waits a little for the first of it, not long, for jobs may come."""
        outputs = []
        try:
            outputs.append(self._made.get(timeout=_POLL_S))
            while True:
                outputs.append(self._made.get_nowait())
        except queue.Empty:
            pass
        known = [output for output in outputs if output.job in self._answers]
        for output in known:
            if output.final:
                del self._answers[output.job]
        return _merged(known)

    def cancel(self, job: Job) -> None:
        """Abort a job."""
        answer = self._answers.pop(job, None)
        if answer is not None:
            answer.cancel()

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Abort everything and let go of the model."""
        for job in list(self._answers):
            self.cancel(job)
        asyncio.run_coroutine_threadsafe(self._generator.stop(), self._loop).result()
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _answer(self, job: Job) -> None:
        failure = None
        arrival = self._settings.fallback_priority(job.arrival_ms)
        priority = fixed_priority(job, self._settings.queue_order, arrival)
        try:
            async for part in self._generator.generate(job.request, str(job.number), priority):
                self._made.put(Output(job=job, text=part.text, tokens=part.tokens, final=part.final))
        except RequestError as error:
            failure = error
        except Exception as error:
            logger.exception("a request failed")
            failure = RequestError(Code.INTERNAL, f"the engine failed: {type(error).__name__}")
        if failure is not None:
            self._made.put(Output(job=job, tokens=0, final=True, failure=failure))


def fixed_priority(job: Job, order: Order, without_prediction: int) -> int:
    """The place of a job among the generator's, lowest first, as one number that cannot change later.

    Orders whose keys change with time (``bounded``, ``relative_cap``, ``hrrn``) cannot be told; they become
    the virtual finish time that the predictor step computed, as in ``aging``. A traffic class is worth
    ``CLASS_MS`` of arrival, so that no class waits for ever. ``without_prediction``: of a job without a key.
    """
    key = 0.0
    match order:
        case Order.FCFS:
            key = job.arrival_ms
        case Order.SSJF | Order.ORACLE | Order.CLASSES:
            key = job.key_ms or 0.0
        case Order.ADAPTIVE:
            key = job.arrival_ms + (job.key_ms or 0.0)
        case _:
            key = without_prediction if job.priority is None else job.priority
    level = tuple(TrafficClass).index(job.request.terms.traffic_class)
    return round(key) + level * CLASS_MS


def _merged(outputs: list[Output]) -> list[Output]:
    """Outputs with one of each job, because they are sent on by several threads."""
    merged: dict[Job, Output] = {}
    for output in outputs:
        before = merged.get(output.job)
        if before is not None:
            text, tokens = before.text + output.text, before.tokens + output.tokens
            output = Output(
                job=output.job, text=text, tokens=tokens, final=output.final, failure=output.failure
            )
        merged[output.job] = output
    return list(merged.values())

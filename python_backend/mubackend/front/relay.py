"""The front: predicts each request, queues a ticket for it in Triton, and calls the engine in its turn.

One thread runs an event loop. Each request is first a gRPC call of its own to the ``slots`` model of the same
server, with its priority, then, once a slot has taken up its ticket, a gRPC stream to the engine. So
thousands can wait in Triton's queue, tokens do not pass the slots, and each request can be cancelled alone:
one that waits leaves the queue, one that runs is cancelled at the engine and its slot is free at once.

Triton bounds a native queue for each priority level only, and here nearly every request has a level of its
own. So the bound is kept here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from mubackend.failure import Code, RequestError
from mubackend.front.account import Account
from mubackend.front.forward import (
    ANSWER,
    Array,
    advice_tensors,
    answer_texts,
    infer_request,
    native_priority,
)
from mubackend.front.turns import Turns, end_turn
from mubackend.length_predictor.service import Prediction
from mubackend.priority import predicted_service_ms, virtual_finish_ms

logger = logging.getLogger(__name__)

_CHECK_S = 0.05
_WAITING_CHECKS = 16
_LOAD_PERIOD_S = 0.25
_STOP_S = 5.0
_SHUTDOWN = "the server is shutting down"
# Metadata that makes Triton end a stream with the error's own code instead of a message in a response.
_WITH_CODES = (("triton_grpc_error", "true"),)
_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: Code.INVALID_ARGUMENT,
    grpc.StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
    grpc.StatusCode.CANCELLED: Code.CANCELLED,
}


class Way(Protocol):
    """The way back to one client."""

    def send(self, texts: Array) -> None:
        """Send one response."""

    def finish(self) -> None:
        """Say that the answer is whole."""

    def fail(self, code: Code, message: str) -> None:
        """Send an error as the last response."""

    def cancelled(self) -> bool:
        """Whether the client has gone; costs a message to Triton."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """``slots``: requests the engine takes at once; ``queue_limit``: how many more may wait.

    ``advises``: whether the engine takes the prediction as tensors. Times are those of one request at the
    top clock, for the wait that a refused client is told and for the backlog.
    """

    model: str
    url: str
    slots_model: str
    engine_model: str
    slots: int
    queue_limit: int
    const_ms: float
    ms_per_token: float
    alpha: float
    advises: bool


@dataclass(slots=True, eq=False)
class _Passage:
    """A request on its way: ``call`` is the one under way, ``running`` that its turn has come.

    ``over``: the last response was sent. Asking Triton about the client then would end the whole server.
    """

    way: Way
    task: asyncio.Task[Any]
    call: Any = None
    service_ms: float = 0.0
    running: bool = False
    cancelled: bool = False
    over: bool = False
    checked_s: float = 0.0


class Front:
    """Passes requests on until ``stop``; every accepted request is ended exactly once."""

    def __init__(self, settings: FrontSettings, account: Account, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._account = account
        self._now_ms = now_ms
        self._passages: dict[_Passage, None] = {}
        self._accepted = 0
        self._lock = threading.Lock()
        self._stopping = False
        self._listening = threading.Event()
        self._questions = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predictor-question")
        self._turns = Turns()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)

    def start(self) -> None:
        """Start the thread of the event loop, and wait until it listens for slots."""
        self._thread.start()
        self._listening.wait()

    def submit(
        self, request_id: str, tensors: Mapping[str, Array], predict: Callable[[], Prediction], way: Way
    ) -> None:
        """Accept one request with the client's ``tensors``; ``predict`` asks the predictor and may fail.

        Raises RequestError (UNAVAILABLE) when the queue is full or the front stops. Returns at once.
        """
        arrival_ms = self._now_ms()
        with self._lock:
            if self._stopping:
                raise RequestError(Code.UNAVAILABLE, _SHUTDOWN)
            full = self._accepted >= self._settings.slots + self._settings.queue_limit
            if not full:
                self._accepted += 1
                asyncio.run_coroutine_threadsafe(
                    self._pass(request_id, tensors, predict, way, arrival_ms), self._loop
                )
        if full:
            self._account.rejected()
            wait_s = self._backlog_ms(list(self._passages)) / 1000
            raise RequestError(
                Code.UNAVAILABLE,
                f"the queue of {self._settings.model} is full: {self._settings.queue_limit} requests are "
                f"waiting, expected wait {wait_s:.1f} s",
            )

    def stop(self) -> None:
        """End everything with UNAVAILABLE, and the thread. Call it once."""
        with self._lock:
            self._stopping = True
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._questions.shutdown(cancel_futures=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self._ended = asyncio.Event()
        async with grpc.aio.insecure_channel(self._settings.url, options=_UNLIMITED) as channel:
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await self._turns.open()
            self._listening.set()
            watch = asyncio.create_task(self._watch())
            await self._ended.wait()
            watch.cancel()
            await self._turns.close()
            for passage in self._passages:
                passage.task.cancel()
            # What is left then ends by itself: passages, and slots that come too late.
            deadline_s = time.monotonic() + _STOP_S
            while (rest := asyncio.all_tasks() - {asyncio.current_task()}) and time.monotonic() < deadline_s:
                await asyncio.wait(rest, timeout=_STOP_S)

    async def _pass(
        self,
        request_id: str,
        tensors: Mapping[str, Array],
        predict: Callable[[], Prediction],
        way: Way,
        arrival_ms: int,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        passage = _Passage(way, task, checked_s=time.monotonic())
        self._passages[passage] = None
        try:
            await self._answer(passage, request_id, tensors, predict, arrival_ms)
        except asyncio.CancelledError:
            if passage.cancelled:
                self._account.cancelled(reached_engine=passage.running)
                _tell(passage, Code.CANCELLED, "the client cancelled the request")
            else:
                self._account.failed(reached_engine=passage.running)
                _tell(passage, Code.UNAVAILABLE, _SHUTDOWN)
        except RequestError as error:
            self._account.failed(reached_engine=passage.running)
            _tell(passage, error.code, str(error))
        except grpc.aio.AioRpcError as error:
            self._account.failed(reached_engine=passage.running)
            code = _CODES.get(error.code(), Code.INTERNAL)
            _tell(passage, code, error.details() or f"the queue failed: {error.code().name}")
        except Exception as error:
            logger.exception("the front failed")
            self._account.failed(reached_engine=passage.running)
            _tell(passage, Code.INTERNAL, f"the front failed: {type(error).__name__}")
        finally:
            del self._passages[passage]
            with self._lock:
                self._accepted -= 1

    async def _answer(
        self,
        passage: _Passage,
        request_id: str,
        tensors: Mapping[str, Array],
        predict: Callable[[], Prediction],
        arrival_ms: int,
    ) -> None:
        prediction = await self._predicted(predict, arrival_ms)
        settings = self._settings
        passage.service_ms = predicted_service_ms(
            settings.const_ms, settings.ms_per_token, max(1.0, prediction.predicted_tokens)
        )
        async with self._turn(passage, request_id, native_priority(prediction.priority)):
            sent = {**tensors, **advice_tensors(prediction)} if settings.advises else tensors
            request = infer_request(settings.engine_model, request_id, sent, output=ANSWER)
            passage.call = self._stub.ModelStreamInfer(iter([request]), metadata=_WITH_CODES)
            async for message in passage.call:
                if message.error_message:  # of a server too old for codes
                    raise RequestError(Code.INTERNAL, message.error_message)
                texts = answer_texts(message.infer_response)
                if texts is not None:
                    passage.way.send(texts)
            self._account.completed(prediction.arrival_ms)
            passage.over = True
            passage.way.finish()

    @asynccontextmanager
    async def _turn(self, passage: _Passage, request_id: str, priority: int) -> AsyncIterator[None]:
        """Wait in Triton's queue for a slot and hold it; AioRpcError when Triton refuses."""
        ticket, turn = self._turns.ticket()
        tensors = {"ticket": np.array([str(ticket).encode()], np.object_)}
        request = infer_request(
            self._settings.slots_model, request_id, tensors, output="served", priority=priority
        )
        passage.call = self._stub.ModelInfer(request)
        queued = asyncio.ensure_future(passage.call)
        try:
            await asyncio.wait({turn, queued}, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                await queued
                raise RequestError(Code.INTERNAL, "a slot gave its turn back")
            passage.running = True
            yield
        finally:
            if turn.done() and not turn.cancelled():
                await end_turn(turn.result())
            else:
                turn.cancel()
                passage.call.cancel()
            await asyncio.gather(queued, return_exceptions=True)

    async def _predicted(self, predict: Callable[[], Prediction], arrival_ms: int) -> Prediction:
        """What the predictor says; without it, first come, first served."""
        try:
            return await self._loop.run_in_executor(self._questions, predict)
        except Exception as error:
            logger.warning("no prediction: %s", error)
            self._account.fell_back()
            key = virtual_finish_ms(arrival_ms, self._settings.alpha, 0.0)
            return Prediction(predicted_tokens=0.0, priority=key, arrival_ms=arrival_ms)

    async def _watch(self) -> None:
        """Look for clients that have gone, and tell how much there is to do."""
        load_due_s = 0.0
        while True:
            await asyncio.sleep(_CHECK_S)
            now_s = time.monotonic()
            running = [passage for passage in self._passages if passage.running and not passage.over]
            waiting = [
                passage
                for passage in self._passages
                if passage.call is not None and not (passage.running or passage.over)
            ]
            waiting.sort(key=lambda passage: passage.checked_s)
            for passage in [*running, *waiting[:_WAITING_CHECKS]]:
                passage.checked_s = now_s
                if _is_gone(passage.way):
                    passage.cancelled = True
                    passage.call.cancel()
            if now_s >= load_due_s:
                load_due_s = now_s + _LOAD_PERIOD_S
                ahead = max(0, len(self._passages) - self._settings.slots)
                self._account.load(ahead, self._backlog_ms(self._passages))

    def _backlog_ms(self, passages: Iterable[_Passage]) -> float:
        """Predicted milliseconds until all of ``passages`` are served, each as if it had just begun."""
        return sum(passage.service_ms for passage in passages) / self._settings.slots


def _is_gone(way: Way) -> bool:
    try:
        return way.cancelled()
    except Exception as error:  # one client's channel; sending will tell
        logger.warning("a client could not be watched: %s", error)
        return False


def _tell(passage: _Passage, code: Code, message: str) -> None:
    if passage.over:
        return
    passage.over = True
    try:
        passage.way.fail(code, message)
    except Exception as error:  # nobody is left to tell
        logger.warning("an error could not be sent: %s", error)

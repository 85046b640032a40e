"""Open-loop replay of a planned load against a running Triton."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from muplan.load.client import ServingRequestError, Tensors, TritonLoadClient
from muplan.load.outcome import Outcome
from muplan.load.schedule import PlannedRequest
from muplan.load.shapes import Shape
from muserve.errors import ServingError

ModelShapes = Mapping[str, Mapping[str, Shape]]

_SAMPLE_PERIOD_S = 0.25
_START_DELAY_S = 0.2

# Inputs of single-pass models are drawn before the load starts, from this many for each model:
# drawing each one on time would make the sender late, drawing them all would take gigabytes.
_TENSOR_SETS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Where a replay stands: seconds since its start, and requests so far."""

    time_s: float
    sent: int
    completed: int
    failed: int


def warm_up(url: str, requests: Sequence[PlannedRequest], shapes: ModelShapes) -> str:
    """Send the first request of each model and wait for its answer; returns Triton's version.

    Raises ServingError, naming the model, when one fails.
    """
    return asyncio.run(_warm_up(url, requests, shapes))


def replay(
    url: str,
    requests: Sequence[PlannedRequest],
    shapes: ModelShapes,
    *,
    window_s: float,
    give_up_s: float,
    on_sample: Callable[[LoadProgress], None],
) -> tuple[Outcome, ...]:
    """Send each request at its planned time, whatever became of the others, and watch the answers.

    Returns the outcomes in the order of ``requests``, ``window_s`` after the load's start or later when
    requests are still in flight then. Those without a complete answer ``give_up_s`` after the start are
    cancelled and failed. ``shapes`` gives the sizes of free axes, by model and input. ``on_sample`` is
    called four times a second from the start to the end inclusive.
    """
    return asyncio.run(_Replay(requests, shapes, window_s, give_up_s, on_sample).run(url))


@dataclass
class _Replay:
    requests: Sequence[PlannedRequest]
    shapes: ModelShapes
    window_s: float
    give_up_s: float
    on_sample: Callable[[LoadProgress], None]
    start_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)

    async def run(self, url: str) -> tuple[Outcome, ...]:
        client = TritonLoadClient(url)
        sends: list[asyncio.Task[Outcome]] = []
        try:
            tensors = await _draw_tensors(client, self.requests, self.shapes)
            self.start_s = time.monotonic() + _START_DELAY_S
            sends = [asyncio.create_task(self._send(client, r, tensors)) for r in self.requests]
            await self._sample_until_done(sends)
            return tuple(send.result() for send in sends)
        finally:
            for send in sends:
                send.cancel()
            await asyncio.gather(*sends, return_exceptions=True)
            await client.close()

    def _now_s(self) -> float:
        return time.monotonic() - self.start_s

    async def _sample_until_done(self, sends: Sequence[asyncio.Task[Outcome]]) -> None:
        for tick in itertools.count():
            await asyncio.sleep(max(0.0, tick * _SAMPLE_PERIOD_S - self._now_s()))
            now_s = self._now_s()
            self.on_sample(
                LoadProgress(
                    time_s=now_s,
                    sent=self.counts["sent"],
                    completed=self.counts["completed"],
                    failed=self.counts["failed"],
                )
            )
            if now_s >= self.window_s and all(send.done() for send in sends):
                return

    async def _send(
        self,
        client: TritonLoadClient,
        request: PlannedRequest,
        tensors: Mapping[str, Sequence[Tensors]],
    ) -> Outcome:
        await asyncio.sleep(max(0.0, request.planned_s - self._now_s()))
        sent_s = self._now_s()
        self.counts["sent"] += 1
        arrivals_s: list[float] = []
        error = ""
        try:
            async with asyncio.timeout(max(0.0, self.give_up_s - sent_s)):
                if request.prompt is None:
                    await client.infer(request.model, _pick(tensors, request))
                    arrivals_s.append(self._now_s())
                else:
                    async for _ in client.stream(request.model, request.prompt):
                        arrivals_s.append(self._now_s())
        except ServingRequestError as failure:
            error = str(failure)
        except TimeoutError:
            error = f"no complete answer {self.give_up_s:.0f} s after the load's start"
        if not error and not arrivals_s:
            error = "the stream ended without a response"
        self.counts["failed" if error else "completed"] += 1
        return Outcome(
            request=request,
            sent_s=sent_s,
            first_response_s=arrivals_s[0] if arrivals_s else None,
            completed_s=None if error else arrivals_s[-1],
            responses=len(arrivals_s),
            error=error,
        )


async def _warm_up(url: str, requests: Sequence[PlannedRequest], shapes: ModelShapes) -> str:
    client = TritonLoadClient(url)
    try:
        tensors = await _draw_tensors(client, requests, shapes)
        first = {request.model: request for request in reversed(requests)}
        for request in first.values():
            try:
                if request.prompt is None:
                    await client.infer(request.model, _pick(tensors, request))
                else:
                    async for _ in client.stream(request.model, request.prompt):
                        pass
            except ServingRequestError as error:
                raise ServingError(f"{request.model}: the warm-up request failed: {error}") from error
        return await client.version()
    finally:
        await client.close()


async def _draw_tensors(
    client: TritonLoadClient, requests: Sequence[PlannedRequest], shapes: ModelShapes
) -> dict[str, list[Tensors]]:
    models = sorted({request.model for request in requests if request.prompt is None})
    return {
        model: [await client.draw_tensors(model, shapes.get(model, {}), seed) for seed in range(_TENSOR_SETS)]
        for model in models
    }


def _pick(tensors: Mapping[str, Sequence[Tensors]], request: PlannedRequest) -> Tensors:
    return tensors[request.model][request.tensor_seed % _TENSOR_SETS]

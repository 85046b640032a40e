from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from mubackend.failure import RequestError, invalid
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.async_executor import AsyncExecutor, Part, fixed_priority
from mubackend.llm_engine.engine import Engine
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.request import GenerationRequest, parse_request
from mubackend.llm_engine.settings import EngineKind, EngineSettings
from mubackend.metrics import RecordedMetrics
from mubackend.sampling import Sampling
from mubackend.terms import Terms
from muserve.errors import InputError
from muserve.queue_order import Order, TrafficClass

ARRIVAL_MS = 1_700_000_000_000


@dataclass
class OneByOne:
    """A ``Generator`` with one slot: lowest priority first, a token for each permit of the test."""

    refuses: str = ""
    started: list[str] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    stopped: bool = False
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _waiting: list[tuple[int, int, str]] = field(default_factory=list)
    _busy: bool = False

    async def start(self) -> None:
        if self.refuses:
            raise InputError(self.refuses)

    async def generate(self, request: GenerationRequest, name: str, priority: int) -> AsyncIterator[Part]:
        if request.prompt == "bad":
            raise invalid("prompt: bad")
        if request.prompt == "bug":
            raise KeyError("x")
        place = (priority, len(self.asked), name)
        self.asked[request.prompt] = priority
        self._waiting.append(place)
        runs = False
        try:
            while self._busy or min(self._waiting) != place or not self.permits.acquire(blocking=False):
                await asyncio.sleep(0.001)
            runs = self._busy = True
            self.started.append(request.prompt)
            for number in range(request.sampling.max_tokens):
                while number and not self.permits.acquire(blocking=False):
                    await asyncio.sleep(0.001)
                yield Part(text="t ", tokens=1, final=number + 1 == request.sampling.max_tokens)
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request.prompt)
            raise
        finally:
            self._waiting.remove(place)
            if runs:
                self._busy = False

    async def stop(self) -> None:
        self.stopped = True


@dataclass
class Client:
    """``Reply``."""

    pieces: list[str] = field(default_factory=list)
    error: str = ""
    gone: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def send(self, text: str, *, final: bool) -> None:
        assert not self.ended.is_set()
        self.pieces.append(text)
        if final:
            self.ended.set()

    def fail(self, code: str, message: str) -> None:
        assert not self.ended.is_set()
        self.error = f"{code}: {message}"
        self.ended.set()

    def cancelled(self) -> bool:
        return self.gone


@dataclass
class Rig:
    engine: Engine
    generator: OneByOne
    metrics: RecordedMetrics

    def ask(self, prompt: str, priority: int | None = 0, tokens: int = 2) -> Client:
        request = parse_request(
            prompt,
            stream=True,
            exclude_input_in_output=None,
            sampling_parameters=f'{{"max_tokens": {tokens}}}',
        )
        prediction = None
        if priority is not None:
            prediction = Prediction(predicted_tokens=3.0, priority=priority, arrival_ms=ARRIVAL_MS)
        client = Client()
        self.engine.submit(request, client, prediction)
        return client


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def start(**changes: object) -> Rig:
        values: dict[str, object] = {
            "model": "llm", "kind": EngineKind.VLLM, "slots": 1, "queue_limit": 4, "prefill_ms": 7.0,
            "prefill_sensitivity": 0.9, "decode_ms": 10.0, "decode_ms_per_running_request": 0.0,
            "decode_sensitivity": 0.1, "slo_ms": 1000.0, "queue_order": Order.AGING,
        }  # fmt: skip
        settings = EngineSettings(**(values | changes))  # type: ignore[arg-type]
        generator, metrics = OneByOne(), RecordedMetrics()
        engine = Engine(settings, AsyncExecutor(generator, settings), metrics)
        engine.start()
        rigs.append(Rig(engine, generator, metrics))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.engine.stop()
        assert rig.generator.stopped


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_the_generator_orders_what_waits_by_our_priority(make: Callable[..., Rig]) -> None:
    rig = make()
    clients = [rig.ask(f"p{priority}", priority) for priority in (30, 10, 20)]
    until(lambda: len(rig.generator.asked) == 3)
    assert not rig.generator.started, "all of them are the generator's before one has begun"
    rig.generator.permits.release(6)
    assert all(client.ended.wait(10) for client in clients)
    assert rig.generator.started == ["p10", "p20", "p30"]
    assert all("".join(client.pieces) == "t t " for client in clients)


def job(number: int, arrival_ms: int, terms: Terms | None = None, **changes: object) -> Job:
    request = GenerationRequest(
        prompt="p", stream=True, prepend_prompt=False, sampling=Sampling(), terms=terms or Terms()
    )
    made = Job(request=request, reply=Client(), number=number, arrival_ms=arrival_ms, undecided_until_s=0.0)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("order", "first", "second"),
    [
        (Order.FCFS, {"arrival_ms": 1, "priority": 90}, {"arrival_ms": 2, "priority": 5}),
        (Order.SSJF, {"arrival_ms": 9, "key_ms": 10.0}, {"arrival_ms": 1, "key_ms": 20.0}),
        (Order.ADAPTIVE, {"arrival_ms": 9, "key_ms": 10.0}, {"arrival_ms": 1, "key_ms": 20.0}),
        (Order.BOUNDED, {"arrival_ms": 9, "priority": 19}, {"arrival_ms": 1, "priority": 21}),
        (Order.AGING, {"arrival_ms": 9}, {"arrival_ms": 1, "priority": 21}),
    ],
)
def test_every_order_becomes_one_number(order: Order, first: dict[str, int], second: dict[str, int]) -> None:
    priorities = [
        fixed_priority(job(n, **values), order, values["arrival_ms"])
        for n, values in enumerate((first, second))
    ]
    assert priorities[0] < priorities[1]


def test_a_traffic_class_is_worth_ten_minutes_and_no_more() -> None:
    def priority(arrival_ms: int, traffic_class: TrafficClass) -> int:
        return fixed_priority(job(1, arrival_ms, Terms(traffic_class=traffic_class)), Order.FCFS, 0)

    interactive = priority(10_000_000, TrafficClass.INTERACTIVE)
    assert interactive < priority(10_000_000 - 599_999, TrafficClass.STANDARD)
    assert interactive > priority(10_000_000 - 600_001, TrafficClass.STANDARD)


def test_what_the_generator_keeps_waiting_counts_against_the_limit(make: Callable[..., Rig]) -> None:
    rig = make(queue_limit=3)
    first = rig.ask("first", 0)
    rig.generator.permits.release(1)
    until(lambda: bool(first.pieces))
    for number in range(3):
        rig.ask(f"more {number}", number + 1)
    until(lambda: len(rig.generator.asked) == 4)
    until(lambda: rig.metrics.gauges.get("mu_queue_length") == 3)
    with pytest.raises(RequestError, match="the queue of llm is full: 3 requests are waiting"):
        rig.ask("too many", 9)


def test_a_request_without_a_prediction_is_kept_while_the_slots_are_taken(make: Callable[..., Rig]) -> None:
    rig = make(predictor_timeout_s=0.3)
    rig.ask("first", 5)
    until(lambda: "first" in rig.generator.asked)
    rig.ask("undecided", None)
    time.sleep(0.1)
    assert "undecided" not in rig.generator.asked
    until(lambda: "undecided" in rig.generator.asked)


def test_a_client_that_goes_aborts_its_request(make: Callable[..., Rig]) -> None:
    rig = make()
    client = rig.ask("a", 0, tokens=5)
    rig.generator.permits.release(1)
    until(lambda: bool(client.pieces))
    client.gone = True
    until(lambda: rig.generator.aborted == ["a"])
    assert client.error.startswith("CANCELLED")
    after = rig.ask("b", 0)
    rig.generator.permits.release(2)
    assert after.ended.wait(10)


def test_a_request_that_fails_leaves_the_others_alone(make: Callable[..., Rig]) -> None:
    rig = make()
    bad, bug, good = rig.ask("bad"), rig.ask("bug"), rig.ask("good")
    rig.generator.permits.release(2)
    assert all(client.ended.wait(10) for client in (bad, bug, good))
    assert (bad.error, bug.error) == (
        "INVALID_ARG: prompt: bad",
        "INTERNAL: the engine failed: KeyError",
    )
    assert "".join(good.pieces) == "t t "


def test_a_generator_that_does_not_load_is_told_at_once() -> None:
    settings = EngineSettings(
        model="llm", slots=1, queue_limit=1, prefill_ms=1, prefill_sensitivity=0, decode_ms=1,
        decode_ms_per_running_request=0, decode_sensitivity=0, slo_ms=1,
    )  # fmt: skip
    threads = threading.active_count()
    with pytest.raises(InputError, match="no such model"):
        AsyncExecutor(OneByOne(refuses="no such model"), settings)
    assert threading.active_count() == threads

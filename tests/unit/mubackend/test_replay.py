from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mubackend.device import Device
from mubackend.failure import Code, RequestError
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.answers import Answers
from mubackend.llm_engine.batching import Batching
from mubackend.llm_engine.engine import Engine
from mubackend.llm_engine.ledger import epoch_ms
from mubackend.llm_engine.replay import ReplayExecutor
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.settings import EngineSettings
from mubackend.llm_engine.virtual_time import VirtualTime
from mubackend.metrics import Reason, RecordedMetrics
from mubackend.sampling import Sampling
from mubackend.terms import Terms
from muserve.errors import GpuLostError
from muserve.gpu.virtual import VirtualGpu, VirtualRun
from muserve.queue_order import Order, OrderParameters, TrafficClass

ARRIVAL_MS = 1_700_000_000_000


@dataclass
class StepDevice:
    """A GPU whose time passes only when the test lets it: one permit is one run."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    runs: list[tuple[float, float]] = field(default_factory=list)
    failures: int = 0

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        self.permits.acquire()
        if self.failures:
            self.failures -= 1
            raise GpuLostError("VGPU-x-0 has gone")
        self.runs.append((latency_ms, sensitivity))
        now_s = time.monotonic()
        return VirtualRun(started_s=now_s, finished_s=now_s, gpu_s=latency_ms / 1000)


@dataclass
class RecordedReply:
    """Keeps what a client gets; ``log`` is shared to see the order between clients."""

    name: str = ""
    log: list[str] = field(default_factory=list)
    responses: list[tuple[str, bool]] = field(default_factory=list)
    gone: bool = False
    broken: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def send(self, text: str, *, final: bool) -> None:
        assert not self.ended.is_set(), "answered after the end"
        if self.broken:
            raise OSError("no channel")
        self.responses.append((text, final))
        if final:
            self.log.append(self.name)
            self.ended.set()

    def fail(self, code: Code, message: str) -> None:
        assert not self.ended.is_set(), "answered twice"
        self.responses.append((f"{code}: {message}", True))
        self.log.append(self.name)
        self.ended.set()

    def cancelled(self) -> bool:
        assert not self.ended.is_set(), "asked after the end"
        return self.gone

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.responses)


def engine_settings(**changes: object) -> EngineSettings:
    values: dict[str, object] = {
        "model": "llm",
        "slots": 2,
        "queue_limit": 4,
        "prefill_ms": 7.0,
        "prefill_sensitivity": 0.9,
        "decode_ms": 10.0,
        "decode_ms_per_running_request": 1.0,
        "decode_sensitivity": 0.1,
        "slo_ms": 1000.0,
        "queue_order": Order.AGING,
    }
    return EngineSettings(**(values | changes))  # type: ignore[arg-type]


def replay_engine(
    settings: EngineSettings,
    device: Device,
    metrics: RecordedMetrics,
    now_ms: Callable[[], int] = epoch_ms,
) -> Engine:
    executor = ReplayExecutor(settings.slots, VirtualTime(settings, device), Answers({}))
    return Engine(settings, executor, metrics, now_ms)


def request(tokens: int, *, stream: bool = True) -> GenerationRequest:
    sampling = Sampling(max_tokens=tokens, ignore_eos=True)
    return GenerationRequest(prompt="p", stream=stream, prepend_prompt=not stream, sampling=sampling)


def predicted(priority: int, tokens: float = 3.0) -> Prediction:
    return Prediction(predicted_tokens=tokens, priority=priority, arrival_ms=ARRIVAL_MS)


@dataclass
class Rig:
    engine: Engine
    device: StepDevice
    metrics: RecordedMetrics

    def let(self, runs: int) -> None:
        self.device.permits.release(runs)


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def start(**changes: object) -> Rig:
        device, metrics = StepDevice(), RecordedMetrics()
        engine = replay_engine(engine_settings(**changes), device, metrics, lambda: ARRIVAL_MS + 500)
        engine.start()
        rigs.append(Rig(engine, device, metrics))
        return rigs[-1]

    yield start
    for rig in rigs:
        rig.let(10_000)
        rig.engine.stop()


def finish(*replies: RecordedReply) -> None:
    for reply in replies:
        assert reply.ended.wait(10), f"{reply.name} was not answered"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def occupy(rig: Rig, slots: int = 2) -> None:
    """Fill the slots with requests that hang in their prefill until the test lets time pass."""
    for _ in range(slots):
        rig.engine.submit(request(1), RecordedReply("busy"), predicted(0))
    until(lambda: not rig.engine._inbox)


def test_a_stream_gets_one_response_for_each_token_and_one_end(make: Callable[..., Rig]) -> None:
    rig, reply = make(), RecordedReply()
    rig.engine.submit(request(5), reply, predicted(1))
    rig.let(6)
    finish(reply)
    assert [final for _, final in reply.responses] == [False] * 4 + [True]
    assert rig.device.runs == [(7.0, 0.9)] + [(10.0, 0.1)] * 5


def test_without_streaming_the_whole_text_comes_once_after_the_prompt(make: Callable[..., Rig]) -> None:
    rig, streamed, whole = make(), RecordedReply(), RecordedReply()
    rig.let(100)
    rig.engine.submit(request(5), streamed, predicted(1))
    rig.engine.submit(request(5, stream=False), whole, predicted(1))
    finish(streamed, whole)
    assert whole.responses == [("p" + streamed.text, True)]


def test_running_requests_share_each_step(make: Callable[..., Rig]) -> None:
    rig, first, second = make(), RecordedReply(), RecordedReply()
    rig.engine.submit(request(3), first, predicted(1))
    until(lambda: bool(rig.engine._running))
    rig.engine.submit(request(1), second, predicted(1))
    rig.let(100)
    finish(first, second)
    assert rig.device.runs == [(7.0, 0.9), (10.0, 0.1), (7.0, 0.9), (11.0, 0.1), (10.0, 0.1)]


@pytest.mark.parametrize(
    ("order", "expected"), [(Order.AGING, ["d", "b", "a", "c"]), (Order.FCFS, ["a", "b", "c", "d"])]
)
def test_waiting_requests_get_their_slots_in_order(
    make: Callable[..., Rig], order: Order, expected: list[str]
) -> None:
    rig = make(slots=1, queue_order=order, queue_limit=10)
    occupy(rig, slots=1)
    log: list[str] = []
    replies = [RecordedReply(name, log) for name in "abcd"]
    for reply, priority in zip(replies, (30, 20, 30, 10), strict=True):
        rig.engine.submit(request(2), reply, predicted(priority))
    rig.let(100)
    finish(*replies)
    assert log == expected


def test_a_full_queue_refuses_at_once(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, queue_limit=2)
    occupy(rig, slots=1)
    replies = [RecordedReply(str(number)) for number in range(2)]
    for reply in replies:
        rig.engine.submit(request(1), reply, predicted(1))
    with pytest.raises(
        RequestError, match="the queue of llm is full: 2 requests are waiting, expected wait"
    ) as caught:
        rig.engine.submit(request(1), RecordedReply(), predicted(0))
    assert caught.value.code is Code.UNAVAILABLE
    assert rig.metrics.total("mu_rejected_total") == rig.metrics.total("mu_slo_missed_total") == 1
    rig.let(100)
    finish(*replies)
    rig.engine.submit(request(1), last := RecordedReply(), predicted(1))
    finish(last)


def test_a_cancelled_request_frees_its_slot(make: Callable[..., Rig]) -> None:
    rig, long, waiting = make(slots=1), RecordedReply(), RecordedReply()
    rig.engine.submit(request(100_000), long, predicted(0))
    rig.let(20)
    until(lambda: len(long.responses) > 5)
    rig.engine.submit(request(1), waiting, predicted(1))
    long.gone = True
    rig.let(200)
    time.sleep(0.1)
    rig.let(200)
    finish(long, waiting)
    assert long.responses[-1] == ("CANCELLED: the client cancelled the request", True)
    assert rig.metrics.total("mu_cancelled_total") == 1
    assert rig.metrics.total("mu_slo_missed_total") == 0


def test_a_cancelled_request_leaves_the_queue_before_its_turn(make: Callable[..., Rig]) -> None:
    rig, long, waiting = make(slots=1, queue_limit=1), RecordedReply(), RecordedReply()
    rig.engine.submit(request(100_000), long, predicted(0))
    until(lambda: bool(rig.engine._running))
    rig.engine.submit(request(1), waiting, predicted(1))
    waiting.gone = True
    time.sleep(0.3)
    rig.let(3)
    finish(waiting)
    assert not long.ended.is_set()
    rig.engine.submit(request(1), RecordedReply(), predicted(1))
    long.gone = True


def test_without_a_prediction_a_free_slot_is_not_left_empty(make: Callable[..., Rig]) -> None:
    rig, reply = make(), RecordedReply()
    job = rig.engine.submit(request(2), reply, None)
    rig.let(3)
    finish(reply)
    rig.engine.resolve(job, predicted(1))
    assert rig.metrics.total("mu_fallback_total", Reason.PREDICTOR_LATE) == 0


def test_predictions_order_what_waits(make: Callable[..., Rig]) -> None:
    rig = make(slots=1)
    occupy(rig, slots=1)
    log: list[str] = []
    replies = [RecordedReply(name, log) for name in "abc"]
    jobs = [rig.engine.submit(request(1), reply, None) for reply in replies]
    for job, priority in zip(jobs, (30, 10, 20), strict=True):
        rig.engine.resolve(job, predicted(priority))
    rig.let(100)
    finish(*replies)
    assert log == ["b", "c", "a"]


@pytest.mark.parametrize(("alpha", "expected"), [(2.0, ["b", "a"]), (math.inf, ["a", "b"])])
def test_a_failed_prediction_is_first_come_first_served(
    make: Callable[..., Rig], alpha: float, expected: list[str]
) -> None:
    rig = make(slots=1, order_parameters=OrderParameters(alpha=alpha))
    occupy(rig, slots=1)
    log: list[str] = []
    failed, known = RecordedReply("a", log), RecordedReply("b", log)
    rig.engine.resolve(rig.engine.submit(request(1), failed, None), None)
    rig.engine.submit(request(1), known, predicted(ARRIVAL_MS + 499))
    rig.let(100)
    finish(failed, known)
    assert log == expected
    assert rig.metrics.total("mu_fallback_total", Reason.PREDICTOR_FAILED) == 1


def test_a_late_prediction_is_not_waited_for(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, predictor_timeout_s=0.01)
    occupy(rig, slots=1)
    log: list[str] = []
    late, later = RecordedReply("late", log), RecordedReply("later", log)
    job = rig.engine.submit(request(1), late, None)
    rig.engine.submit(request(1), later, predicted(ARRIVAL_MS + 501))
    time.sleep(0.05)
    rig.let(100)
    finish(late, later)
    rig.engine.resolve(job, predicted(0))
    assert log == ["late", "later"]
    assert rig.metrics.total("mu_fallback_total", Reason.PREDICTOR_LATE) == 1


def test_a_failing_gpu_fails_the_requests_of_that_moment_and_no_later_one(make: Callable[..., Rig]) -> None:
    rig = make(slots=1)
    rig.device.failures = 1
    replies = [RecordedReply(), RecordedReply()]
    for reply in replies:
        rig.engine.submit(request(1), reply, predicted(1))
    until(lambda: not rig.engine._inbox)
    rig.let(100)
    finish(*replies)
    assert replies[0].text == "INTERNAL: the engine failed: VGPU-x-0 has gone"
    assert rig.metrics.total("mu_slo_missed_total") + rig.metrics.total("mu_slo_met_total") == 2
    rig.engine.submit(request(1), after := RecordedReply(), predicted(1))
    finish(after)
    assert after.responses[-1][1]
    assert "INTERNAL" not in after.text


def test_one_clients_broken_channel_does_not_hurt_the_others(make: Callable[..., Rig]) -> None:
    rig, broken, well = make(), RecordedReply(broken=True), RecordedReply()
    rig.engine.submit(request(3), broken, predicted(1))
    rig.engine.submit(request(3), well, predicted(1))
    rig.let(100)
    finish(broken, well)
    assert len(well.responses) == 3


def test_stopping_ends_everything_once(make: Callable[..., Rig]) -> None:
    rig = make(slots=1)
    replies = [RecordedReply() for _ in range(3)]
    rig.engine.submit(request(100_000), replies[0], predicted(0))
    rig.engine.submit(request(1), replies[1], predicted(0))
    rig.engine.submit(request(1), replies[2], None)
    rig.let(5)
    stopping = threading.Thread(target=rig.engine.stop)
    stopping.start()
    until(lambda: rig.engine._stopping)
    rig.let(5)
    finish(*replies)
    stopping.join()
    assert {reply.responses[-1][0] for reply in replies} == {"UNAVAILABLE: the server is shutting down"}
    with pytest.raises(RequestError, match="shutting down"):
        rig.engine.submit(request(1), RecordedReply(), None)


def test_metrics_tell_latency_slo_tokens_and_backlog(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, slo_ms=500.0)
    rig.let(6)
    rig.engine.submit(request(5), first := RecordedReply(), predicted(1, tokens=8.0))
    finish(first)
    until(lambda: rig.metrics.total("mu_prediction_error_tokens_total") > 0)
    assert rig.metrics.observations["mu_request_latency_ms"] == [500]
    assert rig.metrics.total("mu_slo_met_total") == 1
    assert rig.metrics.total("mu_predicted_tokens_total") == 8
    assert rig.metrics.total("mu_actual_tokens_total") == 5
    assert rig.metrics.total("mu_prediction_error_tokens_total") == 3
    until(lambda: rig.metrics.gauges["mu_predicted_backlog_seconds"] == 0)


def test_backlog_is_what_all_slots_together_have_to_do(make: Callable[..., Rig]) -> None:
    ledger = make().engine._ledger
    rig = make(slots=1)
    occupy(rig, slots=1)
    queued = [rig.engine.submit(request(1), RecordedReply(), predicted(1, tokens=9.0)) for _ in range(2)]
    running = rig.engine.submit(request(1), RecordedReply(), predicted(1, tokens=5.0))
    running.sent = 3
    # Two slots: a step of 11 ms; (2 x (7 + 9 x 11) + 2 x 11) / 2.
    assert ledger.backlog_s(queued, [running]) == pytest.approx(0.117)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 4)
)
def test_every_request_is_answered_exactly_once(plans: list[tuple[int, int, bool]], slots: int) -> None:
    device, metrics = StepDevice(), RecordedMetrics()
    engine = replay_engine(engine_settings(slots=slots, queue_limit=100), device, metrics)
    engine.start()
    device.permits.release(10_000)
    replies = []
    for tokens, priority, gone in plans:
        replies.append(RecordedReply(gone=gone))
        engine.submit(request(tokens), replies[-1], predicted(priority))
    finish(*replies)
    engine.stop()
    for (tokens, _, gone), reply in zip(plans, replies, strict=True):
        assert sum(final for _, final in reply.responses) == 1
        assert gone or len(reply.responses) == tokens


def test_on_a_virtual_gpu_an_answer_takes_prefill_and_its_tokens(tmp_path: Path) -> None:
    gpu = VirtualGpu.create(tmp_path / "a.vgpu", "V100-16GB", 0, "VGPU-a-0")
    engine = replay_engine(engine_settings(prefill_ms=30.0), gpu, RecordedMetrics())
    engine.start()
    started_s, reply = time.monotonic(), RecordedReply()
    engine.submit(request(20), reply, predicted(1))
    finish(reply)
    took_s = time.monotonic() - started_s
    engine.stop()
    assert gpu.busy_s() == pytest.approx(0.23, rel=0.02)
    assert 0.22 < took_s < 1.0


def test_a_timeout_ends_waiting_and_running_requests(make: Callable[..., Rig]) -> None:
    rig, running, waiting = make(slots=1), RecordedReply("running"), RecordedReply("waiting")
    patient = RecordedReply("patient")
    limited = replace(request(100_000), terms=Terms(timeout_ms=650.0, traffic_class=TrafficClass.BATCH))
    rig.engine.submit(limited, running, predicted(0))
    until(lambda: bool(rig.engine._running))
    rig.engine.submit(replace(request(1), terms=Terms(timeout_ms=520.0)), waiting, predicted(1))
    rig.engine.submit(request(1), patient, predicted(2))
    time.sleep(0.05)
    rig.let(2)
    finish(waiting)
    assert waiting.text == "UNAVAILABLE: the request's timeout of 520 ms is over"
    assert not running.ended.is_set()
    time.sleep(0.15)
    rig.let(3)
    finish(running, patient)
    assert running.responses[-1] == ("UNAVAILABLE: the request's timeout of 650 ms is over", True)
    assert rig.metrics.total("mu_timed_out_total") == 2
    assert rig.metrics.total("mu_class_slo_missed_total", "batch") == 1
    assert rig.metrics.total("mu_class_slo_missed_total", "standard") == 1


def test_each_decision_is_counted(make: Callable[..., Rig]) -> None:
    rig = make(slots=1, queue_order=Order.FCFS)
    occupy(rig, slots=1)
    replies = [RecordedReply(), RecordedReply()]
    for reply, tokens in zip(replies, (90.0, 9.0), strict=True):
        rig.engine.submit(request(1), reply, predicted(1, tokens))
    rig.let(100)
    finish(*replies)
    until(lambda: rig.metrics.total("mu_class_slo_met_total", "standard") == 3)
    assert rig.metrics.total("mu_decisions_total", "standard") == 3
    assert rig.metrics.total("mu_promoted_total") == 1
    assert rig.metrics.observations["mu_decision_predicted_tokens"] == [3.0, 90.0, 9.0]
    assert rig.metrics.observations["mu_wait_ms"] == [500.0] * 3
    assert rig.metrics.observations["mu_prediction_error_tokens"] == [2.0, 89.0, 8.0]


def test_a_told_length_is_refused_unless_it_is_an_experiment(make: Callable[..., Rig]) -> None:
    told = replace(request(1), terms=Terms(oracle_tokens=5.0))
    with pytest.raises(RequestError, match=r"only allowed where serving\.order is oracle") as caught:
        make().engine.submit(told, RecordedReply(), predicted(1))
    assert caught.value.code is Code.INVALID_ARGUMENT
    rig, reply = make(queue_order=Order.ORACLE), RecordedReply()
    rig.engine.submit(told, reply, predicted(1))
    rig.let(10)
    finish(reply)


def test_a_dynamic_batch_runs_to_its_end_before_the_next_begins(make: Callable[..., Rig]) -> None:
    rig = make(batching=Batching.DYNAMIC, queue_limit=9)
    log: list[str] = []
    replies = [RecordedReply(name, log) for name in ("short", "long", "next")]
    for priority, (tokens, reply) in enumerate(zip((1, 3, 1), replies, strict=True)):
        rig.engine.submit(request(tokens), reply, predicted(priority))
    rig.let(100)
    finish(*replies)
    # The slot of "short" stays empty while "long" goes on alone.
    decodes = [latency_ms for latency_ms, sensitivity in rig.device.runs if sensitivity == 0.1]
    assert sorted(decodes) in ([10.0, 10.0, 10.0, 11.0], [10.0, 10.0, 10.0, 10.0, 10.0])
    assert log.index("long") < log.index("next")


def test_one_at_a_time_never_shares_a_step(make: Callable[..., Rig]) -> None:
    rig = make(batching=Batching.NONE, slots=1, queue_limit=9)
    replies = [RecordedReply() for _ in range(3)]
    for reply in replies:
        rig.engine.submit(request(2), reply, predicted(0))
    rig.let(100)
    finish(*replies)
    assert rig.device.runs == [(7.0, 0.9), (10.0, 0.1), (10.0, 0.1)] * 3


def test_a_batch_that_is_not_full_waits_no_longer_than_its_delay(make: Callable[..., Rig]) -> None:
    device, metrics = StepDevice(), RecordedMetrics()
    settings = engine_settings(batching=Batching.DYNAMIC, batch_delay_ms=100.0, slots=4)
    engine = replay_engine(settings, device, metrics)
    engine.start()
    device.permits.release(100)
    replies = [RecordedReply(), RecordedReply()]
    started_s = time.monotonic()
    for reply in replies:
        now_ms = epoch_ms()
        engine.submit(request(1), reply, Prediction(predicted_tokens=1.0, priority=1, arrival_ms=now_ms))
    finish(*replies)
    engine.stop()
    assert time.monotonic() - started_s >= 0.09
    assert device.runs == [(14.0, 0.9), (11.0, 0.1)], "both are in one batch"

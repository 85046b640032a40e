from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mubackend.failure import RequestError
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.class_lines import ClassLines
from mubackend.llm_engine.disciplines import Ticket
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.settings import EngineSettings
from mubackend.llm_engine.waiting_line import Slots, WaitingLine
from mubackend.metrics import Reason
from mubackend.sampling import Sampling
from mubackend.terms import Terms, parse_terms
from muserve.queue_order import Order, OrderParameters, TrafficClass

BUSY = Slots(free=0, left_ms=0.0)
SHARES = OrderParameters()
BELOW = (TrafficClass.STANDARD, TrafficClass.BATCH)


class Nobody:
    def send(self, text: str, *, final: bool) -> None: ...

    def fail(self, code: object, message: str) -> None: ...

    def cancelled(self) -> bool:
        return False


def settings_of(order: Order = Order.SSJF) -> EngineSettings:
    return EngineSettings(
        model="llm", slots=2, queue_limit=9, prefill_ms=10.0, prefill_sensitivity=0.9, decode_ms=1.0,
        decode_ms_per_running_request=0.0, decode_sensitivity=0.1, slo_ms=1000.0, queue_order=order,
    )  # fmt: skip


def job(number: int, tokens: float | None = None, *, expires_s: float = math.inf, **terms: object) -> Job:
    made = Job(
        request=GenerationRequest(
            prompt="p", stream=False, prepend_prompt=False, sampling=Sampling(), terms=Terms(**terms)  # type: ignore[arg-type]
        ),
        reply=Nobody(), number=number, arrival_ms=1000 + number, undecided_until_s=5.0, expires_s=expires_s,
    )  # fmt: skip
    if tokens is not None:
        made.take(said(tokens))
    return made


def said(tokens: float) -> Prediction:
    return Prediction(predicted_tokens=tokens, priority=7, arrival_ms=1000)


def line_of(order: Order = Order.SSJF) -> tuple[WaitingLine, list[Reason]]:
    reasons: list[Reason] = []
    return WaitingLine(settings_of(order), reasons.append), reasons


def test_undecided_jobs_wait_for_their_prediction_but_not_for_ever() -> None:
    line, reasons = line_of()
    long, short, late, failed = (job(number) for number in range(4))
    for one in (long, short, late, failed):
        line.add(one, BUSY)
    assert line.next(2000, undecided=False) is None
    line.decide(long, said(90), BUSY)
    line.decide(short, said(9), BUSY)
    line.decide(failed, None, BUSY)
    line.give_up_predictions(4.9, BUSY)
    assert reasons == [Reason.PREDICTOR_FAILED]
    line.give_up_predictions(5.0, BUSY)
    assert reasons == [Reason.PREDICTOR_FAILED, Reason.PREDICTOR_LATE]
    assert [line.next(2000) for _ in range(4)] == [late, failed, short, long]
    assert line.next(2000) is None


def test_a_decision_is_written_on_the_job() -> None:
    line, _ = line_of(Order.FCFS)
    first, second = job(0, 90), job(1, 9)
    line.add(first, BUSY)
    line.add(second, BUSY)
    assert line.next(1500) is first
    assert (first.wait_ms, first.promoted, first.service_ms) == (500, True, 100.0)
    assert line.next(1500) is second
    assert not second.promoted


def test_jobs_expire_where_they_wait() -> None:
    line, _ = line_of()
    jobs = [job(0, 5, expires_s=2.0), job(1, expires_s=1.0), job(2, 5, expires_s=3.0), job(3, 5)]
    for one in jobs:
        line.add(one, BUSY)
    assert line.remove(jobs[2])
    assert not line.remove(jobs[2])
    assert line.expired(0.9) == []
    assert line.expired(2.0) == [jobs[1], jobs[0]]
    assert line.expired(9.0) == []
    assert list(line) == line.clear() == [jobs[3]]
    assert len(line) == 0


def test_an_oracle_orders_by_what_the_request_tells() -> None:
    line, _ = line_of(Order.ORACLE)
    for number, (predicted, true) in enumerate([(1, 50.0), (90, 2.0), (20, 20.0)]):
        line.add(job(number, predicted, oracle_tokens=true), BUSY)
    line.add(job(3, None, oracle_tokens=30.0), BUSY)
    order = [one.number for _ in range(4) if (one := line.next(2000, undecided=False))]
    assert order == [1, 2, 3, 0]


def test_the_expected_wait_follows_the_pace() -> None:
    line, _ = line_of()
    assert line.expected_wait_ms(Slots(free=1, left_ms=50.0)) == 0.0
    line.add(job(0, 90), BUSY)
    assert line.expected_wait_ms(Slots(free=0, left_ms=300.0)) == pytest.approx((300 + 100) / 2)
    for number in range(500):
        line.served(job(number, 90), slot_ms=300.0)
    assert line.pace == pytest.approx(3.0, rel=0.02)
    assert line.expected_wait_ms(Slots(free=0, left_ms=300.0)) == pytest.approx(600, rel=0.02)
    line.served(job(1), slot_ms=1e9)  # nobody predicted it
    assert line.pace < 3.1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(TrafficClass), st.integers(1, 100), st.integers(0, 3)),
        min_size=1, max_size=120,
    ),
    st.sampled_from([Order.FCFS, Order.SSJF, Order.BOUNDED]),
)  # fmt: skip
def test_no_class_starves(rows: list[tuple[TrafficClass, int, int]], order: Order) -> None:
    """While a class waits without a break: own service >= share x others' - mean - own share of one."""
    lines: ClassLines[int] = ClassLines(order, SHARES)
    mean_ms, own_ms, others_ms = 50.0, Counter[TrafficClass](), Counter[TrafficClass]()
    classes: dict[int, TrafficClass] = {}
    services: dict[int, int] = {}

    def check_pop(now_ms: float) -> None:
        waiting = {classes[item] for item in lines}
        item, _ = lines.pop(now_ms, mean_ms)
        for name in BELOW:
            if name not in {classes[left] for left in lines}:  # its wait is over
                own_ms[name] = others_ms[name] = 0
            elif name in waiting:
                (own_ms if classes[item] is name else others_ms)[name] += services[item]
                owed_ms = SHARES.share(name) * others_ms[name] - own_ms[name]
                blocked = name is TrafficClass.BATCH and TrafficClass.STANDARD in waiting
                assert owed_ms <= mean_ms + SHARES.share(name) * 100 * (1 + 4 * blocked) + 1e-6

    for number, (name, service_ms, pops) in enumerate(rows):
        classes[number], services[number] = name, service_ms
        lines.push(number, Ticket(number=number, arrival_ms=number, service_ms=service_ms), name)
        for _ in range(min(pops, len(lines))):
            check_pop(float(number))
    while lines:
        check_pop(float(len(rows)))


def test_interactive_goes_first_and_batch_last_but_not_never() -> None:
    lines: ClassLines[str] = ClassLines(Order.SSJF, OrderParameters(batch_share=0.1))
    number = 0

    def push(name: str, traffic_class: TrafficClass, service_ms: float) -> None:
        nonlocal number
        number += 1
        lines.push(name, Ticket(number=number, arrival_ms=number, service_ms=service_ms), traffic_class)

    push("short batch", TrafficClass.BATCH, 1)
    push("standard", TrafficClass.STANDARD, 50)
    push("long interactive", TrafficClass.INTERACTIVE, 99)
    assert lines.work_ms(TrafficClass.INTERACTIVE) == 99
    assert lines.work_ms() == 150
    assert [lines.pop(0, 50.0)[0] for _ in range(3)] == ["long interactive", "standard", "short batch"]
    push("batch", TrafficClass.BATCH, 50)
    for count in range(100):
        push(f"flood {count}", TrafficClass.INTERACTIVE, 50)
    served = [lines.pop(0, 50.0)[0] for _ in range(12)]
    assert served.index("batch") == 10  # after 10 x 50 ms x 0.1 it is owed its 50 ms
    assert not lines.remove("batch")


def test_under_a_lasting_flood_every_class_gets_its_share_and_no_more() -> None:
    lines: ClassLines[int] = ClassLines(Order.SSJF, SHARES)
    served = Counter[TrafficClass]()
    for number in range(6_000):
        name = list(TrafficClass)[number % 3]
        lines.push(number, Ticket(number=number, arrival_ms=number, service_ms=40 + number % 20), name)
    classes = list(TrafficClass)
    for _ in range(2_000):
        item, _ = lines.pop(0, 50.0)
        served[classes[item % 3]] += 40 + item % 20
    for name in BELOW:
        others_ms = served.total() - served[name]
        assert served[name] == pytest.approx(SHARES.share(name) * others_ms, abs=150)


@pytest.mark.parametrize("mean_ms", [0.0, 50.0])
def test_requests_of_unknown_length_let_no_class_starve(mean_ms: float) -> None:
    lines: ClassLines[int] = ClassLines(Order.BOUNDED, SHARES)
    lines.push(0, Ticket(number=0, arrival_ms=0, service_ms=0, mean_service_ms=mean_ms), TrafficClass.BATCH)
    for number in range(1, 100):
        ticket = Ticket(number=number, arrival_ms=number, service_ms=0, mean_service_ms=mean_ms)
        lines.push(number, ticket, TrafficClass.INTERACTIVE)
    assert [lines.pop(0, mean_ms)[0] for _ in range(25)].index(0) == 20


def test_served_requests_do_not_wait_for_their_timeout() -> None:
    line, _ = line_of(Order.FCFS)
    for number in range(1_000):
        line.add(job(number, expires_s=1e9), BUSY)
        line.next(2000)
    assert len(line._expiring._heap) < 100


@pytest.mark.parametrize(
    ("text", "timeout_us", "expected"),
    [
        ("", 0, Terms()),
        ('{"traffic_class": "batch", "timeout_ms": "50"}', 0,
         Terms(traffic_class=TrafficClass.BATCH, timeout_ms=50)),
        ('{"timeout_ms": 50, "max_tokens": 7}', 20_000, Terms(timeout_ms=20)),
        ("{}", 1_500, Terms(timeout_ms=1.5)),
        ('{"oracle_tokens": 12, "traffic_class": null}', 0, Terms(oracle_tokens=12)),
    ],
)  # fmt: skip
def test_terms_are_read_from_the_sampling_parameters(text: str, timeout_us: int, expected: Terms) -> None:
    assert parse_terms(text, timeout_us) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"traffic_class": "vip"}', 'expected one of interactive, standard, batch, got "vip"'),
        ('{"traffic_class": [1]}', "expected one of"),
        ('{"timeout_ms": 0}', "timeout_ms: expected a number above 0"),
        ('{"timeout_ms": true}', "timeout_ms: expected a number above 0"),
        ('{"oracle_tokens": "many"}', "oracle_tokens: expected a number above 0"),
        ("[]", "expected a JSON object"),
    ],
)
def test_bad_terms_are_named(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=problem.replace("[", r"\[")):
        parse_terms(text)

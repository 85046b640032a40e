from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mubackend.llm_engine.disciplines import (
    BacklogBound,
    DueOrder,
    HighestResponseRatio,
    Ticket,
    make_discipline,
)
from mubackend.llm_engine.order_simulation import Arrival, serve
from mubackend.llm_engine.recent_values import RecentValues
from muserve.errors import InputError
from muserve.queue_order import Order, OrderParameters

DEFAULTS = OrderParameters()
ORDERS = st.sampled_from(Order)


@st.composite
def arrivals(draw: st.DrawFn, exact: bool = False) -> list[Arrival]:
    rows = draw(
        st.lists(
            st.tuples(st.floats(0, 300), st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=60
        )
    )
    at_ms, made = 1e6, []
    for gap_ms, service_ms, predicted_ms in rows:
        at_ms += gap_ms
        made.append(Arrival(at_ms, service_ms, service_ms if exact else predicted_ms))
    return made


@settings(max_examples=150, deadline=None)
@given(arrivals(), ORDERS, st.integers(1, 4))
def test_every_order_serves_everybody_once_and_does_the_same_work(
    requests: list[Arrival], order: Order, slots: int
) -> None:
    served = serve(requests, make_discipline(order, DEFAULTS), slots)
    assert len(served) == len(requests)
    assert all(one.wait_ms >= 0 for one in served)
    if slots == 1:  # a work-conserving server has the same backlog whatever its order
        fcfs = serve(requests, make_discipline(Order.FCFS, DEFAULTS))
        assert [one.backlog_ms for one in served] == pytest.approx([one.backlog_ms for one in fcfs])
        assert [one.wait_ms for one in fcfs] == pytest.approx([one.backlog_ms for one in fcfs])


@settings(max_examples=300, deadline=None)
@given(
    arrivals(),
    st.integers(1, 4),
    st.floats(0, 3),
    st.floats(0, 5),
    st.sampled_from([Order.BOUNDED, Order.RELATIVE_CAP]),
)
def test_nobody_waits_longer_than_its_patience_and_the_work_that_was_there_before(
    requests: list[Arrival], slots: int, ordinary: float, extreme: float, order: Order
) -> None:
    """The bound of the decision record: wait <= patience + backlog + longest service, true times."""
    parameters = OrderParameters(bound_ordinary=ordinary, bound_extreme=1 + extreme, cap_factor=extreme)
    served = serve(requests, make_discipline(order, parameters), slots)
    longest_ms = max(request.service_ms for request in requests)
    for one in served:
        assert one.wait_ms <= one.key_ms + one.backlog_ms + longest_ms + 1e-6


@settings(max_examples=300, deadline=None)
@given(arrivals(exact=True), st.floats(0, 3), st.floats(1, 5))
def test_the_patience_is_bounded_by_the_backlogs_that_were_met(
    requests: list[Arrival], ordinary: float, extreme: float
) -> None:
    parameters = OrderParameters(bound_ordinary=ordinary, bound_extreme=extreme)
    served = serve(requests, make_discipline(Order.BOUNDED, parameters))
    longest_ms = max(request.service_ms for request in requests)
    worst_ms = 0.0
    for one in served:
        own_ms = extreme * one.backlog_ms
        assert one.key_ms <= max(ordinary * worst_ms, own_ms) + longest_ms + 1e-6
        worst_ms = max(worst_ms, one.backlog_ms)


@settings(max_examples=200, deadline=None)
@given(arrivals(exact=True), st.floats(0, 10), st.floats(0, 10))
def test_adaptive_aging_yields_only_to_what_comes_within_its_own_span(
    requests: list[Arrival], factor: float, floor: float
) -> None:
    """Bound of the adaptive alpha: the key lies alpha x service after the arrival, and never moves."""
    parameters = OrderParameters(adaptive_factor=factor, adaptive_floor=floor)
    served = serve(requests, make_discipline(Order.ADAPTIVE, parameters))
    starts_ms = [request.at_ms + one.wait_ms for request, one in zip(requests, served, strict=True)]
    for place, (request, one) in enumerate(zip(requests, served, strict=True)):
        for later in range(place + 1, len(requests)):
            overtakes = starts_ms[later] < starts_ms[place]
            assert not overtakes or requests[later].at_ms <= request.at_ms + one.key_ms + 1e-3


def order_of(order: Order, tickets: Sequence[Ticket], now_ms: float, **numbers: float) -> list[int]:
    line = make_discipline(order, OrderParameters(**numbers))
    for ticket in tickets:
        line.push(ticket.number, ticket)
    return [line.pop(now_ms) for _ in tickets]


def tickets(*rows: tuple[float, float]) -> list[Ticket]:
    return [
        Ticket(number=number, arrival_ms=arrival_ms, service_ms=service_ms, mean_service_ms=100.0)
        for number, (arrival_ms, service_ms) in enumerate(rows)
    ]


THREE = tickets((0, 300), (10, 100), (20, 200))


@pytest.mark.parametrize(
    ("order", "numbers", "now_ms", "expected"),
    [
        (Order.FCFS, {}, 30, [0, 1, 2]),
        (Order.SSJF, {}, 30, [1, 2, 0]),
        (Order.ORACLE, {}, 30, [1, 2, 0]),
        (Order.AGING, {"alpha": 0}, 30, [0, 1, 2]),
        (Order.AGING, {"alpha": math.inf}, 30, [1, 2, 0]),
        (Order.AGING, {"alpha": 0.15}, 30, [1, 0, 2]),
        (Order.ADAPTIVE, {"adaptive_floor": 1, "adaptive_factor": 0}, 30, [1, 2, 0]),
        (Order.RELATIVE_CAP, {"cap_factor": 1}, 50, [1, 2, 0]),
        (Order.RELATIVE_CAP, {"cap_factor": 0.1}, 50, [0, 1, 2]),
        (Order.RELATIVE_CAP, {"cap_factor": 0.2}, 50, [1, 2, 0]),
        (Order.RELATIVE_CAP, {"cap_factor": 0.2}, 35, [1, 2, 0]),
        (Order.RELATIVE_CAP, {"cap_factor": 0.15}, 48, [0, 1, 2]),
        (Order.HRRN, {}, 30, [1, 0, 2]),
        (Order.CLASSES, {"class_levels": 1}, 30, [0, 1, 2]),
    ],
)
def test_the_orders(order: Order, numbers: dict[str, float], now_ms: float, expected: list[int]) -> None:
    assert order_of(order, THREE, now_ms, **numbers) == expected


def test_the_predictors_own_priority_counts_where_it_is_given() -> None:
    line = make_discipline(Order.AGING, DEFAULTS)
    for number, priority in enumerate((2**64 - 1, 2**64 - 2, 5)):
        line.push(number, Ticket(number=number, arrival_ms=0, service_ms=1, priority=priority))
    assert [line.pop(0) for _ in range(3)] == [2, 1, 0]


def test_levels_are_percentiles_of_recent_lengths() -> None:
    line = make_discipline(Order.CLASSES, OrderParameters(class_levels=4))
    lengths = [float(length) for length in range(1, 401)]
    levels = {n: line.push(n, t) for n, t in enumerate(tickets(*((0, length) for length in lengths)))}
    assert set(levels.values()) <= {0.0, 1.0, 2.0, 3.0}
    late = {length: line.push(1000 + int(length), tickets((0, length))[0]) for length in (1.0, 150.0, 390.0)}
    assert list(late.values()) == [0.0, 1.0, 3.0]


def test_an_overload_never_becomes_the_ordinary_case() -> None:
    bound = BacklogBound(0.99, 1.0, 2.0)

    def patience(backlog_ms: float) -> float:
        return bound.patience_ms(Ticket(number=0, arrival_ms=0, service_ms=0, backlog_ms=backlog_ms))

    for backlog_ms in (0.0, 100.0, 50.0, 0.0):  # an episode that ended
        patience(backlog_ms)
    assert patience(60.0) == 100.0
    assert patience(200.0) == pytest.approx(1.5 * 200)  # half of the way to three times the ordinary tail
    for backlog_ms in range(301, 600):
        assert patience(float(backlog_ms)) == 2 * backlog_ms
    patience(0.0)
    assert patience(60.0) > 500.0


@settings(max_examples=150, deadline=None)
@given(ORDERS, st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), max_size=60), st.data())
def test_items_can_leave_from_the_middle(
    order: Order, steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    line, waiting, now_ms = make_discipline(order, DEFAULTS), [], 0.0
    for number, (action, service_ms) in enumerate(steps):
        now_ms += service_ms
        if action == 0 and waiting:
            item = data.draw(st.sampled_from(waiting))
            assert line.remove(item)
            assert not line.remove(item)
            waiting.remove(item)
        elif action == 1 and waiting:
            waiting.remove(line.pop(now_ms))
        else:
            line.push(number, Ticket(number=number, arrival_ms=now_ms, service_ms=service_ms))
            waiting.append(number)
        assert list(line) == waiting
        assert len(line) == len(waiting)
    for _ in waiting:
        line.pop(now_ms)
    with pytest.raises(IndexError):
        line.pop(now_ms)


def test_removed_requests_do_not_pile_up() -> None:
    line: DueOrder[int] = DueOrder(lambda ticket: 1e9)
    for number in range(5_000):
        line.push(number, Ticket(number=number, arrival_ms=0, service_ms=number))
        if number >= 10:
            line.pop(0) if number % 2 else line.remove(number)
    assert len(line) < 15
    assert len(line._becoming_due._heap) < 100


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.floats(0.01, 1), st.integers(1, 20))
def test_recent_values_are_those_of_a_sorted_window(values: list[float], share: float, window: int) -> None:
    one, many = RecentValues(window), RecentValues(window)
    for value in values:
        one.add(value)
    many.extend(values * 20)  # so many that they are sorted at once
    many.extend(values)
    for value in values * 20:
        one.add(value)
    for value in values:
        one.add(value)
    last = sorted((values * 22)[-window:])
    assert one.quantile(share) == many.quantile(share) == last[math.ceil(share * len(last)) - 1]
    assert one.rank(values[0]) == sum(value < values[0] for value in last) / len(last)
    assert len(one) == len(many) == len(last)


def test_nothing_has_no_quantile_and_no_ratio() -> None:
    assert RecentValues(3).quantile(0.5) == RecentValues(3).rank(1.0) == 0.0
    with pytest.raises(IndexError):
        HighestResponseRatio[int]().pop(0)
    with pytest.raises(InputError, match="batch_share: expected a number from"):
        OrderParameters(batch_share=0.0)

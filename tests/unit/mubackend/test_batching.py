from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mubackend.llm_engine.batching import Batching, BatchRule

COUNTS = st.integers(0, 50)
RULES = st.builds(
    BatchRule,
    batching=st.sampled_from(Batching),
    slots=st.integers(1, 16),
    delay_ms=st.floats(0, 1000),
)


def rule(batching: Batching) -> BatchRule:
    return BatchRule(batching=batching, slots=4, delay_ms=50.0)


def test_one_at_a_time_waits_for_the_running_one() -> None:
    alone = rule(Batching.NONE)
    assert [alone.room(running, 9, 0.0) for running in (0, 1)] == [1, 0]


def test_a_dynamic_batch_begins_when_it_is_full_or_late_and_takes_nobody_in() -> None:
    dynamic = rule(Batching.DYNAMIC)
    assert dynamic.room(0, 3, 49.0) == 0
    assert dynamic.room(0, 3, 50.0) == 3
    assert dynamic.room(0, 9, 0.0) == 4
    assert [dynamic.room(running, 9, 999.0) for running in (1, 3, 4)] == [0, 0, 0]


def test_continuous_batching_fills_every_free_slot_at_once() -> None:
    continuous = rule(Batching.CONTINUOUS)
    assert [continuous.room(running, 9, 0.0) for running in (0, 3, 4)] == [4, 1, 0]


@given(RULES, COUNTS, COUNTS, st.floats(0, 2000))
def test_no_rule_admits_more_than_wait_or_fit(
    rule: BatchRule, running: int, waiting: int, waited: float
) -> None:
    room = rule.room(running, waiting, waited)
    assert 0 <= room <= waiting
    assert room == 0 or running + room <= rule.slots


@given(RULES, st.integers(1, 50))
def test_an_idle_engine_serves_whoever_has_waited_long_enough(rule: BatchRule, waiting: int) -> None:
    assert rule.room(0, waiting, rule.delay_ms) >= 1

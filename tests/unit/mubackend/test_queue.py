from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mubackend.llm_engine.queue import PriorityQueue


@given(st.lists(st.integers(0, 5)))
def test_lowest_key_first_and_equal_keys_in_order_of_arrival(keys: list[int]) -> None:
    queue: PriorityQueue[tuple[int, int]] = PriorityQueue()
    items = [(key, number) for number, key in enumerate(keys)]
    for key, number in items:
        queue.push((key, number), key, number)
    assert [queue.pop() for _ in items] == sorted(items)
    assert not queue


class QueueAgainstSortedList(RuleBasedStateMachine):
    """Pushes, pops and removals from the middle, against a list that is sorted each time."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: PriorityQueue[tuple[int, int]] = PriorityQueue()
        self.model: list[tuple[int, int]] = []
        self.number = 0

    @rule(key=st.integers(0, 2**64 - 1) | st.integers(0, 3))
    def push(self, key: int) -> None:
        self.number += 1
        self.queue.push((key, self.number), key, self.number)
        self.model.append((key, self.number))

    @precondition(lambda self: self.model)
    @rule()
    def pop(self) -> None:
        self.model.sort()
        assert self.queue.pop() == self.model.pop(0)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.model))
        self.model.remove(item)
        assert self.queue.remove(item)
        assert not self.queue.remove(item)

    @invariant()
    def same_items(self) -> None:
        assert sorted(self.queue) == sorted(self.model)
        assert len(self.queue) == len(self.model)


TestQueueAgainstSortedList = QueueAgainstSortedList.TestCase


def test_removed_items_do_not_pile_up() -> None:
    queue: PriorityQueue[int] = PriorityQueue()
    for number in range(10_000):
        queue.push(number, number, number)
        if number >= 10:
            queue.remove(number)
    assert len(queue._heap) < 100
    assert [queue.pop() for _ in range(10)] == list(range(10))

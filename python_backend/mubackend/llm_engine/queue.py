"""The engine's waiting line: lowest priority first, equal priorities in order of arrival."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class PriorityQueue(Generic[Item]):
    """A heap whose items can also be taken out of the middle. Not safe for threads."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._waiting: dict[Item, None] = {}

    def push(self, item: Item, key: float, number: int) -> None:
        """Add an item; ``number`` is its place among items of equal ``key`` and must be unique."""
        heapq.heappush(self._heap, (key, number, item))
        self._waiting[item] = None

    def pop(self) -> Item:
        """Take the item with the lowest (key, number); IndexError when there is none."""
        while True:
            _, _, item = heapq.heappop(self._heap)
            if item in self._waiting:
                del self._waiting[item]
                return item

    def lowest_key(self) -> float:
        """The key of the next item; IndexError when there is none."""
        while self._heap[0][2] not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][0]

    def remove(self, item: Item) -> bool:
        """Take out one item, wherever it is; False when it is not waiting."""
        if item not in self._waiting:
            return False
        del self._waiting[item]
        if len(self._heap) > 2 * len(self._waiting) + 16:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)
        return True

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Item]:
        """The waiting items in order of insertion."""
        return iter(self._waiting)

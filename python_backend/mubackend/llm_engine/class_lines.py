"""One discipline for each traffic class, and which class goes next.

The highest class with somebody waiting goes first, unless a lower one is owed service. A class that waits
is credited ``share`` milliseconds for each millisecond of predicted service that other classes get, pays
for what it is given itself while a higher class waits, and is owed service once its credit is at least
the mean service of recent requests. It cannot starve: see ``docs/decisions/0012-traffic-classes.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from mubackend.llm_engine.disciplines import Discipline, Item, Ticket, make_discipline
from mubackend.llm_engine.queue import PriorityQueue
from muserve.queue_order import Order, OrderParameters, TrafficClass


class _ClassLine(Generic[Item]):
    """A class's waiting requests in their order, and beside it by predicted service."""

    def __init__(self, order: Order, parameters: OrderParameters) -> None:
        self.discipline: Discipline[Item] = make_discipline(order, parameters)
        self.shortest: PriorityQueue[Item] = PriorityQueue()
        self.work_ms = 0.0
        self.credit_ms = 0.0


class ClassLines(Generic[Item]):
    """Waiting requests of all classes. Owned by one thread."""

    def __init__(self, order: Order, parameters: OrderParameters) -> None:
        self._parameters = parameters
        self._lines = {name: _ClassLine[Item](order, parameters) for name in TrafficClass}
        self._joined: dict[Item, tuple[TrafficClass, Ticket]] = {}

    def push(self, item: Item, ticket: Ticket, traffic_class: TrafficClass) -> float:
        """Let an item join; its key, for those who watch."""
        line = self._lines[traffic_class]
        key = line.discipline.push(item, ticket)
        line.shortest.push(item, ticket.service_ms, ticket.number)
        line.work_ms += ticket.work_ms
        self._joined[item] = (traffic_class, ticket)
        return key

    def pop(self, now_ms: float, mean_service_ms: float) -> tuple[Item, bool]:
        """Take out who goes next, and whether a shorter one of its class stays behind.

        IndexError when nobody waits.
        """
        waiting = [name for name in TrafficClass if self._lines[name].discipline]
        if not waiting:
            raise IndexError("nobody waits")
        owed_from_ms = mean_service_ms or 1.0
        owed = [name for name in waiting[1:] if self._lines[name].credit_ms >= owed_from_ms]
        chosen = owed[0] if owed else waiting[0]
        item = self._lines[chosen].discipline.pop(now_ms)
        ticket = self._joined[item][1]
        for name in waiting[1:]:
            if name is chosen:
                self._lines[name].credit_ms -= ticket.work_ms
            else:
                self._lines[name].credit_ms += self._parameters.share(name) * ticket.work_ms
        line = self._lines[chosen]
        self._forget(item)
        return item, bool(line.shortest) and line.shortest.lowest_key() < ticket.service_ms

    def remove(self, item: Item) -> bool:
        """Take one item out of the middle; False when it does not wait."""
        if item not in self._joined:
            return False
        self._lines[self._joined[item][0]].discipline.remove(item)
        self._forget(item)
        return True

    def work_ms(self, traffic_class: TrafficClass = TrafficClass.BATCH) -> float:
        """Predicted service of everybody who waits in this class or a higher one."""
        names = list(TrafficClass)
        return sum(self._lines[name].work_ms for name in names[: names.index(traffic_class) + 1])

    def _forget(self, item: Item) -> None:
        name, ticket = self._joined.pop(item)
        line = self._lines[name]
        line.shortest.remove(item)
        line.work_ms = line.work_ms - ticket.work_ms if line.discipline else 0.0
        if not line.discipline:
            line.credit_ms = 0.0

    def __len__(self) -> int:
        return len(self._joined)

    def __iter__(self) -> Iterator[Item]:
        """Everybody, in order of joining."""
        return iter(self._joined)

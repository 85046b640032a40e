"""Queue disciplines: which of the waiting requests goes next. Pure: the time is always given.

``ssjf``, ``fcfs``, ``aging``, ``adaptive``, ``classes`` and ``oracle`` have a key that never changes
while a request waits: one heap, O(log n). ``bounded`` and ``relative_cap`` add a time at which a
request becomes *overdue*; overdue requests go first, in order of arrival: three heaps, O(log n). ``hrrn``
(Hansen 1971) compares ratios that change with time and looks at everybody: O(n) for each pop.

Bounds on waiting are proved in ``docs/decisions/0011-a-bound-that-follows-the-backlog.md``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mubackend.llm_engine.queue import PriorityQueue
from mubackend.llm_engine.recent_values import RecentValues
from muserve.queue_order import Order, OrderParameters

BACKLOG_WINDOW = 10_000
EXTREME_BACKLOG = 3.0
_LENGTH_WINDOW = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a discipline knows of a request when it joins the line. Times in milliseconds.

    ``number`` counts arrivals. ``service_ms``: predicted, 0 when unknown. ``backlog_ms``: predicted time
    until first come, first served would have given it a slot. ``mean_service_ms``: of recent requests.
    ``pace``: actual over predicted service of late; ``backlog_ms`` has it in it, the services do not.
    ``priority``: arrival + alpha x service as the predictor step computed it, None when nobody did.
    """

    number: int
    arrival_ms: float
    service_ms: float
    backlog_ms: float = 0.0
    mean_service_ms: float = 0.0
    pace: float = 1.0
    priority: int | None = None

    @property
    def work_ms(self) -> float:
        """The service to reckon with: the mean where it is unknown, and never nothing."""
        return self.service_ms or self.mean_service_ms or 1.0


Item = TypeVar("Item", bound=Hashable)


class Discipline(Protocol[Item]):
    """A waiting line. Owned by one thread."""

    def push(self, item: Item, ticket: Ticket) -> float:
        """Let an item join; the key it is ordered by, from its arrival on where the order counts time."""

    def pop(self, now_ms: float) -> Item:
        """Take out who goes next; IndexError when nobody waits. ``now_ms`` must not go back."""

    def remove(self, item: Item) -> bool:
        """Take one item out of the middle; False when it does not wait."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]:
        """Everybody, in order of joining."""


class KeyOrder(Generic[Item]):
    """Lowest key first; equal keys in order of arrival. ``key`` is asked once for each request."""

    def __init__(self, key: Callable[[Ticket], float], *, counts_arrival: bool = False) -> None:
        self._key = key
        self._counts_arrival = counts_arrival
        self._queue: PriorityQueue[Item] = PriorityQueue()

    def push(self, item: Item, ticket: Ticket) -> float:
        key = self._key(ticket)
        self._queue.push(item, key, ticket.number)
        return key - ticket.arrival_ms if self._counts_arrival else key

    def pop(self, now_ms: float) -> Item:
        return self._queue.pop()

    def remove(self, item: Item) -> bool:
        return self._queue.remove(item)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._queue)


class DueOrder(Generic[Item]):
    """Overdue requests first, in order of arrival; the others by predicted service, shortest first.

    ``patience_ms`` is asked once for each request: how long after its arrival it becomes overdue.
    """

    def __init__(self, patience_ms: Callable[[Ticket], float]) -> None:
        self._patience_ms = patience_ms
        self._shortest: PriorityQueue[Item] = PriorityQueue()
        self._becoming_due: PriorityQueue[Item] = PriorityQueue()
        self._overdue: PriorityQueue[Item] = PriorityQueue()
        self._numbers: dict[Item, int] = {}

    def push(self, item: Item, ticket: Ticket) -> float:
        patience_ms = self._patience_ms(ticket)
        self._numbers[item] = ticket.number
        self._shortest.push(item, ticket.service_ms, ticket.number)
        self._becoming_due.push(item, ticket.arrival_ms + patience_ms, ticket.number)
        return patience_ms

    def pop(self, now_ms: float) -> Item:
        while self._becoming_due and self._becoming_due.lowest_key() <= now_ms:
            due = self._becoming_due.pop()
            self._overdue.push(due, self._numbers[due], self._numbers[due])
        item = self._overdue.pop() if self._overdue else self._shortest.pop()
        self.remove(item)
        return item

    def remove(self, item: Item) -> bool:
        self._shortest.remove(item)
        self._becoming_due.remove(item)
        self._overdue.remove(item)
        return self._numbers.pop(item, None) is not None

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._numbers)


class HighestResponseRatio(Generic[Item]):
    """Highest (waited + service) / service first."""

    def __init__(self) -> None:
        self._tickets: dict[Item, Ticket] = {}

    def push(self, item: Item, ticket: Ticket) -> float:
        self._tickets[item] = ticket
        return ticket.service_ms

    def pop(self, now_ms: float) -> Item:
        if not self._tickets:
            raise IndexError("nobody waits")

        def rank(item: Item) -> tuple[float, int]:
            ticket = self._tickets[item]
            # An unknown service counts as next to nothing, as in the other orders.
            return -(now_ms - ticket.arrival_ms) / max(ticket.service_ms, 1e-3), ticket.number

        item = min(self._tickets, key=rank)
        del self._tickets[item]
        return item

    def remove(self, item: Item) -> bool:
        return self._tickets.pop(item, None) is not None

    def __len__(self) -> int:
        return len(self._tickets)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._tickets)


class BacklogBound:
    """How long a request may be overtaken, from the backlogs that requests have met so far.

    First come, first served would have let a request wait its ``backlog_ms``. Up to a quantile Q of
    what past requests met, everybody may wait ``ordinary * Q``: the tail of the waiting times stays
    about that of first come, first served. A request that meets a longer backlog b may wait
    ``factor * b``: from 1 where b is Q, so that the longest waits of ordinary bursts stay what they were,
    to ``extreme`` where b is ``EXTREME_BACKLOG`` times Q or more, as in an overload. Backlogs count as
    past when an arrival finds a free slot, so a lasting overload never becomes the ordinary case.
    """

    def __init__(self, quantile: float, ordinary: float, extreme: float) -> None:
        self._quantile = quantile
        self._ordinary = ordinary
        self._extreme = extreme
        self._past = RecentValues(BACKLOG_WINDOW)
        self._episode: deque[float] = deque(maxlen=BACKLOG_WINDOW)
        self._tail_ms = 0.0

    def patience_ms(self, ticket: Ticket) -> float:
        """The bound for this request; takes its backlog into account for later ones.

        Its own service counts as waiting too, as the bound is about when a request is answered.
        """
        backlog_ms = ticket.backlog_ms
        bound_ms = self._ordinary * self._tail_ms
        if backlog_ms > self._tail_ms:
            bound_ms = max(bound_ms, self._factor(backlog_ms) * backlog_ms)
        self._episode.append(backlog_ms)
        if not backlog_ms:
            self._past.extend(self._episode)
            self._episode.clear()
            self._tail_ms = self._past.quantile(self._quantile)
        return max(0.0, bound_ms + ticket.pace * (ticket.mean_service_ms - ticket.service_ms))

    def _factor(self, backlog_ms: float) -> float:
        excess = (backlog_ms / self._tail_ms - 1.0) / (EXTREME_BACKLOG - 1.0) if self._tail_ms else 1.0
        return 1.0 + (self._extreme - 1.0) * min(1.0, excess)


class LengthLevels:
    """Level 0 to k - 1 of a request by where its predicted service stands among recent ones."""

    def __init__(self, levels: int) -> None:
        self._levels = levels
        self._recent = RecentValues(_LENGTH_WINDOW)

    def level(self, ticket: Ticket) -> float:
        """The request's level; takes it into account for later ones."""
        level = min(int(self._recent.rank(ticket.service_ms) * self._levels), self._levels - 1)
        self._recent.add(ticket.service_ms)
        return float(level)


def aged_key(alpha: float) -> Callable[[Ticket], float]:
    """Virtual finish time with a fixed alpha; the predictor step's own where it comes with the request."""

    def key(ticket: Ticket) -> float:
        if ticket.priority is not None:
            return ticket.priority
        if alpha == math.inf:
            return ticket.service_ms
        return ticket.arrival_ms + alpha * ticket.service_ms

    return key


def adaptive_key(factor: float, floor: float) -> Callable[[Ticket], float]:
    """Virtual finish time with ``alpha = max(floor, factor * backlog / mean service)``."""

    def key(ticket: Ticket) -> float:
        mean_ms = ticket.mean_service_ms
        alpha = max(floor, factor * ticket.backlog_ms / mean_ms) if mean_ms else floor
        return ticket.arrival_ms + alpha * ticket.service_ms

    return key


def make_discipline(order: Order, parameters: OrderParameters) -> Discipline[Item]:
    """An empty line of that order."""
    p = parameters
    match order:
        case Order.FCFS:
            return KeyOrder(lambda ticket: 0.0)
        case Order.SSJF | Order.ORACLE:
            return KeyOrder(lambda ticket: ticket.service_ms)
        case Order.AGING:
            return KeyOrder(aged_key(p.alpha), counts_arrival=p.alpha != math.inf)
        case Order.ADAPTIVE:
            return KeyOrder(adaptive_key(p.adaptive_factor, p.adaptive_floor), counts_arrival=True)
        case Order.CLASSES:
            return KeyOrder(LengthLevels(int(p.class_levels)).level)
        case Order.RELATIVE_CAP:
            return DueOrder(lambda ticket: p.cap_factor * ticket.service_ms)
        case Order.BOUNDED:
            return DueOrder(BacklogBound(p.bound_quantile, p.bound_ordinary, p.bound_extreme).patience_ms)
        case Order.HRRN:
            return HighestResponseRatio()

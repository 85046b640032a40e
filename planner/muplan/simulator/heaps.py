# mypy: disable-error-code="no-any-return"
"""The two heaps of the event loop, compiled.

*Waiting lines* are skew heaps (D. Sleator and R. Tarjan, Self-adjusting heaps, SIAM J. Comput. 15, 1986)
threaded through the pool of requests, so that any number of lines share one pool. Order: ``key``, then
``number``. *Events* are a binary heap with one entry a source, whose time can be changed in place. Order:
time, then source.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from muplan.simulator.compiled import NOBODY, compiled


@compiled
def precedes(requests: npt.NDArray[Any], one: int, two: int) -> bool:
    """Whether request ``one`` goes before request ``two``."""
    key, other = requests[one].key, requests[two].key
    return key < other or (key == other and requests[one].number < requests[two].number)


@compiled
def merged(requests: npt.NDArray[Any], one: int, two: int) -> int:
    """The first of two lines joined; either may be empty (``NOBODY``)."""
    if one == NOBODY:
        return two
    if two == NOBODY:
        return one
    if precedes(requests, two, one):
        one, two = two, one
    first = one
    while True:
        rest = requests[one].right
        requests[one].right = requests[one].left
        if rest == NOBODY:
            requests[one].left = two
            return first
        if precedes(requests, two, rest):
            rest, two = two, rest
        requests[one].left = rest
        one = rest


@compiled
def pushed(requests: npt.NDArray[Any], first: int, item: int) -> int:
    """The first of the line after ``item`` has joined it."""
    requests[item].left = NOBODY
    requests[item].right = NOBODY
    return merged(requests, first, item)


@compiled
def popped(requests: npt.NDArray[Any], first: int) -> int:
    """The first of the line after its first has left it."""
    return merged(requests, requests[first].left, requests[first].right)


@compiled
def reschedule(
    due_ms: npt.NDArray[Any], order: npt.NDArray[Any], place: npt.NDArray[Any], source: int, time_ms: float
) -> None:
    """Set the time of ``source``'s next event; ``order[0]`` is the source whose event is next.

    ``place`` is the inverse of ``order``.
    """
    due_ms[source] = time_ms
    here = place[source]
    while here > 0:
        above = (here - 1) // 2
        other = order[above]
        if due_ms[other] < time_ms or (due_ms[other] == time_ms and other < source):
            break
        order[here] = other
        place[other] = here
        here = above
    while True:
        below = 2 * here + 1
        if below >= len(order):
            break
        if below + 1 < len(order):
            left, right = order[below], order[below + 1]
            if due_ms[right] < due_ms[left] or (due_ms[right] == due_ms[left] and right < left):
                below += 1
        other = order[below]
        if time_ms < due_ms[other] or (time_ms == due_ms[other] and source < other):
            break
        order[here] = other
        place[other] = here
        here = below
    order[here] = source
    place[source] = here

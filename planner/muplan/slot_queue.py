"""The waiting line of a token engine: a GE/M(n)/c queue in closed form. Pure; times in milliseconds.

Bursts are batches: gaps are zero with chance p and exponential otherwise, with p = (ca^2 - 1) / (ca^2 + 1) so
that their coefficient of variation is ca. That is the generalised exponential (GE) distribution, the one of
largest entropy with a given mean and ca. An engine that runs n requests completes them at a rate m(n).
Batches then jump over a level n at rate ``b S(n)``, where b is the rate of batches and ``S(n) = P(n) + p
S(n-1)``; as many requests fall below it, ``m(n+1) P(n+1)``, so that

    S(n) = S(n-1) (p + b / m(n)),

and the chance that a request finds n others is ``(1 - p) S(n)``. With ca = 1 and m(n) = n m it is Erlang's
M/M/c. Arrivals more regular than Poisson are taken for Poisson. Past the last slot the chances fall
geometrically and the wait is exponential, with the rate ``2 (m(c) - rate) / (ca^2 + cs^2)`` that the
heavy-traffic limit has for any spread cs of the service times.

Sources: D. Kouvatsos, Entropy maximisation and queueing network models, Annals of Operations Research 48
(1994); J. Kingman, On queues in heavy traffic, J. Royal Stat. Soc. B 24 (1962), and for several servers
W. Whitt, Approximations for the GI/G/m queue, Production and Operations Management 2 (1993).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotQueue:
    """``finds[n]`` is the chance that a request finds n others and a free slot, ``waits`` that it finds none.

    ``busy`` is the share of time with any request there, ``decay`` how fast the chance of a long wait
    falls, per millisecond.
    """

    finds: NDArray[np.float64]
    waits: float
    decay: float
    busy: float


def slot_queue(
    rate_per_ms: float, completions_per_ms: NDArray[np.float64], arrival_cv: float, service_cv: float
) -> SlotQueue | None:
    """The line for slots that complete ``completions_per_ms`` while 1, 2, ... of them are taken ([slots]).

    None if overloaded. Rates are positive.
    """
    spare = float(completions_per_ms[-1]) - rate_per_ms
    if spare <= 0.0:
        return None
    variance = arrival_cv**2
    joins = max(0.0, (variance - 1.0) / (variance + 1.0))
    steps = joins + (1.0 - joins) * rate_per_ms / completions_per_ms
    logs = np.zeros(len(steps))
    np.cumsum(np.log(steps[:-1]), out=logs[1:])
    levels = np.exp(logs - logs.max())
    beyond = float(levels[-1] * steps[-1] * completions_per_ms[-1]) / ((1.0 - joins) * spare)
    total = float(levels.sum()) + beyond
    return SlotQueue(
        finds=levels / total,
        waits=beyond / total,
        decay=2.0 * spare / (variance + service_cv**2),
        # The first request of a batch finds the queue as time does.
        busy=max(0.0, 1.0 - float(levels[0]) / total / (1.0 - joins)),
    )

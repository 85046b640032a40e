"""The order in which waiting requests are served: by virtual finish time, lower first.

``priority = arrival_ms + alpha * predicted_service_ms``. With ``alpha = 0`` this is first come, first
served; with ``alpha = inf`` it is shortest predicted job first; in between it is shortest predicted job
first with aging. The key never changes while a request waits, so aging costs nothing.

Bound on waiting: a request A is overtaken by a later arrival B only when
``B.arrival_ms - A.arrival_ms < alpha * (A.service_ms - B.service_ms) + 1`` (the 1 is rounding to whole
milliseconds), so whatever arrives more than ``alpha * A.service_ms + 1`` ms after A waits behind A. With
``alpha = inf`` there is no bound.
"""

from __future__ import annotations

import math

PRIORITY_MAX = 2**64 - 1


def predicted_service_ms(const_ms: float, ms_per_token: float, tokens: float) -> float:
    """Time that one request occupies its slot: a constant part and one part for each answer token."""
    return const_ms + ms_per_token * tokens


def virtual_finish_ms(arrival_ms: int, alpha: float, service_ms: float) -> int:
    """The priority, an unsigned 64-bit integer; ``alpha = inf`` leaves the service time alone.

    A request of unknown length gets ``service_ms = 0``: its arrival time under aging, and under
    ``alpha = inf`` the front of the queue, so that it can never starve.
    Raises ValueError for a negative time or alpha, or one that is not a number.
    """
    if not (arrival_ms >= 0 and alpha >= 0.0 and 0.0 <= service_ms < math.inf):
        raise ValueError(
            f"expected values >= 0, got arrival_ms {arrival_ms}, alpha {alpha}, service_ms {service_ms}"
        )
    if math.isinf(alpha):
        return min(math.floor(service_ms), PRIORITY_MAX)
    return min(arrival_ms + math.floor(min(alpha * service_ms, float(PRIORITY_MAX))), PRIORITY_MAX)

"""Waiting-time formulas that the placement uses. Pure; times in milliseconds, rates per millisecond.

They are approximations with names, so that a plan can say what it believed:

* a GPU is shared by processor sharing (time slicing between processes), whose mean response depends on
  the service time only through its mean;
* the requests of a single-pass model wait in a line of their own, a GI/D/1 queue with Gamma gaps whose
  service is stretched by whoever else works there. Partitions on one GPU are one such queue, because
  in a burst all of them work; of partitions on several GPUs the slowest makes the line;
* how many others work beside a request of a single-pass model is drawn once for the whole request: each is
  there, independently, for the share of time that it works; token engines and longer stages stay so long that
  the whole line meets them. Requests that take much longer than the others'
  see the mean instead, for which this is a lower bound;
* a token engine has at most one step on the GPU at a time, so while it is busy it is one permanent
  customer there;
* the requests of a token engine wait for one of its slots (``muplan.slot_queue``);
* the arrivals of one of n replicas are those of the model, each kept with probability 1/n.

Sources: L. Kleinrock, Queueing Systems vol. 2 (1976), sections 4.4 and 2.1; W. Whitt, The Queueing
Network Analyzer, Bell System Technical Journal 62 (1983), section 4.4; J. Kingman, A martingale inequality in
the theory of queues, Proc. Camb. Phil. Soc. 60 (1964).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

# Equally likely answer lengths that stand for the whole distribution; 200 resolve an attainment of
# 0.995.
LENGTH_QUANTILES = 200

_METRONOME_CV = 0.05
_NEWTON_STEPS = 12


def processor_sharing(load: float, permanent: float) -> float:
    """How many times as long work takes on a time-shared server as alone; infinite if overloaded.

    ``load`` is the share of time that passing work needs, ``permanent`` the mean number of customers
    that are always there. With one such customer it gets ``1 - load`` of the server itself: ask with
    ``permanent = 0`` for its stretch.
    """
    return math.inf if load >= 1.0 else (1.0 + permanent) / (1.0 - load)


def decay_rate(rate_per_ms: float, service_ms: float, arrival_cv: float) -> float:
    """How fast the chance of a long wait in GI/D/1 falls, per millisecond; 0 if overloaded.

    Gaps are Gamma distributed. A wait exceeds x with at most chance ``exp(-eta x)`` (Kingman's bound), where
    ``A(eta) exp(eta service) = 1`` and A is the Laplace transform of the gaps.
    """
    load = rate_per_ms * service_ms
    if load >= 1.0:
        return 0.0
    variance = max(arrival_cv, _METRONOME_CV) ** 2
    # y - ln(1 + y v / load) / v with y = eta service is convex, 0 at 0 and at the root wanted: from the
    # right of the root Newton's method comes down to it.
    root = (2.0 * (1.0 - load) + 4.0 * (1.0 + variance) * max(1.0, -math.log(load))) / variance
    for _ in range(_NEWTON_STEPS):
        value = root - math.log1p(root * variance / load) / variance
        root -= value / (1.0 - 1.0 / (load + root * variance))
    return root / service_ms


def line_within(slack_ms: float, decay: float) -> float:
    """Chance that a wait whose tail falls with ``decay`` stays within ``slack_ms``; a lower bound."""
    return -math.expm1(-decay * slack_ms) if slack_ms > 0.0 and decay > 0.0 else 0.0


def present(chances: Iterable[float], most: int) -> list[float]:
    """Chances that 0, 1, ... up to ``most`` of the independent others are there; the rest is more."""
    counts = [1.0]
    for chance in chances:
        counts = [
            a * (1.0 - chance) + b * chance for a, b in zip([*counts, 0.0], [0.0, *counts], strict=True)
        ]
        del counts[most + 1 :]
    return counts


def length_quantiles(mean: float, cv: float, count: int = LENGTH_QUANTILES) -> tuple[float, ...]:
    """``count`` equally likely log-normal lengths, ascending, whose mean is ``mean`` exactly."""
    if cv == 0.0:
        return (mean,)
    spread = math.sqrt(math.log1p(cv * cv))
    normal = NormalDist()
    raw = [math.exp(spread * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    scale = mean * count / math.fsum(raw)
    return tuple(scale * value for value in raw)


def split_cv(cv: float, replicas: int) -> float:
    """Coefficient of variation of the gaps at one of ``replicas`` that share arrivals at random.

    Exact for renewal arrivals: c^2 = cv^2 / n + 1 - 1 / n. Bursts thin out towards Poisson; very
    regular arrivals lose their regularity. A server that hands each request to a free replica, as Triton
    does, waits less than this says.
    """
    return math.sqrt(cv * cv / replicas + (1.0 - 1.0 / replicas))

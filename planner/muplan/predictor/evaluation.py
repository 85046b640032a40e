"""How good a predicted length is, for a scheduler: metrics, and a simulation of what it buys.

All of it is pure. Definitions: normalised Gini is cov(length, rank of prediction) / cov(length, rank
of length), which for a queue drained by one server equals the captured share; the captured share is
(FCFS - SSJF) / (FCFS - SJF) in mean job completion time, SJF knowing the true lengths.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muserve.errors import InputError

BASE_S = 0.1
SECONDS_PER_TOKEN = 0.02
LOAD = 0.9
ARRIVAL_CV = 2.0
REQUESTS = 20_000
SEEDS = (1, 2, 3, 4)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Figures of one predictor on one set of rows.

    Classes are those of the expected length. ``binary_f1`` is that of "longer than the median",
    ``five_class_f1`` the mean over the classes. ``captured_spread``: standard deviation over four seeds.
    """

    rows: int
    kendall_tau: float
    spearman: float
    gini: float
    mae_tokens: float
    binary_accuracy: float
    binary_f1: float
    five_class_accuracy: float
    five_class_f1: float
    captured: float
    captured_spread: float


def judge(tokens: Floats, predicted: Floats, edges: Floats) -> Quality:
    """Compare ``predicted`` with true ``tokens``; ``edges`` are p25, p50, p75 and p99 of the train side."""
    try:
        from scipy.stats import kendalltau, spearmanr
    except ModuleNotFoundError as error:
        raise InputError('judging a predictor needs SciPy: pip install "muserve[train]"') from error
    shares = captured_shares(tokens, predicted)
    long, said_long = tokens > edges[1], predicted > edges[1]
    classes, said = np.digitize(tokens, edges), np.digitize(predicted, edges)
    constant = bool(np.ptp(predicted) == 0.0 or np.ptp(tokens) == 0.0)
    return Quality(
        rows=len(tokens),
        kendall_tau=0.0 if constant else float(kendalltau(predicted, tokens).statistic),
        spearman=0.0 if constant else float(spearmanr(predicted, tokens).statistic),
        gini=normalised_gini(tokens, predicted),
        mae_tokens=float(np.abs(tokens - predicted).mean()),
        binary_accuracy=float((long == said_long).mean()),
        binary_f1=_f1(long, said_long),
        five_class_accuracy=float((classes == said).mean()),
        five_class_f1=float(np.mean([_f1(classes == c, said == c) for c in np.unique(classes)])),
        captured=float(np.mean(shares)),
        captured_spread=float(np.std(shares)),
    )


def _f1(true: NDArray[np.bool_], said: NDArray[np.bool_]) -> float:
    """Harmonic mean of precision and recall; 0 when nothing was found."""
    named = int(true.sum() + said.sum())
    return 2.0 * int((true & said).sum()) / named if named else 0.0


def normalised_gini(tokens: Floats, predicted: Floats) -> float:
    """1 for the true order, 0 for no relation, -1 for the reverse; ties share their mean rank."""
    best = _covariance(tokens, _ranks(tokens))
    return _covariance(tokens, _ranks(predicted)) / best if best > 0.0 else 0.0


def _covariance(one: Floats, other: Floats) -> float:
    return float(np.mean((one - one.mean()) * (other - other.mean())))


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2.0)[inverse], np.float64)


def captured_shares(
    tokens: Floats, predicted: Floats, seeds: tuple[int, ...] = SEEDS, requests: int = REQUESTS
) -> Floats:
    """The captured share, one a seed: one server at load 0.9, Gamma arrivals of CV 2, no preemption.

    ``requests`` rows are drawn with replacement; a request takes 0.1 s + 0.02 s a token.
    """
    shares = []
    for seed in seeds:
        random = np.random.default_rng(seed)
        drawn = random.integers(0, len(tokens), requests)
        service_s = BASE_S + SECONDS_PER_TOKEN * tokens[drawn]
        gap_s = float(service_s.mean()) / LOAD
        shape = 1.0 / ARRIVAL_CV**2
        arrival_s = np.cumsum(random.gamma(shape, gap_s / shape, requests))
        fcfs, ssjf, sjf = (
            simulate_jct_s(arrival_s, service_s, key).mean()
            for key in (arrival_s, predicted[drawn], service_s)
        )
        shares.append((fcfs - ssjf) / (fcfs - sjf) if fcfs > sjf else 0.0)
    return np.array(shares)


def simulate_jct_s(arrival_s: Floats, service_s: Floats, key: Floats) -> Floats:
    """Completion minus arrival of each request on one server that always takes the lowest ``key`` waiting.

    ``arrival_s`` must ascend; ties in ``key`` go by arrival; a started request is not interrupted.
    """
    count = len(arrival_s)
    arrivals, services, keys = arrival_s.tolist(), service_s.tolist(), key.tolist()
    jct_s = np.zeros(count)
    waiting: list[tuple[float, int]] = []
    now_s, coming = 0.0, 0
    for _ in range(count):
        if not waiting:
            now_s = max(now_s, arrivals[coming])
        while coming < count and arrivals[coming] <= now_s:
            heapq.heappush(waiting, (keys[coming], coming))
            coming += 1
        _, request = heapq.heappop(waiting)
        now_s += services[request]
        jct_s[request] = now_s - arrivals[request]
    return jct_s

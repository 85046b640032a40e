"""The line of a token engine: where it is exact, and what it is monotone in."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.operating import ClusterModel
from muplan.slot_queue import SlotQueue, slot_queue
from sample_demands import V100, cluster, generative

cvs = st.floats(0.0, 4.0)
loads = st.floats(0.01, 0.98)
slots = st.integers(1, 64)


def alike(rate: float, servers: int, arrival_cv: float = 1.0, service_cv: float = 1.0) -> SlotQueue:
    """Servers that do not slow each other down, with a mean service of 1 ms."""
    line = slot_queue(rate, np.arange(1.0, servers + 1), arrival_cv, service_cv)
    assert line is not None
    return line


def test_two_servers_at_load_three_quarters_are_erlangs() -> None:
    """P(wait) = 9/14 and P(0) = 1/7 (Kleinrock vol. 1, eq. 3.40)."""
    line = alike(1.5, 2)
    assert line.waits == pytest.approx(9 / 14)
    assert line.busy == pytest.approx(6 / 7)


@pytest.mark.parametrize("service_cv", [0.0, 1.0, 2.0])
def test_one_server_with_poisson_arrivals_is_pollaczek_khinchines(service_cv: float) -> None:
    line = alike(0.8, 1, service_cv=service_cv)
    assert line.waits / line.decay == pytest.approx(0.8 / 0.2 * (1 + service_cv**2) / 2)


@given(load=loads, cv=cvs)
def test_one_server_is_busy_for_its_load_whatever_the_bursts(load: float, cv: float) -> None:
    assert alike(load, 1, cv).busy == pytest.approx(load)


@given(load=loads, servers=slots, cv=cvs)
def test_a_request_finds_some_number_of_others(load: float, servers: int, cv: float) -> None:
    line = alike(load * servers, servers, cv)
    assert line.finds.min() >= 0.0
    assert line.finds.sum() + line.waits == pytest.approx(1.0)
    assert 0.0 <= line.busy <= 1.0


def test_geometric_batches_against_a_solved_markov_chain() -> None:
    """The chain itself, cut off at 400 requests: batches of mean 2.5, three servers."""
    rate, servers, cv, size = 2.0, 3, 2.0, 400
    joins = (cv**2 - 1) / (cv**2 + 1)
    chain = np.zeros((size, size))
    for here in range(size):
        for more in range(1, size - here):
            chain[here, here + more] = rate * (1 - joins) * (1 - joins) * joins ** (more - 1)
        if here:
            chain[here, here - 1] = min(here, servers)
        chain[here, here] = -chain[here].sum()
    balance = np.vstack([chain.T, np.ones(size)])
    chances = np.linalg.lstsq(balance, np.append(np.zeros(size), 1.0), rcond=None)[0]
    line = alike(rate, servers, cv)
    assert line.busy == pytest.approx(1 - chances[0])
    # Little's law, with exponential service.
    assert rate * (1.0 + line.waits / line.decay) == pytest.approx(chances @ np.arange(size), rel=1e-6)


@given(load=loads, servers=slots, cv=cvs, faster=st.floats(1.0, 3.0))
def test_faster_slots_and_more_of_them_never_hurt(
    load: float, servers: int, cv: float, faster: float
) -> None:
    rate = load * servers
    line, more, quick = (
        alike(rate, servers, cv),
        alike(rate, servers + 1, cv),
        alike(rate / faster, servers, cv),
    )
    assert max(more.waits, quick.waits) <= line.waits + 1e-12
    assert more.decay >= line.decay
    assert quick.busy <= line.busy + 1e-12


@given(load=loads, servers=slots, cv=st.floats(1.0, 4.0))
def test_bursts_lengthen_the_wait_and_the_idle_gaps(load: float, servers: int, cv: float) -> None:
    calm, bursty = alike(load * servers, servers, cv), alike(load * servers, servers, cv + 0.5)
    assert bursty.decay < calm.decay
    assert bursty.busy <= calm.busy + 1e-12


@given(rate=st.floats(0.1, 8.0), cv=cvs, count=slots, more=st.floats(1.0, 1.5), slo=st.floats(500.0, 8000.0))
def test_attainment_rises_with_the_clock_and_falls_with_the_rate(
    rate: float, cv: float, count: int, more: float, slo: float
) -> None:
    def attained(rate: float) -> list[float]:
        demand = replace(generative("llm", rate=rate, slo=slo, cv=cv), slots=count)
        model = ClusterModel([demand], cluster(1))
        return [model.point({(0, 0): 0}, [clock]).attainment[0] for clock in V100.working_clocks_mhz[::8]]

    calm, busy = attained(rate), attained(rate * more)
    assert all(left <= right + 1e-9 for left, right in pairwise(calm))
    assert all(right <= left + 1e-9 for left, right in zip(calm, busy, strict=True))


def test_overload() -> None:
    assert slot_queue(2.0, np.array([1.0, 2.0]), 1.0, 1.0) is None

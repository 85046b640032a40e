from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mubackend.priority import PRIORITY_MAX, predicted_service_ms, virtual_finish_ms

ARRIVALS = st.integers(0, 4_000_000_000_000)
ALPHAS = st.floats(0.0, 1000.0)
SERVICES = st.floats(0.0, 1e7)


@given(ARRIVALS, SERVICES, ARRIVALS, SERVICES, ALPHAS)
def test_a_request_yields_only_to_arrivals_within_the_bound(
    arrival_a: int, service_a: float, gap: int, service_b: float, alpha: float
) -> None:
    arrival_b = arrival_a + gap
    if virtual_finish_ms(arrival_b, alpha, service_b) < virtual_finish_ms(arrival_a, alpha, service_a):
        assert gap < alpha * (service_a - service_b) + 1


@given(ARRIVALS, ARRIVALS, SERVICES, SERVICES)
def test_alpha_0_is_first_come_first_served(a: int, b: int, service_a: float, service_b: float) -> None:
    assert (virtual_finish_ms(a, 0.0, service_a) < virtual_finish_ms(b, 0.0, service_b)) == (a < b)


@given(ARRIVALS, ARRIVALS, st.integers(0, 10**7), st.integers(0, 10**7))
def test_alpha_inf_looks_at_the_service_time_alone(a: int, b: int, service_a: int, service_b: int) -> None:
    earlier = virtual_finish_ms(a, math.inf, service_a) < virtual_finish_ms(b, math.inf, service_b)
    assert earlier == (service_a < service_b)


@given(ARRIVALS, SERVICES, st.floats(0.0, math.inf))
def test_unknown_length_is_never_behind_a_known_one_of_the_same_arrival(
    arrival: int, service: float, alpha: float
) -> None:
    assert virtual_finish_ms(arrival, alpha, 0.0) <= virtual_finish_ms(arrival, alpha, service)


@given(ARRIVALS, st.floats(0.0, 1e300), st.floats(0.0, 1e300))
def test_keys_are_unsigned_64_bit(arrival: int, alpha: float, service: float) -> None:
    assert 0 <= virtual_finish_ms(arrival, alpha, service) <= PRIORITY_MAX


@pytest.mark.parametrize(
    ("arrival", "alpha", "service"),
    [
        (-1, 1.0, 1.0),
        (0, -1.0, 1.0),
        (0, 1.0, -1.0),
        (0, 1.0, math.nan),
        (0, math.nan, 1.0),
        (0, 1.0, math.inf),
    ],
)
def test_what_is_no_time_is_refused(arrival: int, alpha: float, service: float) -> None:
    with pytest.raises(ValueError, match="expected values >= 0"):
        virtual_finish_ms(arrival, alpha, service)


def test_service_is_a_constant_and_one_part_for_each_token() -> None:
    assert predicted_service_ms(30.0, 12.5, 4.0) == 80.0

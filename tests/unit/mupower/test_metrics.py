"""Prometheus text, windowed increases and quantiles."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mupower.metrics import (
    Histogram,
    Snapshot,
    counter_increase,
    histogram_increase,
    merge,
    parse_metrics,
)
from muserve.errors import MetricsUnavailableError

URL = "http://127.0.0.1:8002/metrics"


def counters(value: float, name: str = "c", time_s: float = 0.0, **labels: str) -> Snapshot:
    shown = ",".join(f'{key}="{text}"' for key, text in labels.items())
    return parse_metrics(f"# TYPE {name} counter\n{name}{{{shown}}} {value}\n", time_s, URL)


def test_counters_lose_their_suffix_whichever_way_they_are_written() -> None:
    text = "# TYPE a counter\na 1\n# TYPE b_total counter\nb_total 2\n"
    snapshot = parse_metrics(text, 3.0, URL)
    assert snapshot.time_s == 3.0
    assert set(snapshot.counters) == {"a", "b"}
    assert snapshot.has_series("b")
    assert not snapshot.has_series("b", model="x")


def test_nan_means_no_value() -> None:
    text = '# TYPE g gauge\ng{model="a"} Nan\ng{model="b"} 2.5\n'
    assert parse_metrics(text, 0.0, URL).gauge_values("g") == (2.5,)


def test_growth_is_summed_over_matching_series() -> None:
    text = '# TYPE c counter\nc{{m="a",v="1"}} {}\nc{{m="a",v="2"}} {}\nc{{m="b",v="1"}} {}\n'
    before = parse_metrics(text.format(10, 5, 7), 0.0, URL)
    after = parse_metrics(text.format(13, 6, 100), 1.0, URL)
    assert counter_increase(before, after, "c", m="a") == 4
    assert counter_increase(before, after, "c") == 97
    assert counter_increase(before, after, "unknown") == 0


def test_a_counter_that_fell_was_restarted() -> None:
    assert counter_increase(counters(100), counters(4), "c") == 4


def test_a_new_series_began_at_zero() -> None:
    assert counter_increase(Snapshot(time_s=0.0), counters(4), "c") == 4


def test_endpoints_stay_apart_when_merged() -> None:
    def both(first: float, second: float) -> Snapshot:
        text = "# TYPE c counter\nc {}\n"
        return merge(
            [
                parse_metrics(text.format(first), 0.0, "http://a/metrics"),
                parse_metrics(text.format(second), 0.0, "http://b/metrics"),
            ],
            1.0,
        )

    assert counter_increase(both(10, 20), both(11, 3), "c") == 4  # the second Triton restarted


def histogram(*latencies: float) -> Histogram:
    bounds = (10.0, 20.0, 50.0, 100.0, math.inf)
    counts = tuple(float(sum(x <= bound for x in latencies)) for bound in bounds)
    return Histogram(upper_bounds=bounds, counts=counts)


def test_quantile_is_linear_inside_a_bucket() -> None:
    seen = Histogram(upper_bounds=(10.0, 20.0, math.inf), counts=(0.0, 10.0, 10.0))
    assert seen.quantile(0.5) == 15.0
    assert seen.quantile(1.0) == 20.0


def test_quantile_beyond_the_last_bound_is_that_bound() -> None:
    assert histogram(500.0, 600.0).quantile(0.95) == 100.0


def test_no_observations_no_quantile() -> None:
    assert histogram().quantile(0.95) is None


@given(st.lists(st.floats(min_value=0, max_value=99), min_size=1, max_size=200), st.floats(0.01, 1))
def test_quantile_lies_in_the_bucket_of_the_true_one(latencies: list[float], q: float) -> None:
    found = histogram(*latencies).quantile(q)
    assert found is not None
    rank = max(0, math.ceil(q * len(latencies) - 1e-9) - 1)
    true = sorted(latencies)[rank]
    lower = max((bound for bound in (0.0, 10.0, 20.0, 50.0) if bound < true), default=0.0)
    upper = next(bound for bound in (10.0, 20.0, 50.0, 100.0) if bound >= true)
    assert lower <= found <= upper


def test_histograms_restart_as_a_whole() -> None:
    before, after = histogram(5, 5, 15), histogram(5, 15, 15, 15)
    # The total grew, but the first bucket fell: every count is of the new life.
    assert after.increase_since(before) == after
    assert histogram(5, 5, 15, 30).increase_since(before) == histogram(30)


def test_histograms_of_replicas_add_up() -> None:
    text = (
        "# TYPE h histogram\n"
        'h_bucket{{gpu="0",le="10"}} {0}\nh_bucket{{gpu="0",le="+Inf"}} {1}\n'
        'h_bucket{{gpu="1",le="10"}} {2}\nh_bucket{{gpu="1",le="+Inf"}} {3}\n'
    )
    before = parse_metrics(text.format(0, 0, 1, 1), 0.0, URL)
    after = parse_metrics(text.format(2, 3, 4, 8), 1.0, URL)
    both = histogram_increase(before, after, "h")
    assert both is not None
    assert both.counts == (5.0, 10.0)
    one = histogram_increase(before, after, "h", gpu="1")
    assert one is not None
    assert one.counts == (3.0, 7.0)
    assert histogram_increase(before, after, "h", gpu="2") is None


@pytest.mark.parametrize(
    "text",
    [
        "<html>not metrics</html>",
        "# TYPE c counter\nc{model=",
        "# TYPE c counter\nc forty",
        "c",
        "{}",
        '# TYPE h histogram\nh_bucket{le="1"} 5\nh_bucket{le="+Inf"} 3\n',
        "# TYPE h histogram\nh_bucket 5\n",
    ],
)
def test_broken_text_is_one_error_that_names_the_endpoint(text: str) -> None:
    with pytest.raises(MetricsUnavailableError, match=f"^{re.escape(URL)}: not Prometheus"):
        parse_metrics(text, 0.0, URL)


def test_damaged_text_never_escapes_as_another_error(triton: Any) -> None:
    """Truncations and random flips of a real text parse, or are that one error."""
    triton.serve("bert", 10, 20.0)
    text = triton.text()
    dice = random.Random(7)
    refused = 0
    for _ in range(300):
        damaged = list(text[: dice.randrange(1, len(text))])
        for _ in range(dice.randrange(4)):
            damaged[dice.randrange(len(damaged))] = dice.choice('"{}=,# \n\\x0')
        try:
            parse_metrics("".join(damaged), 0.0, URL)
        except MetricsUnavailableError:
            refused += 1
    assert refused > 0

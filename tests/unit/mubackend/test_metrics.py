from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mubackend.metrics import (
    CATALOGUE,
    Kind,
    MetricCallError,
    Metrics,
    Reason,
    RecordedMetrics,
    TritonMetrics,
    open_metrics,
    slo_buckets_ms,
)

BAD_CALLS: list[Callable[[Metrics], None]] = [
    lambda metrics: metrics.increment("mu_rejected_total", -1.0),
    lambda metrics: metrics.increment("mu_rejected_total", math.nan),
    lambda metrics: metrics.increment("mu_no_such_total"),
    lambda metrics: metrics.increment("mu_queue_length"),
    lambda metrics: metrics.increment("mu_rejected_total", tag="tired"),
    lambda metrics: metrics.increment("mu_fallback_total"),
    lambda metrics: metrics.increment("mu_fallback_total", tag="tired"),
    lambda metrics: metrics.set("mu_queue_length", -1.0),
    lambda metrics: metrics.set("mu_rejected_total", 1.0),
    lambda metrics: metrics.observe("mu_request_latency_ms", math.inf),
    lambda metrics: metrics.observe("mu_queue_length", 1.0),
]


class FakeFamily:
    """As strict as Triton: what would abort the server fails the test."""

    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    made: list[FakeFamily]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.kind = name, kind
        self.series: list[FakeSeries] = []
        self.made.append(self)

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> FakeSeries:
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        self.series.append(FakeSeries(labels))
        self.series[-1].bounds = buckets
        return self.series[-1]


class FakeSeries:
    def __init__(self, labels: dict[str, str]) -> None:
        self.labels = labels
        self.value = 0.0
        self.bounds: list[float] | None = None

    def increment(self, value: float) -> None:
        assert 0.0 < value < math.inf
        self.value += value

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        assert math.isfinite(value)
        self.value += 1


class FakeTritonError(Exception):
    pass


def fake_pb_utils() -> Any:
    family = type("Family", (FakeFamily,), {"made": []})
    return SimpleNamespace(MetricFamily=family, TritonModelException=FakeTritonError)


@pytest.mark.parametrize("call", BAD_CALLS)
def test_a_bad_call_raises_in_tests_and_never_reaches_triton(call: Callable[[Metrics], None]) -> None:
    with pytest.raises(MetricCallError):
        call(RecordedMetrics())
    pb_utils = fake_pb_utils()
    call(TritonMetrics(pb_utils, tuple(CATALOGUE), {"model": "m"}, {}))
    assert all(series.value == 0 for family in pb_utils.MetricFamily.made for series in family.series)


def test_every_series_exists_from_the_start_and_once() -> None:
    pb_utils = fake_pb_utils()
    metrics = open_metrics(pb_utils, tuple(CATALOGUE), {"model": "m", "gpu": "n/gpu0"})
    metrics.increment("mu_fallback_total", tag=Reason.PREDICTOR_LATE)
    metrics.increment("mu_fallback_total", tag=Reason.PREDICTOR_LATE)
    metrics.set("mu_queue_length", 3)
    metrics.observe("mu_request_latency_ms", 12.0)
    values = {
        (family.name, series.labels.get("reason")): series.value
        for family in pb_utils.MetricFamily.made
        for series in family.series
    }
    assert len(values) == len(CATALOGUE) - 1 + len(Reason)
    assert values["mu_fallback_total", "predictor_late"] == 2
    assert values["mu_fallback_total", "no_text"] == 0
    assert values["mu_queue_length", None] == 3
    assert values["mu_request_latency_ms", None] == 1


def test_a_name_that_the_model_did_not_ask_for_is_dropped() -> None:
    metrics = TritonMetrics(fake_pb_utils(), ("mu_queue_length",), {}, {})
    metrics.increment("mu_rejected_total")


def test_a_server_without_metrics_is_served_without() -> None:
    class Refusing:
        GAUGE = "gauge"

        def __init__(self, **_: object) -> None:
            raise FakeTritonError("metrics not supported")

    pb_utils = fake_pb_utils()
    pb_utils.MetricFamily = Refusing
    metrics = open_metrics(pb_utils, ("mu_queue_length",), {})
    metrics.set("mu_queue_length", 1.0)
    metrics.increment("mu_rejected_total")
    metrics.observe("mu_request_latency_ms", 1.0)


def test_counters_are_named_as_prometheus_wants() -> None:
    for name, spec in CATALOGUE.items():
        assert name.endswith("_total") == (spec.kind is Kind.COUNTER)
        assert bool(spec.buckets) == (spec.kind is Kind.HISTOGRAM)
        assert list(spec.buckets) == sorted(set(spec.buckets))


def test_a_latency_histogram_can_tell_latencies_around_its_slo_apart() -> None:
    pb_utils = fake_pb_utils()
    open_metrics(pb_utils, ("mu_request_latency_ms",), {}, {"mu_request_latency_ms": slo_buckets_ms(20_000)})
    (family,) = pb_utils.MetricFamily.made
    bounds = family.series[0].bounds
    assert 20_000 in bounds
    assert bounds == sorted(set(bounds))
    near = [bound for bound in bounds if 12_000 <= bound <= 22_000]
    assert max(b - a for a, b in itertools.pairwise(near)) <= 1_000

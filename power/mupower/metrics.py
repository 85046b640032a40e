"""Prometheus text to a typed record, and records to windowed increases and quantiles.

Everything here is pure. Text in the Prometheus exposition format 0.0.4 (what Triton serves) is parsed by
``prometheus_client``; counters keep their name without ``_total`` whichever way they were written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from muserve.errors import MetricsUnavailableError

Labels = tuple[tuple[str, str], ...]
"""The labels of one series, sorted, so that they can be a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Cumulative bucket counts: ``counts[i]`` observations were at most ``upper_bounds[i]``."""

    upper_bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def count(self) -> float:
        """All observations."""
        return self.counts[-1] if self.counts else 0.0

    def __add__(self, other: Histogram) -> Histogram:
        """Both together. ValueError when their buckets differ."""
        if self.upper_bounds != other.upper_bounds:
            raise ValueError("cannot add histograms with different buckets")
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(upper_bounds=self.upper_bounds, counts=counts)

    def quantile(self, q: float) -> float | None:
        """The value below which a share ``q`` of the observations lies; None without observations.

        Linear inside a bucket, the highest finite bound when the quantile falls into the +Inf bucket:
        the same as ``histogram_quantile`` of Prometheus.
        """
        if self.count <= 0:
            return None
        rank = q * self.count
        below, lower = 0.0, 0.0
        for upper, count in zip(self.upper_bounds, self.counts, strict=True):
            if count >= rank and count > below:
                if math.isinf(upper):
                    return lower
                return lower + (upper - lower) * (rank - below) / (count - below)
            below, lower = count, upper
        return lower

    def increase_since(self, before: Histogram | None) -> Histogram:
        """Observations made after ``before``. Any falling bucket means the counting restarted at 0."""
        if (
            before is None
            or before.upper_bounds != self.upper_bounds
            or any(now < then for now, then in zip(self.counts, before.counts, strict=True))
        ):
            return self
        counts = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return Histogram(upper_bounds=self.upper_bounds, counts=counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All series of one moment (``time_s`` on the monotonic clock), by metric name and labels."""

    time_s: float
    counters: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    gauges: Mapping[str, Mapping[Labels, float]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[Labels, Histogram]] = field(default_factory=dict)

    def gauge_values(self, name: str, **labels: str) -> tuple[float, ...]:
        """Values of the gauge ``name`` in every series that carries all of ``labels``."""
        return tuple(v for key, v in self.gauges.get(name, {}).items() if _matches(key, labels))

    def has_series(self, name: str, **labels: str) -> bool:
        """True when any counter, gauge or histogram ``name`` carries all of ``labels``."""
        kinds: tuple[Mapping[str, Mapping[Labels, object]], ...] = (
            self.counters,
            self.gauges,
            self.histograms,
        )
        return any(_matches(key, labels) for kind in kinds for key in kind.get(name, {}))


def counter_increase(before: Snapshot, after: Snapshot, name: str, **labels: str) -> float:
    """How much the counter ``name`` grew between two snapshots, summed over the matching series.

    A series that fell was restarted, one that is new began at 0: both have grown by what they show now.
    """
    earlier = before.counters.get(name, {})
    total = 0.0
    for key, value in after.counters.get(name, {}).items():
        if _matches(key, labels):
            start = earlier.get(key, 0.0)
            total += value - start if value >= start else value
    return total


def histogram_increase(before: Snapshot, after: Snapshot, name: str, **labels: str) -> Histogram | None:
    """What the histogram ``name`` gained between two snapshots; None when no series matches.

    Series are added up; those whose buckets differ from the first one's are left out.
    """
    earlier = before.histograms.get(name, {})
    total: Histogram | None = None
    for key, histogram in sorted(after.histograms.get(name, {}).items()):
        if not _matches(key, labels):
            continue
        gained = histogram.increase_since(earlier.get(key))
        if total is None:
            total = gained
        elif total.upper_bounds == gained.upper_bounds:
            total = total + gained
    return total


def parse_metrics(text: str, time_s: float, endpoint: str) -> Snapshot:
    """Parse one endpoint's text; every series gets the label ``endpoint``.

    NaN samples are left out: they mean "no value". Raises MetricsUnavailableError when the text is not
    in the Prometheus format.
    """
    counters: dict[str, dict[Labels, float]] = {}
    gauges: dict[str, dict[Labels, float]] = {}
    histograms: dict[str, dict[Labels, Histogram]] = {}
    try:
        for family in text_string_to_metric_families(text):
            if family.type == "histogram":
                found = _histograms(family.samples, endpoint)
                histograms.setdefault(family.name, {}).update(found)
            elif family.type == "counter":
                name = family.name.removesuffix("_total")
                counters.setdefault(name, {}).update(_values(family.samples, endpoint))
            elif family.type == "gauge":
                gauges.setdefault(family.name, {}).update(_values(family.samples, endpoint))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        # prometheus_client has no error class of its own: broken text surfaces as any of these.
        raise MetricsUnavailableError(f"{endpoint}: not Prometheus text: {error}") from error
    return Snapshot(time_s=time_s, counters=counters, gauges=gauges, histograms=histograms)


def merge(snapshots: Sequence[Snapshot], time_s: float) -> Snapshot:
    """The series of several endpoints as one snapshot; the ``endpoint`` label keeps them apart."""
    counters: dict[str, dict[Labels, float]] = {}
    gauges: dict[str, dict[Labels, float]] = {}
    histograms: dict[str, dict[Labels, Histogram]] = {}
    for snapshot in snapshots:
        for name, series in snapshot.counters.items():
            counters.setdefault(name, {}).update(series)
        for name, series in snapshot.gauges.items():
            gauges.setdefault(name, {}).update(series)
        for name, buckets in snapshot.histograms.items():
            histograms.setdefault(name, {}).update(buckets)
    return Snapshot(time_s=time_s, counters=counters, gauges=gauges, histograms=histograms)


def _matches(key: Labels, wanted: Mapping[str, str]) -> bool:
    return all(item in key for item in wanted.items())


def _labels(sample: Sample, endpoint: str) -> Labels:
    named = {**sample.labels, "endpoint": endpoint}
    named.pop("le", None)
    return tuple(sorted(named.items()))


def _values(samples: Iterable[Sample], endpoint: str) -> dict[Labels, float]:
    return {
        _labels(sample, endpoint): float(sample.value) for sample in samples if not math.isnan(sample.value)
    }


def _histograms(samples: Iterable[Sample], endpoint: str) -> dict[Labels, Histogram]:
    buckets: dict[Labels, dict[float, float]] = {}
    for sample in samples:
        if sample.name.endswith("_bucket") and not math.isnan(sample.value):
            found = buckets.setdefault(_labels(sample, endpoint), {})
            found[float(sample.labels["le"])] = float(sample.value)
    return {key: _histogram(found) for key, found in buckets.items()}


def _histogram(buckets: Mapping[float, float]) -> Histogram:
    bounds = tuple(sorted(buckets))
    counts = tuple(buckets[bound] for bound in bounds)
    if math.isnan(bounds[-1]) or any(a > b for a, b in pairwise(counts)):
        raise ValueError("histogram buckets are not cumulative")
    return Histogram(upper_bounds=bounds, counts=counts)

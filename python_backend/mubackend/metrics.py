"""Metrics that Triton itself does not have, in Triton's own metrics endpoint.

Triton's Python backend may abort the whole server on a bad metric call (a negative increment, a bad
name, a name registered again as another kind), so every call is checked here against one fixed
catalogue before it reaches Triton: a call that fails the check raises in tests and is logged, not
passed on, in production. Families and series are made once, at start, and kept referenced.

``mu_request_latency_ms`` and ``mu_slo_*`` are about generative models and come from their engine; for
single-pass models Triton's own counters of the ensemble tell the same. A request counts as SLO met when
its last token was sent within the model's SLO after its arrival; it counts as missed when it was later,
rejected or failed. Requests that the client cancelled and requests that were invalid count as neither.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from muserve.errors import MuServeError
from muserve.queue_order import TrafficClass

logger = logging.getLogger(__name__)


class Kind(StrEnum):
    """Prometheus metric types; values are the names in ``pb_utils.MetricFamily``."""

    COUNTER = "COUNTER"
    GAUGE = "GAUGE"
    HISTOGRAM = "HISTOGRAM"


class Reason(StrEnum):
    """Why a request went first come, first served instead of by its predicted length."""

    NO_TEXT = "no_text"
    PREDICTION_FAILED = "prediction_failed"
    PREDICTOR_FAILED = "predictor_failed"
    PREDICTOR_LATE = "predictor_late"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """One family: its kind, its help text, and the name and values of its extra label if it has one."""

    kind: Kind
    help: str
    label: str = ""
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# From 5 ms to 10 minutes, each bound about 1.5 times the one before.
_LATENCY_MS = (
    5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 7500,
    10_000, 15_000, 20_000, 30_000, 45_000, 60_000, 90_000, 120_000, 180_000, 300_000, 600_000,
)  # fmt: skip

# From one token to the longest answers, each bound about 1.5 times the one before.
_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)

# Keys reach from milliseconds to hours.
_KEY_MS = tuple(float(f"{10 ** (power / 4):.3g}") for power in range(33))

# Bounds as shares of an SLO, close together where a control law has to tell them apart.
_SLO_SHARES = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65,
    0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 3.0, 5.0, 10.0,
)  # fmt: skip

CATALOGUE: Mapping[str, MetricSpec] = {
    "mu_request_latency_ms": MetricSpec(
        kind=Kind.HISTOGRAM,
        help="Milliseconds from arrival, predictor and queue included, to the last token",
        buckets=_LATENCY_MS,
    ),
    "mu_stage_latency_ms": MetricSpec(
        kind=Kind.HISTOGRAM, help="Milliseconds one run of a partition took", buckets=_LATENCY_MS
    ),
    "mu_slo_met_total": MetricSpec(kind=Kind.COUNTER, help="Requests answered within the SLO"),
    "mu_slo_missed_total": MetricSpec(
        kind=Kind.COUNTER, help="Requests answered later than the SLO, rejected or failed"
    ),
    "mu_predicted_backlog_seconds": MetricSpec(
        kind=Kind.GAUGE, help="Predicted time to serve everything queued and running, at the top clock"
    ),
    "mu_queue_length": MetricSpec(kind=Kind.GAUGE, help="Requests waiting for a slot"),
    "mu_predicted_tokens_total": MetricSpec(
        kind=Kind.COUNTER, help="Predicted tokens of completed requests that had a prediction"
    ),
    "mu_actual_tokens_total": MetricSpec(
        kind=Kind.COUNTER, help="Actual tokens of completed requests that had a prediction"
    ),
    "mu_prediction_error_tokens_total": MetricSpec(
        kind=Kind.COUNTER, help="Sum of |predicted - actual| tokens of completed requests"
    ),
    "mu_fallback_total": MetricSpec(
        kind=Kind.COUNTER,
        help="Requests served first come, first served for lack of a prediction",
        label="reason",
        values=tuple(Reason),
    ),
    "mu_decisions_total": MetricSpec(
        kind=Kind.COUNTER, help="Requests that got a slot", label="class", values=tuple(TrafficClass)
    ),
    "mu_wait_ms": MetricSpec(
        kind=Kind.HISTOGRAM,
        help="Milliseconds from arrival to a slot",
        label="class",
        values=tuple(TrafficClass),
        buckets=_LATENCY_MS,
    ),
    "mu_decision_key_ms": MetricSpec(
        kind=Kind.HISTOGRAM,
        help="What requests that got a slot were ordered by; for orders that age, from arrival on",
        buckets=_KEY_MS,
    ),
    "mu_decision_predicted_tokens": MetricSpec(
        kind=Kind.HISTOGRAM, help="Predicted tokens of requests that got a slot", buckets=_TOKENS
    ),
    "mu_answer_tokens": MetricSpec(
        kind=Kind.HISTOGRAM, help="Actual tokens of completed requests", buckets=_TOKENS
    ),
    "mu_prediction_error_tokens": MetricSpec(
        kind=Kind.HISTOGRAM, help="|predicted - actual| tokens of completed requests", buckets=_TOKENS
    ),
    "mu_promoted_total": MetricSpec(
        kind=Kind.COUNTER,
        help="Requests that got a slot before one of their class that was predicted to be shorter",
    ),
    "mu_class_slo_met_total": MetricSpec(
        kind=Kind.COUNTER,
        help="mu_slo_met_total by traffic class",
        label="class",
        values=tuple(TrafficClass),
    ),
    "mu_class_slo_missed_total": MetricSpec(
        kind=Kind.COUNTER,
        help="mu_slo_missed_total by traffic class",
        label="class",
        values=tuple(TrafficClass),
    ),
    "mu_timed_out_total": MetricSpec(kind=Kind.COUNTER, help="Requests whose own time was up"),
    "mu_service_pace": MetricSpec(
        kind=Kind.GAUGE, help="Actual over predicted time in a slot of recent requests"
    ),
    "mu_rejected_total": MetricSpec(kind=Kind.COUNTER, help="Requests refused because the queue was full"),
    "mu_cancelled_total": MetricSpec(kind=Kind.COUNTER, help="Requests that the client cancelled"),
    "mu_preemptions_total": MetricSpec(
        kind=Kind.COUNTER, help="Running requests put back for lack of cache (engine vllm)"
    ),
    "mu_stage_overrun_seconds_total": MetricSpec(
        kind=Kind.COUNTER, help="Time by which the CPU was slower than the virtual GPU it stands in for"
    ),
    "mu_stage_gpu_seconds_total": MetricSpec(kind=Kind.COUNTER, help="Virtual GPU time spent"),
}


class MetricCallError(MuServeError):
    """A metric call that must not reach Triton: a bug in the caller."""


class Metrics(Protocol):
    """Where models record what happens. Every name is one of ``CATALOGUE``."""

    def increment(self, name: str, value: float = 1.0, tag: str = "") -> None:
        """Add ``value`` >= 0 to a counter."""

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float, tag: str = "") -> None:
        """Add one value to a histogram."""


def check_call(kind: Kind, name: str, value: float, tag: str = "") -> None:
    """Raise MetricCallError unless the call fits the catalogue."""
    spec = CATALOGUE.get(name)
    if spec is None or spec.kind is not kind:
        raise MetricCallError(f"{name}: not a {kind.lower()} of the catalogue")
    if not math.isfinite(value) or value < 0.0:
        raise MetricCallError(f"{name}: expected a value >= 0, got {value}")
    if (tag in spec.values) != bool(spec.values) or (tag and not spec.values):
        raise MetricCallError(f"{name}: {spec.label or 'label'} {tag!r} is not in the catalogue")


@dataclass(slots=True)
class RecordedMetrics:
    """Keeps every value in memory: the recorder to test with."""

    totals: dict[tuple[str, str], float] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    observations: dict[str, list[float]] = field(default_factory=dict)

    def increment(self, name: str, value: float = 1.0, tag: str = "") -> None:
        """Add to a counter; MetricCallError when the call does not fit the catalogue."""
        check_call(Kind.COUNTER, name, value, tag)
        self.totals[name, tag] = self.totals.get((name, tag), 0.0) + value

    def set(self, name: str, value: float) -> None:
        """Set a gauge; MetricCallError when the call does not fit the catalogue."""
        check_call(Kind.GAUGE, name, value)
        self.gauges[name] = value

    def observe(self, name: str, value: float, tag: str = "") -> None:
        """Record a value; MetricCallError when the call does not fit the catalogue."""
        check_call(Kind.HISTOGRAM, name, value, tag)
        self.observations.setdefault(name, []).append(value)

    def total(self, name: str, tag: str = "") -> float:
        """A counter's value, 0 when it was never incremented."""
        return self.totals.get((name, tag), 0.0)


class _Silent:
    """For servers whose metrics are switched off."""

    def increment(self, name: str, value: float = 1.0, tag: str = "") -> None:
        pass

    def set(self, name: str, value: float) -> None:
        pass

    def observe(self, name: str, value: float, tag: str = "") -> None:
        pass


class TritonMetrics:
    """Series in Triton's metrics endpoint; never raises and never passes a bad call on."""

    def __init__(
        self,
        pb_utils: Any,
        names: tuple[str, ...],
        labels: Mapping[str, str],
        buckets: Mapping[str, tuple[float, ...]],
    ) -> None:
        """Make all series of ``names`` at once. ``pb_utils`` is Triton's ``triton_python_backend_utils``.

        ``buckets`` replaces the catalogue's bounds for some histograms.
        """
        self._families: list[Any] = []  # a series dies with its family
        self._series: dict[tuple[str, str], Any] = {}
        for name in names:
            spec = CATALOGUE[name]
            kind = getattr(pb_utils.MetricFamily, spec.kind.value)
            family = pb_utils.MetricFamily(name=name, description=spec.help, kind=kind)
            self._families.append(family)
            for tag in spec.values or ("",):
                tagged = {**labels, spec.label: tag} if tag else dict(labels)
                bounds = buckets.get(name, spec.buckets)
                options = {"buckets": list(bounds)} if bounds else {}
                self._series[name, tag] = family.Metric(labels=tagged, **options)

    def increment(self, name: str, value: float = 1.0, tag: str = "") -> None:
        """Add to a counter."""
        if value and self._allowed(Kind.COUNTER, name, value, tag):
            self._series[name, tag].increment(value)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        if self._allowed(Kind.GAUGE, name, value):
            self._series[name, ""].set(value)

    def observe(self, name: str, value: float, tag: str = "") -> None:
        """Record a value in a histogram."""
        if self._allowed(Kind.HISTOGRAM, name, value, tag):
            self._series[name, tag].observe(value)

    def _allowed(self, kind: Kind, name: str, value: float, tag: str = "") -> bool:
        try:
            check_call(kind, name, value, tag)
        except MetricCallError as error:
            logger.error("dropped a metric: %s", error)
            return False
        return (name, tag) in self._series


def slo_buckets_ms(slo_ms: float) -> tuple[float, ...]:
    """Upper bounds of a latency histogram that resolves latencies around ``slo_ms``; one is the SLO."""
    return tuple(float(f"{share * slo_ms:.6g}") for share in _SLO_SHARES)


def open_metrics(
    pb_utils: Any,
    names: tuple[str, ...],
    labels: Mapping[str, str],
    buckets: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> Metrics:
    """Triton's metrics, or nothing where the server has them switched off."""
    try:
        return TritonMetrics(pb_utils, names, labels, buckets)
    except pb_utils.TritonModelException as error:
        logger.warning("Triton takes no custom metrics: %s", error)
        return _Silent()

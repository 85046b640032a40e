"""What became of requests, as metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from mubackend.llm_engine.job import Job
from mubackend.llm_engine.settings import EngineSettings
from mubackend.metrics import Metrics, Reason
from muserve.queue_order import TrafficClass

METRICS = (
    "mu_request_latency_ms",
    "mu_slo_met_total",
    "mu_slo_missed_total",
    "mu_predicted_backlog_seconds",
    "mu_queue_length",
    "mu_predicted_tokens_total",
    "mu_actual_tokens_total",
    "mu_prediction_error_tokens_total",
    "mu_fallback_total",
    "mu_rejected_total",
    "mu_cancelled_total",
    "mu_preemptions_total",
    "mu_timed_out_total",
    "mu_decisions_total",
    "mu_wait_ms",
    "mu_decision_key_ms",
    "mu_decision_predicted_tokens",
    "mu_answer_tokens",
    "mu_prediction_error_tokens",
    "mu_promoted_total",
    "mu_class_slo_met_total",
    "mu_class_slo_missed_total",
    "mu_service_pace",
)
_GAUGE_PERIOD_S = 0.1


def epoch_ms() -> int:
    """Milliseconds since 1970, the time base of ``arrival_ms``."""
    return time.time_ns() // 1_000_000


class Ledger:
    """Counts each request once, in the metric that fits its end."""

    def __init__(self, settings: EngineSettings, metrics: Metrics, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._now_ms = now_ms
        self._gauges_due_s = 0.0

    def started(self, job: Job) -> None:
        """It got a slot."""
        name = job.request.terms.traffic_class
        self._metrics.increment("mu_decisions_total", tag=name)
        self._metrics.observe("mu_wait_ms", job.wait_ms, tag=name)
        if job.predicted_tokens:
            self._metrics.observe("mu_decision_predicted_tokens", job.predicted_tokens)
        if job.key_ms is not None:
            self._metrics.observe("mu_decision_key_ms", max(0.0, job.key_ms))
        if job.promoted:
            self._metrics.increment("mu_promoted_total")

    def completed(self, job: Job) -> None:
        """The last token has been sent."""
        latency_ms = max(0, self._now_ms() - job.arrival_ms)
        self._metrics.observe("mu_request_latency_ms", latency_ms)
        if latency_ms <= self._settings.slo_ms:
            self._metrics.increment("mu_slo_met_total")
            self._metrics.increment("mu_class_slo_met_total", tag=job.request.terms.traffic_class)
        else:
            self._missed(job.request.terms.traffic_class)
        self._metrics.observe("mu_answer_tokens", job.sent)
        if job.predicted_tokens:
            self._metrics.increment("mu_predicted_tokens_total", job.predicted_tokens)
            self._metrics.increment("mu_actual_tokens_total", job.sent)
            error = abs(job.predicted_tokens - job.sent)
            self._metrics.increment("mu_prediction_error_tokens_total", error)
            self._metrics.observe("mu_prediction_error_tokens", error)

    def rejected(self, traffic_class: TrafficClass) -> None:
        """The queue was full."""
        self._metrics.increment("mu_rejected_total")
        self._missed(traffic_class)

    def failed(self, job: Job) -> None:
        """The engine could not serve it, or stopped first."""
        self._missed(job.request.terms.traffic_class)

    def timed_out(self, job: Job) -> None:
        """Its own time was up before its answer was whole."""
        self._metrics.increment("mu_timed_out_total")
        self._missed(job.request.terms.traffic_class)

    def cancelled(self) -> None:
        """The client gave it up."""
        self._metrics.increment("mu_cancelled_total")

    def fell_back(self, reason: Reason) -> None:
        """It went without a prediction."""
        self._metrics.increment("mu_fallback_total", tag=reason)

    def load_is_due(self) -> bool:
        """Whether the gauges are older than a tenth of a second."""
        return time.monotonic() >= self._gauges_due_s

    def load(self, waiting: Collection[Job], running: Collection[Job], pace: float) -> None:
        """Set the gauges."""
        self._gauges_due_s = time.monotonic() + _GAUGE_PERIOD_S
        self._metrics.set("mu_queue_length", len(waiting))
        self._metrics.set("mu_predicted_backlog_seconds", self.backlog_s(waiting, running))
        self._metrics.set("mu_service_pace", pace)

    def backlog_s(self, waiting: Collection[Job], running: Collection[Job]) -> float:
        """Predicted seconds of all slots together for ``waiting`` and ``running``, at the top clock.

        A running job that has outlived its prediction counts as one more token. A job without a
        prediction counts as its constant part and one token.
        """
        queued_ms = sum(self._settings.service_ms(job.predicted_tokens) for job in waiting)
        return (queued_ms + self.left_ms(running)) / self._settings.slots / 1000

    def left_ms(self, running: Collection[Job]) -> float:
        """Predicted milliseconds that ``running`` still need of their slots, added up."""
        step_ms = self._settings.step_ms(self._settings.slots)
        return sum(step_ms * max(1.0, job.predicted_tokens - job.sent) for job in running)

    def _missed(self, traffic_class: TrafficClass) -> None:
        self._metrics.increment("mu_slo_missed_total")
        self._metrics.increment("mu_class_slo_missed_total", tag=traffic_class)

"""What became of requests, as metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from mubackend.llm_engine.job import Job
from mubackend.llm_engine.settings import EngineSettings
from mubackend.metrics import Metrics, Reason
from mubackend.priority import predicted_service_ms

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

    def completed(self, job: Job) -> None:
        """The last token has been sent."""
        latency_ms = max(0, self._now_ms() - job.arrival_ms)
        self._metrics.observe("mu_request_latency_ms", latency_ms)
        met = latency_ms <= self._settings.slo_ms
        self._metrics.increment("mu_slo_met_total" if met else "mu_slo_missed_total")
        if job.predicted_tokens:
            self._metrics.increment("mu_predicted_tokens_total", job.predicted_tokens)
            self._metrics.increment("mu_actual_tokens_total", job.sent)
            error = abs(job.predicted_tokens - job.sent)
            self._metrics.increment("mu_prediction_error_tokens_total", error)

    def rejected(self) -> None:
        """The queue was full."""
        self._metrics.increment("mu_rejected_total")
        self._metrics.increment("mu_slo_missed_total")

    def failed(self) -> None:
        """The engine could not serve it, or stopped first."""
        self._metrics.increment("mu_slo_missed_total")

    def cancelled(self) -> None:
        """The client gave it up."""
        self._metrics.increment("mu_cancelled_total")

    def fell_back(self, reason: Reason) -> None:
        """It went first come, first served."""
        self._metrics.increment("mu_fallback_total", reason=reason)

    def load_is_due(self) -> bool:
        """Whether the gauges are older than a tenth of a second."""
        return time.monotonic() >= self._gauges_due_s

    def load(self, waiting: Collection[Job], running: Collection[Job]) -> None:
        """Set the gauges."""
        self._gauges_due_s = time.monotonic() + _GAUGE_PERIOD_S
        self._metrics.set("mu_queue_length", len(waiting))
        self._metrics.set("mu_predicted_backlog_seconds", self.backlog_s(waiting, running))

    def backlog_s(self, waiting: Collection[Job], running: Collection[Job]) -> float:
        """Predicted seconds of all slots together for ``waiting`` and ``running``, at the top clock.

        A running job that has outlived its prediction counts as one more token. A job without a
        prediction counts as its constant part and one token.
        """
        step_ms = self._settings.step_ms(self._settings.slots)
        queued_ms = sum(
            predicted_service_ms(self._settings.prefill_ms, step_ms, max(1.0, job.predicted_tokens))
            for job in waiting
        )
        running_ms = sum(step_ms * max(1.0, job.predicted_tokens - job.sent) for job in running)
        return (queued_ms + running_ms) / self._settings.slots / 1000

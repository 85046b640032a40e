"""What becomes of the requests that pass the front, as metrics.

An engine of ours (target embedded) keeps its own metrics of what it sees; then only what never reaches it
is counted here.
"""

from __future__ import annotations

from collections.abc import Callable

from mubackend.metrics import Metrics, Reason

WITHOUT_ENGINE = ("mu_fallback_total", "mu_rejected_total", "mu_slo_missed_total", "mu_cancelled_total")
METRICS = (
    *WITHOUT_ENGINE,
    "mu_request_latency_ms",
    "mu_slo_met_total",
    "mu_queue_length",
    "mu_predicted_backlog_seconds",
)


class Account:
    """Counts each request once, in the metric that fits its end.

    ``engine_counts``: the engine counts what reaches it.
    """

    def __init__(
        self, metrics: Metrics, slo_ms: float, now_ms: Callable[[], int], *, engine_counts: bool
    ) -> None:
        self._metrics = metrics
        self._slo_ms = slo_ms
        self._now_ms = now_ms
        self._engine_counts = engine_counts

    def rejected(self) -> None:
        """Too many requests were waiting."""
        self._metrics.increment("mu_rejected_total")
        self._metrics.increment("mu_slo_missed_total")

    def fell_back(self) -> None:
        """The predictor did not answer."""
        self._metrics.increment("mu_fallback_total", tag=Reason.PREDICTOR_FAILED)

    def completed(self, arrival_ms: int) -> None:
        """The last token was sent."""
        if self._engine_counts:
            return
        latency_ms = max(0, self._now_ms() - arrival_ms)
        self._metrics.observe("mu_request_latency_ms", latency_ms)
        self._metrics.increment("mu_slo_met_total" if latency_ms <= self._slo_ms else "mu_slo_missed_total")

    def cancelled(self, *, reached_engine: bool) -> None:
        """The client gave it up."""
        if not (self._engine_counts and reached_engine):
            self._metrics.increment("mu_cancelled_total")

    def failed(self, *, reached_engine: bool) -> None:
        """It could not be served."""
        if not (self._engine_counts and reached_engine):
            self._metrics.increment("mu_slo_missed_total")

    def load(self, waiting: int, backlog_ms: float) -> None:
        """Requests without a slot, and predicted milliseconds until all are served."""
        if not self._engine_counts:
            self._metrics.set("mu_queue_length", waiting)
            self._metrics.set("mu_predicted_backlog_seconds", backlog_ms / 1000)

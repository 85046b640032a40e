"""From a prompt to its place in the engine's queue."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from mubackend.failure import RequestError
from mubackend.metrics import Metrics, Reason
from mubackend.priority import predicted_service_ms, virtual_finish_ms
from mubackend.sampling import Sampling, parse_sampling

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLaw:
    """Predicted time of one request, and how much it counts against its arrival time."""

    const_ms: float
    ms_per_token: float
    alpha: float

    def priority(self, arrival_ms: int, tokens: float) -> int:
        """Priority of a request that is expected to generate ``tokens`` tokens."""
        service_ms = predicted_service_ms(self.const_ms, self.ms_per_token, tokens)
        return virtual_finish_ms(arrival_ms, self.alpha, service_ms)

    def fallback_priority(self, arrival_ms: int) -> int:
        """Priority of a request of unknown length: first come, first served."""
        return virtual_finish_ms(arrival_ms, self.alpha, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """``predicted_tokens`` is 0 when nothing could be predicted; ``priority``: lower is served first."""

    predicted_tokens: float
    priority: int
    arrival_ms: int


class PredictionService:
    """Answers every request: one whose length cannot be predicted goes first come, first served."""

    def __init__(self, predict: Callable[[str], float], law: ServiceLaw, metrics: Metrics) -> None:
        self._predict = predict
        self._law = law
        self._metrics = metrics

    def answer(self, prompt: Callable[[], str], sampling: Callable[[], str], arrival_ms: int) -> Prediction:
        """The prediction for one request that arrived at ``arrival_ms`` (epoch milliseconds).

        ``prompt`` and ``sampling`` read the request and may raise RequestError, as for bytes that are no
        text; refusing such a request is left to the engine.
        """
        tokens = self._tokens(prompt, sampling)
        if tokens is None:
            priority = self._law.fallback_priority(arrival_ms)
            return Prediction(predicted_tokens=0.0, priority=priority, arrival_ms=arrival_ms)
        priority = self._law.priority(arrival_ms, tokens)
        return Prediction(predicted_tokens=tokens, priority=priority, arrival_ms=arrival_ms)

    def _tokens(self, prompt: Callable[[], str], sampling: Callable[[], str]) -> float | None:
        try:
            text = prompt()
        except RequestError:
            text = ""
        if not text:
            self._metrics.increment("mu_fallback_total", tag=Reason.NO_TEXT)
            return None
        try:
            tokens = self._predict(text)
            if not (math.isfinite(tokens) and tokens >= 0.0):
                raise ValueError(f"the predictor returned {tokens} tokens")
        except Exception:  # whatever fails in there, the request itself must not
            logger.exception("a prediction failed: the request goes first come, first served")
            self._metrics.increment("mu_fallback_total", tag=Reason.PREDICTION_FAILED)
            return None
        return _limits(sampling).clip(tokens)


def _limits(sampling: Callable[[], str]) -> Sampling:
    try:
        return parse_sampling(sampling())
    except RequestError:  # the engine refuses the request; its place in the queue does not matter
        return Sampling()

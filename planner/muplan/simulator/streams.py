"""The requests of a scenario, a span of time at a time: a long run needs no more memory than a short one.

Every model draws arrivals, lengths and prediction errors from three random streams of its own: how the
time is cut into spans, and which other models there are, changes nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from muplan.load.arrivals import Arrivals
from muplan.load.trace import Trace
from muplan.simulator.scenario import Scenario, SimulatedModel
from muplan.simulator.world import ARRIVAL, Array
from muserve.plan import ModelKind

Floats = npt.NDArray[np.float64]

# Requests of a span, on average.
_SPAN_REQUESTS = 65_536


def request_spans(scenario: Scenario) -> Iterator[tuple[float, Array]]:
    """(end of the span in seconds, its requests in order of arrival); the last span ends at the horizon.

    Requests that arrive together are in the order of the models.
    """
    streams = [_Stream(n, model, scenario.seed) for n, model in enumerate(scenario.models)]
    rate_rps = sum(model.load.rate_rps for model in scenario.models)
    spans = max(1, math.ceil(scenario.horizon_s * rate_rps / _SPAN_REQUESTS))
    for span in range(1, spans + 1):
        end_s = scenario.horizon_s * span / spans
        requests = np.concatenate([stream.before(end_s) for stream in streams])
        yield end_s, requests[np.argsort(requests["time_ms"], kind="stable")]


class _Stream:
    """The requests of one model."""

    def __init__(self, number: int, model: SimulatedModel, seed: int) -> None:
        name = zlib.crc32(model.name.encode())
        streams = np.random.SeedSequence([seed, name]).spawn(3)
        arrivals, self._lengths, self._errors = (np.random.default_rng(stream) for stream in streams)
        self._number = number
        self._model = model
        self._load = (
            _Repeated(model.load) if isinstance(model.load, Trace) else Arrivals(model.load, arrivals)
        )

    def before(self, end_s: float) -> Array:
        """Requests that arrive before ``end_s`` and were not handed out before, in order."""
        times_s = self._load.before(end_s)
        requests = np.zeros(len(times_s), ARRIVAL)
        requests["model"] = self._number
        requests["time_ms"] = times_s * 1000.0
        requests["size"] = 1.0
        if self._model.kind is ModelKind.SINGLE_PASS:
            self._draw_sizes(requests)
        elif isinstance(self._load, _Repeated) and self._load.trace.output_tokens is not None:
            self._take_lengths(requests, self._load)
        else:
            self._draw_lengths(requests)
        return requests

    def _draw_sizes(self, requests: Array) -> None:
        if self._model.service_cv > 0.0:
            shape = self._model.service_cv**-2
            requests["size"] = self._lengths.gamma(shape, 1.0 / shape, len(requests))

    def _draw_lengths(self, requests: Array) -> None:
        model = self._model
        scores = self._lengths.standard_normal(len(requests))
        spread = math.sqrt(math.log1p(model.output_cv**2))
        typical = math.log(model.output_tokens) - spread**2 / 2
        requests["units"] = np.maximum(1.0, np.rint(np.exp(typical + spread * scores)))
        self._predict(requests, scores, typical, spread)

    def _take_lengths(self, requests: Array, load: _Repeated) -> None:
        trace, rows = load.trace, load.rows
        assert trace.output_tokens is not None, "the caller has looked"
        if trace.prompt_tokens is not None:
            requests["size"] = trace.prompt_tokens[rows] / trace.prompt_tokens.mean()
        requests["units"] = trace.output_tokens[rows]
        logs = np.log(trace.output_tokens)
        self._predict(requests, load.scores[rows], float(logs.mean()), float(logs.std()))

    def _predict(self, requests: Array, scores: Floats, typical: float, spread: float) -> None:
        """Expected lengths given what the predictor knows: a normal score that correlates with the true one.

        Kendall's tau of two normal scores with correlation r is 2 / pi * asin(r).
        """
        tau = self._model.prediction_tau
        errors = self._errors.standard_normal(len(requests))
        if tau == 1.0:
            requests["predicted"] = requests["units"]
            return
        known = math.sin(math.pi / 2 * tau)
        believed = known * scores + math.sqrt(1.0 - known**2) * errors
        unknown = spread**2 * (1.0 - known**2)
        requests["predicted"] = np.exp(typical + spread * known * believed + unknown / 2)


class _Repeated:
    """A trace played over and over. ``rows`` are those of the times handed out last."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.rows = np.empty(0, np.int64)
        self._given = 0

    @property
    def scores(self) -> Floats:
        """Normal scores of the trace's answer lengths, by rank."""
        lengths = self.trace.output_tokens
        assert lengths is not None, "only traces with lengths have scores"
        order = np.argsort(lengths, kind="stable")
        scores = np.empty(len(order))
        normal = NormalDist()
        scores[order] = [normal.inv_cdf((rank + 0.5) / len(order)) for rank in range(len(order))]
        return scores

    def before(self, end_s: float) -> Floats:
        """Times before ``end_s`` that were not handed out before, ascending, in seconds."""
        times, period_s = self.trace.arrival_s, self.trace.period_s
        turns, rest_s = divmod(end_s, period_s)
        total = int(turns) * len(times) + int(np.searchsorted(times, rest_s, side="left"))
        numbers = np.arange(self._given, max(total, self._given))
        self._given += len(numbers)
        self.rows = numbers % len(times)
        return numbers // len(times) * period_s + times[self.rows]
